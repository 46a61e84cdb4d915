"""What a head was trained on, and whether bags fit it: kept in every checkpoint, asked before one is used."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from papsmear.errors import UsageError
from papsmear.tiling.cut import TileSettings

if TYPE_CHECKING:  # a diagnosis reads a head's provenance, and should not wait for lightning
    from papsmear.mil.data import BagData


@dataclass(frozen=True)
class Provenance:
    """The bags, slides and fold of a training; encoder and tiles are None where bags of other programs do not say."""

    width: int
    fold: int
    encoder: str | None
    encoder_sha256: str | None
    tiles: TileSettings | None
    train_slides: tuple[str, ...]
    validation_slides: tuple[str, ...]

    @classmethod
    def of(cls, bags: "BagData") -> "Provenance":
        """That of a training on these bags."""
        card = bags.bag_card
        return cls(
            width=bags.width,
            fold=bags.fold,
            encoder=card.encoder if card else None,
            encoder_sha256=card.encoder_sha256 if card else None,
            tiles=card.tiles if card else None,
            train_slides=bags.ids("train"),
            validation_slides=bags.ids("validation"),
        )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        slides = {key: tuple(fields[key]) for key in ("train_slides", "validation_slides")}
        tiles = TileSettings.from_json(fields["tiles"]) if fields["tiles"] else None
        return cls(**(fields | slides | {"tiles": tiles}))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for checkpoints and headers."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def check_encoder(self, bags: "BagData") -> None:
        """A UsageError where the bags are not of the encoder that the head was trained with."""
        now = Provenance.of(bags)
        trained_with = self.encoder or "the encoder of the training"
        if self.width != now.width:
            raise UsageError(
                f"{bags.features}: bags of width {now.width}, but the head was trained on width {self.width}: "
                f"they come from an encoder of another width than the bags of the training; embed with {trained_with}"
            )
        both = self.encoder_sha256 and now.encoder_sha256
        if both and self.encoder_sha256 != now.encoder_sha256:
            raise UsageError(
                f"{bags.features}: bags of encoder {now.encoder} (checksum {now.encoder_sha256}), but the head was "
                f"trained on those of {trained_with} ({self.encoder_sha256}); embed with that one"
            )

    def check_same_slides(self, bags: "BagData") -> None:
        """A UsageError where a training would go on with other slides than it was started with."""
        if (self.train_slides, self.validation_slides) != (bags.ids("train"), bags.ids("validation")):
            raise UsageError(
                f"{bags.slides}: other slides or folds than this run was started with; give another "
                "--trainer.default_root_dir, or delete its folder"
            )

    def check_unseen(self, bags: "BagData", part: str) -> None:
        """A UsageError where the head was trained on slides of `part`; if allowed, the bags are marked as leaking."""
        seen = self.train_slides + (self.validation_slides if part == "test" else ())
        both = sorted(set(seen) & set(bags.ids(part)))
        if both and not bags.allow_leak:
            raise UsageError(
                f"data.fold={bags.fold}: the head was trained on {len(both)} of the slides to judge: {', '.join(both)}"
                f"; give data.fold={self.fold}, for which it was trained, or --data.allow_leak=true, which marks every "
                "figure"
            )
        bags.leak = bags.leak or bool(both)
