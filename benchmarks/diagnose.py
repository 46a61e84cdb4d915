"""What the diagnosis of one slide costs: seconds and peak memory of each stage, and of reading beside the encoder.

    python benchmarks/diagnose.py                         # a phantom of a SurePath slide's size: 52,000 px a side
    python benchmarks/diagnose.py --diameter_mm 2         # a small one, to try it
    python benchmarks/diagnose.py --device cuda

Stages are measured one after the other, the encoder on a sample of the tiles, then the whole as `papsmear diagnose`
does it, where reading runs beside the encoder. Weights are random, which takes as long as any. CPU seconds are those of
all threads: what the stage takes on a core of its own. Memory is that of the process at its highest, with the libraries
(the line "start") in it; that of the reading alone holds all tiles at once, which the pipeline does not.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from papsmear.mil.diagnoser import Diagnoser
from papsmear.mil.diagnosis import Diagnosis
from papsmear.mil.embed import embed_tiles
from papsmear.mil.heads import build_head
from papsmear.mil.model import HeadCard, TrainedHead
from papsmear.mil.scope import Measured
from papsmear.mil.slide_files import write_diagnosis
from papsmear.ssl.encoder import load_encoder
from papsmear.tiling.cut import TileSettings, iter_tiles, plan
from papsmear.tiling.planes import open_planes

T = TypeVar("T")


def measured(name: str, work: Callable[[], T]) -> tuple[T, float]:
    """What `work` gives and its seconds; prints its line of the table."""
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is that of this stage
    began, began_cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, seconds_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"| {name} | {seconds:.2f} | {seconds_cpu:.2f} | {peak / 1024:.0f} |", flush=True)
    return result, seconds


def phantom(folder: Path, diameter_mm: float) -> Path:
    """A phantom slide with abnormal cells."""
    words = ["phantom", str(folder), "--slides=1", "--prevalence=1", f"--diameter_mm={diameter_mm}", "--cell_sets=0"]
    subprocess.run([sys.executable, "-m", "papsmear", *words], check=True, stderr=subprocess.DEVNULL)
    return folder / "slides" / "phantom_0001.svs"


def build(encoder: str, head: str, device: str | None) -> Diagnoser:
    """A diagnoser with random weights."""
    network = load_encoder(encoder, device)
    card = HeadCard(
        head=head, head_args={}, threshold=0.5, width=network.width, fold=0, encoder=encoder, encoder_sha256="",
        tiles=TileSettings(), train_slides=(), validation_slides=(),
    )  # fmt: skip
    trained = TrainedHead(build_head(head, network.width, {}).eval(), card)
    return Diagnoser(trained, network, TileSettings(), Measured(1), {})


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, help="a slide with a round deposit; a phantom is made if not given")
    parser.add_argument("--diameter_mm", type=float, default=13)
    parser.add_argument("--encoder", default="random:vit_small_patch16_224")
    parser.add_argument("--head", default="gated_attention")
    parser.add_argument("--device", help="cpu or cuda; a GPU where there is one if not given")
    parser.add_argument("--sample", type=int, default=512, help="how many tiles the encoder alone is timed on")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diagnose-") as work:
        slide = asked.slide or phantom(Path(work) / "cohort", asked.diameter_mm)
        diagnose(slide, build(asked.encoder, asked.head, asked.device), asked.sample, Path(work))


def diagnose(path: Path, diagnoser: Diagnoser, sample: int, work: Path) -> None:
    """All stages of one slide."""
    settings, device = diagnoser.tiles, next(diagnoser.encoder.parameters()).device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{len(os.sched_getaffinity(0))} cores"
    size = path.stat().st_size / 2**20
    print(f"{path.name}, {size:.0f} MiB; {diagnoser.encoder.card.name} on {where}, {torch.get_num_threads()} threads\n")
    print("| stage | seconds | CPU seconds | peak memory, MiB |\n|---|---|---|---|")
    measured("start", lambda: None)
    with open_planes(path) as planes:
        planned, _ = measured("overview and deposit", lambda: plan(planes.middle, settings))
        tiles, read = measured("read to JPEG tiles", lambda: list(iter_tiles(planes, settings, planned)))
        n = len(tiles)
        every = tiles[:: -(-n // min(sample, n))]
        pairs = [(tile.xy_level0, tile.jpeg) for tile in every]
        embed_tiles(diagnoser.encoder, pairs[:64])  # what only the first batch takes
        (features, _), embed = measured(f"embed {len(every)} tiles", lambda: embed_tiles(diagnoser.encoder, pairs))
        rate = len(features) / embed
        features = np.resize(features, (n, features.shape[1]))  # as many as there are tiles
        (probability, scores), _ = measured("head", lambda: diagnoser.head.judge(features))
        diagnosis = Diagnosis(
            "slide", 0.5, planes.middle.size_level0, planes.middle.mpp, settings, planned.size_level0, {}, probability,
            planned.xy_level0.astype(np.int32), scores, measured=Measured(n),
        )  # fmt: skip
        _, pages = measured("page, heat map, GeoJSON, JSON", lambda: write_diagnosis(work, diagnosis, planes.middle))
        _, whole = measured("all, reading beside the encoder", lambda: diagnoser.diagnose("slide", planes))
    print(f"\n{n} tiles, {n / read:.0f} read and {rate:.1f} embedded a second; {whole + pages:.1f} s with the page")


if __name__ == "__main__":
    main()
