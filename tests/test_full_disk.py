"""Every stage on a disk that fills up: one line, nothing finished lost, nothing half under its name, and it goes on.

The room that is left grows from none until the command succeeds, so it fails wherever it writes.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
import torch
from safetensors.torch import load_file

from papsmear.cli import main
from papsmear.mil.bags import BagCard, read_bag, write_bag
from papsmear.mil.heads import build_head
from papsmear.mil.model import NAME, HeadCard, save_head
from papsmear.ssl.encoder import load_encoder
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.shards import slide_folders

ENCODER = "random:test_vit"
ROOMS = (0, 12_000, 50_000, 200_000, 800_000)  # bytes
Cells = Callable[..., Path]


def whole(file: Path) -> bool:
    """Whether a file is all there, by its kind."""
    data = file.read_bytes()
    match file.suffix:
        case ".ckpt":
            return bool(torch.load(file, weights_only=True)["state_dict"])
        case ".safetensors":
            return all(tensor.numel() for tensor in load_file(file).values())
        case ".h5":
            return len(read_bag(file).features) > 0
        case ".json" | ".geojson":
            return bool(json.loads(data))
        case ".svs":
            with openslide.OpenSlide(file) as slide:
                return slide.read_region((0, 0), slide.level_count - 1, (8, 8)).size == (8, 8)
        case ".html":
            return data.rstrip().endswith(b"</html>")
        case ".jpg":
            return data.endswith(b"\xff\xd9")
        case ".bmp" | ".BMP":
            return cv2.imread(str(file)) is not None
        case ".npy":
            return np.load(file, allow_pickle=False).size > 0
        case ".csv" | ".yaml" | ".dat":
            return data.endswith(b"\n")
    raise AssertionError(f"{file}: of no known kind")


def finished(folder: Path) -> set[Path]:
    """The finished files; logs grow line by line."""
    others = {"logs", "wandb", "filler"}
    files = {file for file in folder.rglob("*") if file.is_file() and not others & set(file.parts)}
    assert [file for file in files if not whole(file)] == []
    return files


@contextmanager
def room(disk: Path, size: int) -> Iterator[None]:
    """Leaves so many bytes on the disk, as long as it lasts."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        file.write(bytes(max(shutil.disk_usage(disk).free - size, 0)))
    try:
        yield
    finally:
        filler.unlink()


def fill_up(disk: Path, words: list[str], capfd: pytest.CaptureFixture[str], rooms: tuple[int, ...] = ROOMS) -> None:
    """Runs a command with more and more room until it succeeds, and holds it to its promises where it fails."""
    failures = 0
    for size in rooms:
        before = finished(disk)
        capfd.readouterr()
        with room(disk, size):
            status = main(words)
            kept = finished(disk)
        said = capfd.readouterr().err
        assert before <= kept
        if status == 0:
            break
        assert status == 1, said
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if "error" in line.lower()]
        assert line.startswith(f"papsmear {words[0]}: error: {disk}/")
        assert "No space left on device; free some space" in line
        failures += 1
    assert failures >= 1
    assert main(words) == 0
    finished(disk)


def slide_list(folder: Path, *rows: str) -> Path:
    file = folder / "slides.csv"
    file.write_text("\n".join(["slide_id,path,label,fold", *rows]) + "\n")
    return file


