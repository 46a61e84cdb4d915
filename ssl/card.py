"""What an encoder is, in plain values: they travel in its file, with its bags and with the heads trained on them.

A card knows the slides its encoder was trained on; that is the leak guard's ground.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from papsmear.errors import UsageError

EXPORTED = "encoder.safetensors"  # the teacher, in a run's folder
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EncoderCard:
    """What an encoder is: how its input is made, what it was trained on, and the checksum of its weights.

    `mpp` is the µm/px of the tiles it was trained on, `train_slides` their slides' ids and `fold` the fold that was
    held out; None and empty where the encoder has not seen this project's slides.
    """

    name: str
    architecture: str
    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mpp: float | None = None
    train_slides: tuple[str, ...] = ()
    fold: int | None = None
    sha256: str = ""

    def to_json(self) -> str:
        """The card as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "EncoderCard":
        """The card that `to_json` wrote."""
        values = json.loads(text)
        return cls(**with_tuples(values))


def teacher_card(model: Mapping[str, Any], data: Mapping[str, Any]) -> EncoderCard:
    """The card of the teacher that DINO of the settings `model` trained on `data`, as TileData's state tells it."""
    return EncoderCard(
        name="",
        architecture=model["architecture"],
        input_px=model["input_px"],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=data["mpp"],
        train_slides=tuple(data["train_slides"]),
        fold=data["fold"],
    )


def with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples: its lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def check_leak(card: EncoderCard, test_slides: Iterable[str], allow_leak: bool = False) -> bool:
    """Whether the encoder was trained on slides that it is to be tested on; a UsageError unless that is allowed."""
    seen = sorted(set(card.train_slides) & set(test_slides))
    if seen and not allow_leak:
        raise UsageError(
            f"encoder {card.name} was trained on {len(seen)} of the slides to test on: {', '.join(seen)}; "
            f"take one that held their fold out (this one: {card.fold}), or --allow_leak=true, which marks all figures"
        )
    return bool(seen)
