"""Early stopping that a resumed run takes up where it was.

A small validation fold has few possible AUCs, so a run may stand at the same one for long while it still learns: what
is watched is `val/choice`, which among epochs of the same AUC follows the loss.
"""

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from papsmear.errors import UsageError


class Patience(EarlyStopping):
    """Stops after `epochs` epochs without a better figure; a run that it stopped stays so when it is resumed."""

    def __init__(self, monitor: str, mode: str, epochs: int) -> None:
        if epochs < 1:
            raise UsageError(f"model.patience={epochs}: give 1 epoch or more, or null to never stop early")
        super().__init__(monitor, mode=mode, patience=epochs, strict=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops at once where the patience was spent before."""
        trainer.should_stop = self.wait_count >= self.patience
