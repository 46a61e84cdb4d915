"""Training in bfloat16: as good a head as in float32, the same after a resume, and judged in float32."""

import csv
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from papsmear.cli import main
from papsmear.mil.bags import read_features
from papsmear.mil.heads import HEADS, build_head
from papsmear.mil.model import load_head

N_SLIDES, N_TILES, WIDTH = 96, 40, 16
Fit = Callable[..., Path]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of four folds; four tiles of each positive one are shifted, so little that some slides are missed."""
    folder = tmp_path_factory.mktemp("precision")
    random = np.random.default_rng(0)
    centre, rows = 20 * random.normal(size=WIDTH), ["slide_id,path,label,fold"]
    (folder / "features").mkdir()
    for i in range(N_SLIDES):
        label = i // 4 % 2
        tiles = random.normal(size=(N_TILES, WIDTH))
        tiles[:4, 3] += 2.5 * label
        with h5py.File(folder / "features" / f"s{i}.h5", "w") as h5:
            h5["features"] = (0.1 * tiles + centre).astype(np.float32)
            h5["coords"] = np.zeros((N_TILES, 2))
        rows.append(f"s{i},s{i}.svs,{label},{i % 4}")
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def fit(cohort: Path, root: Path) -> Fit:
    """Trains and tests in a folder of its own, up to each number of epochs in turn; the folder."""

    def run(precision: str, *epochs: int) -> Path:
        out = cohort / f"{precision}-{epochs}"
        words = [f"-c={root / 'configs' / 'mil.yaml'}", f"--data.features={cohort / 'features'}"]
        words += [f"--data.slides={cohort / 'slides.csv'}", f"--trainer.default_root_dir={out}", "--model.lr=1e-3"]
        words += ["--trainer.accelerator=cpu", "--trainer.logger=false", f"--trainer.precision={precision}"]
        for end in epochs:
            assert main(["fit", *words, f"--trainer.max_epochs={end}"]) == 0
        assert main(["test", *words]) == 0
        return out

    return run


@pytest.fixture(scope="module")
def in_bf16(fit: Fit) -> Path:
    """A run in bfloat16."""
    return fit("bf16-mixed", 8)


def judged(run: Path) -> tuple[np.ndarray, np.ndarray]:
    with (run / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    return np.array([int(row["label"]) for row in rows]), np.array([float(row["logit"]) for row in rows])


def test_the_auc_is_that_of_training_in_float32(in_bf16: Path, fit: Fit) -> None:
    labels, logits = judged(in_bf16)
    same_labels, wanted = judged(fit("32-true", 8))
    assert len(labels) == N_SLIDES // 4
    np.testing.assert_array_equal(labels, same_labels)
    assert not np.array_equal(logits, wanted)  # or nothing was trained in bfloat16
    auc = roc_auc_score(labels, wanted)
    assert 0.8 < auc < 1
    assert roc_auc_score(labels, logits) == pytest.approx(auc, abs=0.02)
    assert np.corrcoef(logits, wanted)[0, 1] > 0.99


def test_a_run_in_bfloat16_that_was_stopped_ends_with_the_same_weights(in_bf16: Path, fit: Fit) -> None:
    stopped = fit("bf16-mixed", 3, 8)
    a, b = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (in_bf16, stopped)
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(value.dtype == torch.float32 for value in a.values())


def test_slides_are_judged_in_float32_as_by_a_diagnosis(in_bf16: Path, cohort: Path) -> None:
    head = load_head(in_bf16)
    with (in_bf16 / "test.csv").open() as file:
        for row in csv.DictReader(file):
            probability, _ = head.judge(read_features(cohort / "features" / f"{row['slide_id']}.h5"))
            assert float(row["probability"]) == pytest.approx(probability, abs=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_nearly_the_same_losses_in_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    head = build_head(name, WIDTH, {"rearrange": 0.0} if name.startswith("recurrent") else {})
    bags = torch.randn(26, WIDTH).split((5, 1, 20))
    found = {}
    for enabled in (False, True):
        head.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found[enabled] = head.losses(bags, torch.tensor([1, 0, 1]), lambda logits, labels: logits.float())
        found[enabled].sum().backward()
    assert not torch.equal(found[True], found[False])
    torch.testing.assert_close(found[True], found[False], atol=0.05, rtol=0.05)
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)
