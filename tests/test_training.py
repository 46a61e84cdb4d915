"""`lightning fit | test` as our CLI runs them, on a module small enough to know the right weights."""

from pathlib import Path

import pytest
import torch

from papsmear.cli import main

MODULE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset

from papsmear.errors import InputError, UsageError


class Points(Dataset):
    def __init__(self, broken):
        self.broken = broken

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if self.broken and index == 5:
            raise InputError("shards/a.tar: cut short; tile the slide again")
        return torch.tensor([1.0, index / 8])


class Line(LightningModule):
    monitor = ("val/loss", "min")

    def __init__(self, lr: float = 0.1):
        super().__init__()
        if lr < 0:
            raise UsageError(f"model.lr={lr}: give one from 0 on")
        self.line, self.lr = torch.nn.Linear(2, 1), lr

    def training_step(self, batch, index):
        loss = (self.line(batch) - 1).pow(2).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", (self.line(batch) - 1).pow(2).mean())

    def test_step(self, batch, index):
        self.log("test/loss", (self.line(batch) - 1).pow(2).mean())

    def on_test_epoch_end(self):
        print("all our own")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class PointData(LightningDataModule):
    def __init__(self, broken: bool = False, workers: int = 0):
        super().__init__()
        if workers > 1:
            raise InputError(f"data.workers={workers}: only 1 will run here")
        self.broken, self.workers = broken, workers

    def train_dataloader(self):
        return DataLoader(Points(self.broken), batch_size=4, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(Points(False), batch_size=4)

    test_dataloader = val_dataloader
"""


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a training command on a module that only this test knows; `fit(run, *words)`. Logs only where asked to."""
    name = f"line_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "line.yaml"
    config.write_text(
        f"seed_everything: 1\ntrainer: {{max_epochs: 4, accelerator: cpu}}\n"
        f"model: {{class_path: {name}.Line}}\ndata: {{class_path: {name}.PointData}}\n"
    )

    def run(folder: str, *words: str, command: str = "fit", logger: str = "false") -> int:
        trainer = [f"--trainer.default_root_dir={tmp_path / folder}", f"--trainer.logger={logger}"]
        return main([command, "-c", str(config), *trainer, *words])

    return run


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_a_run_that_is_started_again_ends_with_the_weights_of_one_that_never_stopped(fit, tmp_path, capfd):
    assert fit("whole", logger="true") == 0
    assert fit("parts", "--trainer.max_epochs=2", logger="true") == 0
    assert fit("parts", logger="true") == 0
    whole = weights(tmp_path / "whole/checkpoints/last.ckpt")
    for name, weight in weights(tmp_path / "parts/checkpoints/last.ckpt").items():
        assert torch.equal(weight, whole[name])
    assert (tmp_path / "whole/config.yaml").is_file()
    assert len(list((tmp_path / "parts/logs").glob("version_*/metrics.csv"))) == 2
    assert list((tmp_path / "whole/wandb").glob("offline-run-*/*.wandb"))
    assert "wandb" not in capfd.readouterr().err


def test_a_run_folder_goes_on_only_with_its_own_settings(fit, tmp_path, capsys):
    assert fit("run", "--trainer.max_epochs=1") == 0
    assert fit("run", "--model.lr=0.5") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model.init_args.lr: 0.1 is now 0.5" in error
    assert "default_root_dir" in error
    assert fit("run", "--data.workers=1", "--trainer.max_epochs=1") == 0, "workers do not change what is learnt"


def test_test_takes_the_best_checkpoint_and_says_where_there_is_none(fit, tmp_path, capsys):
    assert fit("run", command="test") == 2
    assert "lightning fit" in capsys.readouterr().err
    assert fit("run") == 0
    config = (tmp_path / "run/config.yaml").read_bytes()
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert fit("run", command="test") == 0
    assert capsys.readouterr().out == "all our own\n", "Lightning's own table does not repeat the figures"
    assert best["epoch"] <= 3
    assert (tmp_path / "run/config.yaml").read_bytes() == config
    assert fit("run", "--ckpt_path=nowhere.ckpt", command="test") == 2
    assert "nowhere.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_from_the_data_is_one_line_wherever_it_arose(fit, capsys, workers):
    assert fit("run", "--data.broken=true", f"--data.workers={workers}") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1] == "papsmear fit: error: shards/a.tar: cut short; tile the slide again"
    assert not any("Traceback" in line for line in lines)


def test_a_run_that_goes_on_remembers_its_best_epoch(fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a relative run folder, as users give it
    diverging = "--model.lr=1.6"
    assert fit("whole", diverging) == 0
    assert fit("parts", diverging, "--trainer.max_epochs=2", "--trainer.default_root_dir=parts") == 0
    assert fit("parts", diverging, "--trainer.default_root_dir=parts") == 0
    best = [torch.load(tmp_path / run / "checkpoints/best.ckpt", weights_only=True) for run in ("whole", "parts")]
    assert best[0]["epoch"] == best[1]["epoch"] < 2


@pytest.mark.parametrize(
    ("word", "status", "said"),
    [
        ("--model.lr=-2", 2, "model.lr=-2.0: give one from 0 on"),
        ("--data.workers=2", 1, "data.workers=2: only 1 will run here"),
    ],
)
def test_an_error_from_a_constructor_is_one_line(fit, capsys, word, status, said):
    assert fit("run", word) == status
    assert capsys.readouterr().err.splitlines()[-1:] == [f"papsmear fit: error: {said}"]
