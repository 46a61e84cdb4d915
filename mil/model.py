"""A trained head as a file: `head.safetensors`, whose header holds all that a diagnosis needs to know of it.

The file is written by training whenever the validation figure improves, and read by `papsmear diagnose`. Loading it
never runs code from it: the header names a head of `heads.HEADS` and its settings.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from papsmear.errors import InputError, UsageError
from papsmear.files import whole
from papsmear.mil.calibration import Calibration
from papsmear.mil.heads import build_head
from papsmear.mil.provenance import Provenance
from papsmear.mil.scope import Scope
from papsmear.ssl.network import read_safetensors

NAME = "head.safetensors"


@dataclass(frozen=True)
class HeadCard(Provenance):
    """What a trained head is, what it was trained on, and where it calls a slide positive.

    `threshold` is a calibrated probability. It and the calibration (`temperature`, `prior_log_odds`) were chosen on the
    validation slides. `scope` tells which slides the head can judge; heads of papsmear 0.1 have none.
    `top_k`: of how many tiles of highest score the slide's logit is; None for all.
    """

    head: str
    head_args: dict[str, Any]
    threshold: float
    temperature: float = 1.0
    prior_log_odds: float = 0.0
    scope: Scope | None = None
    top_k: int | None = None

    @property
    def calibration(self) -> Calibration:
        """What makes a probability of the head's logit."""
        return Calibration(self.temperature, self.prior_log_odds)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """See `Provenance`."""
        scope = fields.get("scope")
        return super().from_dict(fields | {"scope": Scope.from_dict(scope) if scope else None})


@dataclass(frozen=True)
class TrainedHead:
    """A head in evaluation mode, with its card."""

    head: nn.Module
    card: HeadCard

    @torch.inference_mode()
    def judge(self, features: NDArray[np.float16]) -> tuple[float, NDArray[np.float32]]:
        """The calibrated probability that a slide with tile `features` (N, D) is positive; the tiles' scores (N,)."""
        device = next(self.head.parameters()).device
        logit, score = self.head(torch.from_numpy(features).to(device))
        log_odds = logit.double() / self.card.temperature + self.card.prior_log_odds
        return float(log_odds.sigmoid()), score.cpu().numpy()


def save_head(file: Path, head: nn.Module, card: HeadCard) -> None:
    """Writes a head and its card, whole."""
    weights = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    with whole(file) as part:
        # One entry only: safetensors writes several in random order, and equal heads are to be equal files.
        save_file(weights, part, {"head_card": json.dumps(dataclasses.asdict(card))})


def load_head(run: Path) -> TrainedHead:
    """The trained head of a run folder (or of a head.safetensors itself), on the CPU.

    Raises UsageError where there is none, InputError where the file is damaged.
    """
    file = run / NAME if run.is_dir() else run
    if not file.is_file():
        raise UsageError(f"{file}: there is no trained head; train one with lightning fit -c configs/mil.yaml")
    try:
        header, weights = read_safetensors(file)
        card = HeadCard.from_dict(json.loads(header["head_card"]))
        head = build_head(card.head, card.width, card.head_args, card.top_k)
        head.load_state_dict(weights)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{file}: not a whole trained head ({error}); train it again, or copy it again") from error
    return TrainedHead(head.eval(), card)
