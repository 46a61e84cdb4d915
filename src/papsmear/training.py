"""`lightning fit | validate | test | predict`: LightningCLI, with what every run of ours has.

A run is a folder, `trainer.default_root_dir`:

    config.yaml            what it was started with
    checkpoints/last.ckpt  where `fit` goes on when the same command is started again (papsmear.resume)
    checkpoints/best.ckpt  what `validate`, `test` and `predict` take, for modules with a `monitor`
    logs/version_N/metrics.csv   every figure that `fit` logged; one version a start
    wandb/                 the W&B runs of `fit`, the same one at each start, and of `test`; offline without a login

A module asks for the best checkpoint by a class attribute `monitor = ("val/auc", "max")`.
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from papsmear.errors import PapsmearError, UsageError, causes
from papsmear.files import disk_full, whole, write_text
from papsmear.memory import keep_freed_memory
from papsmear.progress import console, say
from papsmear.resume import LAST, Resume
from papsmear.run_logger import RunLogger, end_run
from papsmear.tracking import wandb_mode

# What may differ between a run's first start and the next: it does not change what is learnt.
FREE_KEYS = ("workers", "cache", "allow_leak", "keep_gib")

# Advice of libraries that does not hold here, or that our users can do nothing about.
HARMLESS = (
    ".*does not have many workers.*",  # a choice made in the configuration
    ".*is smaller than the logging interval.*",  # small cohorts are usual
    ".*LightningCLI's args parameter is intended.*",  # our main() owns sys.argv
    ".*`srun` command is available.*",  # not every run on a login node is a job
    ".*callbacks used to create the checkpoint.*",  # test needs none of them
    ".*Checkpoint directory .* exists and is not empty.*",  # a run that goes on
    ".*LeafSpec.*is deprecated.*",  # lightning's own use of torch
)


def prepare() -> None:
    """What comes before any use of the command line of lightning: the mode of W&B, and less talk."""
    os.environ.setdefault("WANDB_MODE", wandb_mode())
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # lightning's own use of jsonargparse
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)


def train(words: Sequence[str]) -> int:
    """Runs one of fit, validate, test, predict with the words that follow it."""
    prepare()
    keep_freed_memory()
    try:
        PapsmearCLI(
            args=list(words),
            parser_kwargs={"parser_mode": "omegaconf", "prog": "lightning"},
            save_config_callback=SaveRunConfig,
            load_from_checkpoint_support=False,
        )
    except PapsmearError as error:
        # A DataLoader hands over its worker's error with the worker's traceback as the message.
        raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2]) from error
    return 0


class PapsmearCLI(LightningCLI):
    """LightningCLI whose runs log, keep checkpoints and go on by themselves."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without its own table of figures: our modules print theirs."""
        return {name: skip | {"verbose"} for name, skip in LightningCLI.subcommands().items()}

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; jsonargparse wraps what a constructor raises, so that is taken out again."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            for link in causes(error):
                if isinstance(link, PapsmearError):
                    raise link from None
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The configured trainer, with our loggers, checkpoints and progress where nothing else is asked for."""
        settings = self.config_init[self.subcommand]["trainer"]
        self.run_folder = Path(settings["default_root_dir"] or "runs/unnamed")
        kwargs["default_root_dir"] = str(self.run_folder)
        training = self.subcommand == "fit"
        if training:
            self._refuse_other_settings()
        else:
            kwargs["enable_checkpointing"] = False
        if settings["logger"] in (None, True):
            kwargs["logger"] = (
                _loggers(self.run_folder, self.subcommand) if self.subcommand in ("fit", "test") else False
            )
        if settings["enable_progress_bar"] is None:
            kwargs["enable_progress_bar"] = console.is_terminal
        if settings["enable_model_summary"] is None:
            kwargs["enable_model_summary"] = console.is_terminal
        if settings["plugins"] is None:
            kwargs["plugins"] = [WholeCheckpoints()]
        callbacks = list(settings["callbacks"] or [])
        if training and not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
            callbacks += _checkpoints(self.run_folder, getattr(self.model, "monitor", None))
        if training and not any(isinstance(callback, Resume) for callback in callbacks):
            callbacks.append(Resume())
        if kwargs.get("enable_progress_bar", settings["enable_progress_bar"]):
            callbacks.append(RichProgressBar())
        elif training:
            callbacks.append(EpochLines())
        return super().instantiate_trainer(**kwargs, callbacks=callbacks)

    def _run_subcommand(self, subcommand: str) -> None:
        """As Lightning's; then the W&B run ends. Where a log finds the disk full, the run folder is named."""
        try:
            try:
                super()._run_subcommand(subcommand)
            finally:
                end_run(exit_code=int(sys.exc_info()[0] is not None))
        except Exception as error:
            code = disk_full(error)
            if code is None or (isinstance(error, OSError) and error.filename):
                raise
            raise OSError(code, os.strerror(code), str(self.run_folder)) from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        if kwargs.get("ckpt_path") is None:
            kwargs["ckpt_path"] = self._checkpoint(subcommand)
        elif not Path(kwargs["ckpt_path"]).is_file() and kwargs["ckpt_path"] not in ("best", "last"):
            raise UsageError(f"--ckpt_path={kwargs['ckpt_path']}: there is no such checkpoint")
        return kwargs

    def _checkpoint(self, subcommand: str) -> str | None:
        """Fit goes on from the last checkpoint if there is one; the others take the best or else the last."""
        folder = self.run_folder / "checkpoints"
        names = ("last",) if subcommand == "fit" else ("best", "last")
        for name in names:
            if (folder / f"{name}.ckpt").is_file():
                if subcommand == "fit":
                    say(f"going on from {folder / name}.ckpt")
                return str(folder / f"{name}.ckpt")
        if subcommand == "fit":
            return None
        raise UsageError(
            f"{folder}: holds no checkpoint to {subcommand}; run `lightning fit` with the same configuration first,"
            " or give --ckpt_path"
        )

    def _refuse_other_settings(self) -> None:
        """A run folder goes on only with what it was started with; else two settings would mix in one model."""
        file = self.run_folder / "config.yaml"
        if not (self.run_folder / LAST).is_file() or not file.is_file():
            return
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        now = yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_none=False))
        flat_before, flat_now = _flat(before), _flat(now)
        changed = [
            f"{key}: {flat_before.get(key)} is now {flat_now.get(key)}"
            for key in sorted(flat_before.keys() | flat_now.keys())
            if key.startswith(("model.", "data.", "seed_everything"))
            and key.rpartition(".")[2] not in FREE_KEYS
            and flat_before.get(key) != flat_now.get(key)
        ]
        if changed:
            raise UsageError(
                f"{self.run_folder}: holds a run with other settings ({'; '.join(changed)}); give another"
                " --trainer.default_root_dir, or delete that folder"
            )