def test_phantom(small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--slides=2", "--diameter_mm=0.2", "--mpp=0.5", "--folds=1", "--cell_sets=1", "--workers=1"]
    fill_up(small_disk, ["phantom", str(small_disk / "cohort"), *options], capfd)


def test_split(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slides = slide_list(small_disk, *(f"s{i},s{i}.svs,{i % 2}," for i in range(8)))
    fill_up(small_disk, ["split", str(slides), "--folds=2"], capfd)
    assert slides.read_text().count("\n") == 9


@pytest.fixture
def shards(tmp_path: Path, write_shards: Callable[..., Path]) -> Path:
    """Three slides of twenty tiles, on a disk with room."""
    random = np.random.default_rng(0)
    for slide in range(3):
        pictures = [random.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(20)]
        write_shards(tmp_path / "shards", f"s{slide}", pictures)
    return tmp_path / "shards"


def test_embed(small_disk: Path, shards: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = small_disk / "features"
    fill_up(small_disk, ["embed", f"--shards={shards}", f"--encoder={ENCODER}", f"--out={out}"], capfd)
    assert [file.name for file in sorted(out.glob("*.h5"))] == [f"{f.name}.h5" for f in slide_folders(shards)]


@pytest.mark.parametrize("small_disk", ["200m"], indirect=True)  # DINO's head is large
def test_fit_of_an_encoder(
    small_disk: Path, shards: Path, tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    slides = slide_list(tmp_path, *(f"s{i},s{i}.svs,,{i}" for i in range(3)))
    words = [
        "fit", f"-c={root / 'configs/ssl/tiny.yaml'}", f"--trainer.default_root_dir={small_disk / 'run'}",
        f"--data.shards={shards}", f"--data.slides={slides}", "--data.batch_size=16", "--data.workers=0",
        "--data.crop_px=32", "--model.input_px=32", "--model.architecture=test_resnet", "--model.outputs=16",
    ]  # fmt: skip
    assert main([*words, "--trainer.max_epochs=1"]) == 0
    fill_up(small_disk, [*words, "--trainer.max_epochs=2"], capfd, (0, 60_000, 2_000_000))
    assert torch.load(small_disk / "run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


@pytest.fixture
def bags(tmp_path: Path) -> Path:
    """A cohort of twelve slides of noise in three folds."""
    random = np.random.default_rng(0)
    card = BagCard(ENCODER, "ab" * 32, TileSettings(), 640.0)
    for slide in range(12):
        features = random.normal(size=(9, 128)).astype(np.float16)
        write_bag(tmp_path / "features" / f"s{slide}.h5", features, np.zeros((9, 2), np.int32), card)
    slide_list(tmp_path, *(f"s{i},s{i}.svs,{i // 3 % 2},{i % 3}" for i in range(12)))
    return tmp_path


def test_fit_and_test_of_a_head(small_disk: Path, bags: Path, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        f"-c={root / 'configs/mil.yaml'}", f"--trainer.default_root_dir={small_disk / 'run'}",
        "--trainer.accelerator=cpu", f"--data.features={bags / 'features'}", f"--data.slides={bags / 'slides.csv'}",
        "--model.head_args={embedding: 64, hidden: 32}",
    ]  # fmt: skip
    assert main(["fit", *words, "--trainer.max_epochs=1"]) == 0
    fill_up(small_disk, ["fit", *words, "--trainer.max_epochs=3"], capfd)
    assert torch.load(small_disk / "run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    fill_up(small_disk, ["test", *words], capfd)


@pytest.mark.parametrize("small_disk", ["32m"], indirect=True)  # each start leaves a W&B run with its pictures
def test_probe(small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for kind in ("carcinoma_in_situ", "light_dysplastic", "normal_columnar", "normal_superficiel"):
        (tmp_path / "herlev" / kind).mkdir(parents=True)
        for cell in range(8):
            picture = random.integers(0, 255, (40, 40, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "herlev" / kind / f"{cell}.BMP"), picture)
    words = [f"--encoders={ENCODER}", f"--sets.herlev={tmp_path / 'herlev'}", "--ks=[1]", "--runs=2"]
    fill_up(small_disk, ["probe", f"--out={small_disk / 'probe'}", *words], capfd, (*ROOMS, 3_000_000))


@pytest.mark.parametrize("small_disk", ["16m"], indirect=True)  # a page has its pictures in it
def test_diagnose(small_disk: Path, tmp_path: Path, small_slide: Any, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = load_encoder(ENCODER, "cpu")
    args = {"embedding": 16, "hidden": 8}
    card = HeadCard(
        head="gated_attention",
        head_args=args,
        width=encoder.width,
        threshold=0.5,
        fold=0,
        encoder=ENCODER,
        encoder_sha256=encoder.card.sha256,
        tiles=TileSettings(),
        train_slides=("a",),
        validation_slides=("b",),
    )
    save_head(tmp_path / "run" / NAME, build_head(card.head, card.width, args), card)
    for name in ("a", "b"):
        (tmp_path / f"{name}.tiff").symlink_to(small_slide.path)
    out = small_disk / "diagnosis"
    words = ["diagnose", str(tmp_path / "a.tiff"), str(tmp_path / "b.tiff"), f"--model={tmp_path / 'run'}"]
    fill_up(small_disk, [*words, f"--out={out}"], capfd, (30_000, 2_000_000))
    assert len(list(out.iterdir())) == 2 * 4 + 2, "four files a slide, and the worklist's two"
