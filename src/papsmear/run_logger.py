"""The W&B run of a training, the same one at each start, or of a test; begun by `start_run` as all commands do."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch.loggers import WandbLogger

from papsmear.signals import unless_told
from papsmear.tracking import start_run


class RunLogger(WandbLogger):
    """Lightning's, on a run whose files lie in `folder`; that of the job `fit` goes on where it was stopped."""

    def __init__(self, folder: Path, job: str) -> None:
        super().__init__(save_dir=str(folder))
        self.folder, self.job = folder, job

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun when first asked for, on the first of several processes only."""
        if self._experiment is None:
            self._experiment = start_run(self.folder, self.job, self.folder.name, {}, goes_on=self.job == "fit")
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Logs by the run's own step: a run that goes on continues the count, and says nothing twice."""
        with unless_told():
            self.experiment.log({**metrics, "trainer/global_step": step}, step=step)


def end_run(exit_code: int) -> None:
    """Ends the run, if there is one, and after a failure the service too.

    That may be gone, by the same signal, or hold on to the id of a run that it could not begin.
    """
    try:
        with unless_told():
            wandb.finish(exit_code=exit_code)
    finally:
        if exit_code:
            with suppress(Exception, SystemExit):
                wandb.teardown()
