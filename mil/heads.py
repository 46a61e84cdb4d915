"""The heads by name: what `model.head` of configs/mil.yaml chooses from.

Each is a `papsmear.mil.head.Head`. Adding one is a class and a line in `HEADS`.
"""

from typing import Any

from papsmear.errors import UsageError
from papsmear.mil.clam import ClamMB, ClamSB
from papsmear.mil.dsmil import DSMIL
from papsmear.mil.head import Head, Standardised
from papsmear.mil.pooling import Attention, GatedAttention, Max, Mean
from papsmear.mil.recurrent import Recurrent, RecurrentEnsemble
from papsmear.mil.topk import TopK
from papsmear.mil.transmil import TransMIL, TransMILUnordered

HEADS: dict[str, type[Head]] = {
    "gated_attention": GatedAttention,
    "attention": Attention,
    "mean": Mean,
    "max": Max,
    "clam_sb": ClamSB,
    "clam_mb": ClamMB,
    "dsmil": DSMIL,
    "transmil": TransMIL,
    "transmil_unordered": TransMILUnordered,
    "recurrent": Recurrent,
    "recurrent_ensemble": RecurrentEnsemble,
}


def build_head(name: str, width: int, settings: dict[str, Any], top_k: int | None = None) -> Standardised:
    """The head called `name` for features of `width`, on all tiles or the `top_k` of highest score.

    Raises UsageError where there is no such head or setting.
    """
    if name not in HEADS:
        raise UsageError(f"head {name!r}: there is no such head; choose one of {', '.join(HEADS)}")
    try:
        head = HEADS[name](width, **settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"head {name}: head_args {settings} do not fit: {error}") from error
    return Standardised(head if top_k is None else TopK(head, top_k), width)