class SaveRunConfig(SaveConfigCallback):
    """Writes config.yaml into the run folder when fitting; a later test or predict leaves it alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves the configuration, whole, before the first step."""
        if stage == "fit" and trainer.is_global_zero:
            text = self.parser.dump(self.config, skip_none=False)
            write_text(Path(trainer.default_root_dir) / self.config_filename, text)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear only when whole; Lightning's own are copied into place from the temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint over the one before, or leaves that as it is."""
        with whole(Path(path)) as part, part.open("wb") as file:
            torch.save(checkpoint, file)


class EpochLines(Callback):
    """One line an epoch where there is no terminal to draw a bar on, such as a SLURM log."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says the epoch and the figures that the progress bar would show."""
        if trainer.is_global_zero:
            figures = " ".join(f"{k}={float(v):.4g}" for k, v in trainer.progress_bar_metrics.items())
            say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} {figures}")


def _loggers(run_folder: Path, job: str) -> list[Any]:
    run_folder.mkdir(parents=True, exist_ok=True)
    to_wandb = RunLogger(run_folder, job)
    return [CSVLogger(str(run_folder), name="logs"), to_wandb] if job == "fit" else [to_wandb]


def _checkpoints(run_folder: Path, monitor: tuple[str, str] | None) -> list[ModelCheckpoint]:
    common: dict[str, Any] = {"dirpath": str(run_folder / "checkpoints"), "enable_version_counter": False}
    kept = [ModelCheckpoint(**common, filename="last", save_on_train_epoch_end=True)]
    if monitor is not None:
        kept.append(ModelCheckpoint(**common, filename="best", monitor=monitor[0], mode=monitor[1]))
    return kept


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, child in tree.items() for key, value in _flat(child, f"{prefix}{name}.").items()}
