"""`papsmear export`: the teacher for timm alone, by the code of its own model card; figures; what is refused."""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from papsmear.cli import main
from papsmear.ssl.encoder import load_encoder

PX = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """A run of two epochs of a tiny ViT, whose input size is not its architecture's own."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for slide_id in ("s1", "s2", "s3"):
        write_shards(folder / "shards", slide_id, list(rng.integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)))
    (folder / "slides.csv").write_text("slide_id,path,fold\ns1,a,0\ns2,b,0\ns3,c,1\n")
    config = Path(__file__).parents[1] / "configs/ssl/tiny.yaml"
    words = f"""fit -c {config} --data.shards={folder}/shards --data.slides={folder}/slides.csv --data.fold=1
        --data.batch_size=4 --data.workers=0 --data.crop_px={PX} --model.input_px={PX} --model.architecture=test_vit
        --model.outputs=16 --trainer.max_epochs=2 --trainer.log_every_n_steps=1
        --trainer.logger=lightning.pytorch.loggers.CSVLogger --trainer.logger.save_dir={folder}/run
        --trainer.logger.name=logs --trainer.default_root_dir={folder}/run"""
    assert main(words.split()) == 0
    return folder / "run"


def test_the_model_cards_own_code_loads_it_without_papsmear(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "tile-encoder.safetensors"
    assert main(["export", f"{run}/checkpoints/last.ckpt", f"--out={out}"]) == 0
    assert out.read_bytes() == (run / "encoder.safetensors").read_bytes(), "as the training itself exports it"

    code = re.findall(r"^    (.*)$", out.with_suffix(".md").read_text(), re.MULTILINE)
    code = [line for line in code if not line.startswith("x = ")]
    pixels = np.random.default_rng(1).integers(0, 256, (2, PX, PX, 3), dtype=np.uint8)
    torch.save(torch.from_numpy(pixels), tmp_path / "x.pt")
    lines = [
        "import sys; sys.modules['papsmear'] = None  # importing it fails",
        *code[:-1],
        "x = torch.load('x.pt').permute(0, 3, 1, 2) / 255",
        code[-1],
        "torch.save(features.detach(), 'features.pt')",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, env=environment, check=True)
    wanted = load_encoder(str(out), "cpu")(torch.from_numpy(pixels))
    torch.testing.assert_close(torch.load(tmp_path / "features.pt"), wanted, rtol=1e-4, atol=1e-5)


def test_the_model_card_tells_the_run(run: Path) -> None:
    assert main(["export", f"{run}/checkpoints/last.ckpt"]) == 0
    text = (run / "checkpoints/last.md").read_text()
    for part in (
        "`test_vit` (timm)",
        f"{PX} x {PX} px",
        "tiles at 0.5 µm/px of 2 slides",
        "| fold held out | 1 |",
        "6 steps, in 2 epochs",
        "Research use only",
        "## Licence",
    ):
        assert part in text, part
    (log,) = run.glob("logs/version_*/metrics.csv")
    last = list(csv.DictReader(log.read_text().splitlines()))[-1]
    assert f"| `train/loss` | {float(last['train/loss']):.4g} |" in text
    with safe_open(run / "checkpoints/last.safetensors", framework="pt") as file:
        assert '"train_slides": ["s1", "s2"]' in file.metadata()["encoder_card"]


def test_figures_are_those_of_the_checkpoint_and_of_the_last_start(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["callbacks"]["KnnProbe"] = {"best": 0.75, "best_epoch": 2, "cells": "herlev", "k": 20}
    logs = {
        "version_2": "step,train/loss,val/knn_f1\n3,3.5,\n5,2.5,0.625\n6,1.5,\n",
        "version_10": "step,train/loss\n5,2.25\n",
    }
    for name, text in logs.items():
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "metrics.csv").write_text(text)
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints/best-knn.ckpt")
    assert main(["export", f"{tmp_path}/checkpoints/best-knn.ckpt"]) == 0
    text = (tmp_path / "checkpoints/best-knn.md").read_text()
    assert "| `train/loss` | 2.25 |\n| `val/knn_f1` | 0.625 |\n" in text, "step 6 is of what came after"
    assert "best k-NN weighted F1 so far | 0.75 on herlev, k = 20, after epoch 2 |" in text

    alone = tmp_path / "elsewhere" / "alone" / "copied.ckpt"
    alone.parent.mkdir(parents=True)
    torch.save(checkpoint | {"callbacks": {}}, alone)
    assert main(["export", str(alone)]) == 0
    assert "The run's logs are not beside it." in alone.with_suffix(".md").read_text()


class Harm:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["HARM"],)


def test_nothing_is_unpickled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    torch.save({"state_dict": Harm()}, tmp_path / "bad.ckpt")
    assert main(["export", f"{tmp_path}/bad.ckpt"]) == 1
    assert "bad.ckpt: damaged, or no checkpoint of papsmear fit" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists()


def test_what_is_no_checkpoint_of_dino_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        status = main(["export", *words])
        return f"{status} {capsys.readouterr().err}"

    assert re.match(r"2 .*nowhere\.ckpt: no such file", said(f"{tmp_path}/nowhere.ckpt"))
    assert re.match(r"2 .*--out=x\.pth: .*ends in \.safetensors", said(f"{run}/checkpoints/last.ckpt", "--out=x.pth"))
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "mil.ckpt")
    assert re.match(r"2 .*mil\.ckpt: no checkpoint of DINO", said(f"{tmp_path}/mil.ckpt"))
    content = (run / "checkpoints/last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: len(content) // 2])
    assert re.match(r"1 .*cut\.ckpt: damaged", said(f"{tmp_path}/cut.ckpt"))
    assert not list(tmp_path.glob("*.safetensors"))
