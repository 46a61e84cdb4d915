"""What a 4-fold cross-validation of 300 slides costs: `papsmear crossval` on made-up bags of 5,200 x 384.

    python benchmarks/mil_crossval.py                              # in bfloat16, one thread
    python benchmarks/mil_crossval.py --precision 32-true
    python benchmarks/mil_crossval.py --slides 40 --tiles 500      # to try it
    python benchmarks/mil_crossval.py --profile                    # and what took the time

Bags are noise; in a fifth of the slides a few tiles are shifted, so that the head learns and stops early as it does on
real ones. CPU minutes are those of all threads: what the work takes on a core of its own, whatever else is running.
"""

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from papsmear.cli import main as papsmear

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mil.yaml"


def write_cohort(folder: Path, slides: int, tiles: int, width: int) -> None:
    """Bags as CLAM writes them, in half precision, and slides.csv."""
    (folder / "features").mkdir()
    random = np.random.default_rng(0)
    centre, shift = random.normal(size=width), random.normal(size=width) / width**0.5  # (D,), a shift of length 1
    rows = ["slide_id,path,label,fold"]
    for i in range(slides):
        label = int(i // 4 % 5 == 0)
        features = centre + random.standard_normal((tiles, width), np.float32)  # (N, D)
        features[: label * max(tiles // 200, 1)] += 4 * shift
        with h5py.File(folder / "features" / f"s{i}.h5", "w") as h5:
            h5["features"] = features.astype(np.float16)
            h5["coords"] = np.zeros((tiles, 2), np.int32)
        rows.append(f"s{i},s{i}.svs,{label},{i % 4}")
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=300)
    parser.add_argument("--tiles", type=int, default=5200)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--head", default="gated_attention")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folds", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--profile", action="store_true", help="tell what took the time")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(prefix="mil-crossval-") as name, cProfile.Profile() as profile:
        profile.disable()
        folder = Path(name)
        write_cohort(folder, asked.slides, asked.tiles, asked.width)
        words = [f"-c={CONFIG}", f"--out={folder / 'out'}", f"--heads=[{asked.head}]", f"--folds={asked.folds}"]
        words += [f"--data.features={folder / 'features'}", f"--data.slides={folder / 'slides.csv'}"]
        words += [f"--trainer.{word}" for word in ("accelerator=cpu", "logger=false", f"precision={asked.precision}")]
        if asked.profile:
            profile.enable()
        began, began_cpu = time.perf_counter(), time.process_time()
        status = papsmear(["crossval", *words])
        minutes, cpu_minutes = (time.perf_counter() - began) / 60, (time.process_time() - began_cpu) / 60
        profile.disable()
        tests = [json.loads(file.read_text()) for file in sorted(folder.glob("out/*/test.json"))]
        epochs = [
            torch.load(file, weights_only=True)["epoch"] + 1
            for file in sorted(folder.glob("out/*/checkpoints/last.ckpt"))
        ]
    aucs = ", ".join(f"{test['auc']:.3f}" for test in tests)
    print(f"\nstatus {status}; AUC of the folds {aucs}; epochs {epochs}")
    print(f"| {asked.slides} slides, {asked.head}, {asked.precision} | {minutes:.1f} min | {cpu_minutes:.1f} CPU min |")
    if asked.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
