"""A run that was stopped goes on where it was, within an epoch too, bit for bit as if it had not been stopped.

Nothing random may remember: order, views and dropout depend on the seed and the position only, and the loader, whose
`state_dict` says how many batches it has given, starts at the next. So `checkpoints/last.ckpt`, which the end of each
epoch writes, can be written within an epoch: every so often, and at once when SIGUSR1 (SLURM's warning before the time
limit) or SIGTERM (its preemption) comes. A run whose loader has no `state_dict`, as that of MIL, whose epochs are
short, goes on from the end of the last epoch.

On more than two ranks the sum of their gradients depends on their order, and DDP orders them anew after its first step:
there it is bit for bit with `--trainer.strategy=ddp_find_unused_parameters_true`, which keeps the first order.
"""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from papsmear.errors import StoppedError
from papsmear.signals import listen, told

LAST = Path("checkpoints", "last.ckpt")


class Resume(Callback):
    """Writes checkpoints within an epoch, and stops the run when it is told to."""

    def __init__(self, minutes: float = 30.0) -> None:
        """Takes how much may be lost.

        Args:
            minutes: Between two checkpoints within an epoch: the most that is done again after a crash.
        """
        self.minutes = minutes
        self._saved = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens in the place of Lightning, which would talk to the other ranks whatever they are about."""
        listen()
        self._saved = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Between two epochs, after the checkpoint of the first, it is time to stop too."""
        self._saved = time.monotonic()
        _stop_if_told(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves, and stops, where one rank is told to, or the time has come by the clock of the first."""
        loop = trainer.fit_loop.epoch_loop
        if loop.batch_progress.is_last_batch or loop._should_accumulate():
            return  # the end of the epoch saves; what is gathered of a step would be lost
        due = trainer.is_global_zero and time.monotonic() - self._saved >= 60 * self.minutes
        if not _any_rank(trainer, due or bool(told)):
            return
        if hasattr(trainer.train_dataloader, "state_dict"):
            trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST)
        self._saved = time.monotonic()
        _stop_if_told(trainer)


def _any_rank(trainer: Trainer, says: bool) -> bool:
    return bool(trainer.strategy.reduce_boolean_decision(says, all=False))


def _stop_if_told(trainer: Trainer) -> None:
    """Ends all ranks where one was told to; the first says so by its exit status, for srun gives the highest."""
    if not _any_rank(trainer, bool(told)):
        return
    if not trainer.is_global_zero:
        raise SystemExit(0)
    raise StoppedError(
        f"{trainer.default_root_dir}: stopped by {told[0] if told else 'a signal to another process'} at step "
        f"{trainer.global_step}; start the command again: it goes on from there"
    )
