"""A head, its encoder and the tiles that both expect, as one thing that turns an open slide into a diagnosis.

    a thread: read → JPEG tiles ─▶ threads: decode ─▶ encoder, in batches ─▶ features ─▶ head

The route is that of the shards and the bags, without them: the same tiles as the same JPEG bytes, the same encoder,
the features rounded to the same half precision, the same head. So a slide's probability is the one that
`lightning test` would give it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from papsmear.errors import InputError, UsageError
from papsmear.files import sha256
from papsmear.mil.ahead import Ahead
from papsmear.mil.colour import ColourCounts
from papsmear.mil.diagnosis import Diagnosis
from papsmear.mil.embed import XY, embed_tiles
from papsmear.mil.model import NAME, TrainedHead, load_head
from papsmear.mil.scope import Measured, distance, doubts, sharpness
from papsmear.ssl.encoder import Encoder, load_encoder
from papsmear.tiling.cut import Plan, TileSettings, iter_tiles, plan
from papsmear.tiling.deposit import Area, DepositError
from papsmear.tiling.planes import Planes

TILES_AHEAD = 512  # JPEG tiles of 320 px, some 10 MB, that are read before the encoder wants them


@dataclass(frozen=True)
class Diagnoser:
    """What a slide is judged by.

    Attributes:
        limits: What of a slide can be judged.
        model: Names and checksums of head and encoder.
    """

    head: TrainedHead
    encoder: Encoder
    tiles: TileSettings
    limits: Measured
    model: dict[str, dict[str, str]]

    def diagnose(self, slide_id: str, planes: Planes) -> Diagnosis:
        """The diagnosis of an open slide; InputError where it is damaged, or a score is not finite."""
        reader, card = planes.middle, self.head.card
        knew = {"encoder": self.encoder.card.train_slides, "head": card.train_slides}
        unseen = Diagnosis(
            slide_id=slide_id,
            operating_point=card.threshold,
            size_level0=reader.size_level0,
            mpp=reader.mpp,
            tiles=self.tiles,
            tile_size_level0=round(self.tiles.size_px * self.tiles.mpp / reader.mpp, 3),
            limits=self.limits,
            model=self.model,
            seen=tuple(part for part, slides in knew.items() if slide_id in slides),
        )
        try:
            planned = plan(reader, self.tiles)
        except DepositError as error:
            return replace(unseen, reasons=(str(error).removeprefix(f"{reader.path}: ").partition(";")[0],))
        if reasons := doubts(found := Measured(len(planned.xy_level0)), self.limits):
            return replace(unseen, measured=found, reasons=reasons)
        return self._judge(unseen, planes, planned)

    def _judge(self, unseen: Diagnosis, planes: Planes, planned: Plan) -> Diagnosis:
        focus: list[float] = []

        def read() -> Iterator[tuple[XY, bytes]]:
            for tile in iter_tiles(planes, self.tiles, planned):
                focus.append(tile.focus)
                yield tile.xy_level0, tile.jpeg

        colours = ColourCounts()
        with Ahead(read, TILES_AHEAD) as tiles:
            features, xy_level0 = embed_tiles(self.encoder, tiles, colours=colours)  # (N, D), (N, 2)
        mean, std = (getattr(self.head.head, name).cpu().numpy() for name in ("mean", "std"))  # (D,)
        n = len(features)
        found = Measured(0)
        if n:
            scope = self.head.card.scope
            light = scope.light.distance(colours.light()) if scope and scope.light else None
            stain = scope.stain.distance(colours.stain()) if scope and scope.stain else None
            found = Measured(n, sharpness(focus), distance(features, mean, std), light, stain)
        if reasons := doubts(found, self.limits):
            return replace(unseen, measured=found, reasons=reasons)
        probability, scores = self.head.judge(features)
        if not (np.isfinite(probability) and np.isfinite(scores).all()):
            raise InputError("the head gives scores that are not finite; train it again")
        return replace(unseen, measured=found, probability=probability, xy_level0=xy_level0, scores=scores)


def load_diagnoser(
    model: Path,
    encoder: str | None = None,
    area: Area | None = None,
    min_tiles: int | None = None,
    device: str | torch.device | None = None,
) -> Diagnoser:
    """Loads a run's head and its encoder; UsageError where they do not belong together.

    Args:
        model: The run folder of the head.
        encoder: Name or file of the encoder; None takes the name that the head's card gives.
        area: What of a slide to read; None takes what the training slides were tiled by.
        min_tiles: How many tiles a slide must give to be judged; None takes a tenth of what the training slides gave.
        device: Where the encoder runs; None takes a GPU if there is one.
    """
    head = load_head(model)
    card = head.card
    if card.encoder is None or card.encoder_sha256 is None or card.tiles is None:
        raise UsageError(
            f"{model}: its head was trained on bags that do not say which encoder and tiles made them, so slides cannot"
            " be read the same way; train it on bags of papsmear embed"
        )
    if min_tiles is not None and min_tiles < 1:
        raise UsageError(f"--min_tiles={min_tiles}: a slide needs at least 1 tile to be judged")
    limits = card.scope.limits() if card.scope else Measured(1)
    network = _load_encoder(encoder, head, model, device)
    return Diagnoser(
        head=head,
        encoder=network,
        tiles=replace(card.tiles, area=area or card.tiles.area),
        limits=limits if min_tiles is None else replace(limits, tiles=min_tiles),
        model={
            "head": {"name": card.head, "sha256": sha256(model / NAME if model.is_dir() else model)},
            "encoder": {
                # The file's name alone: a path would tell of the machine.
                "name": Path(network.card.name).name
                if network.card.name.endswith(".safetensors")
                else network.card.name,
                "architecture": network.card.architecture,
                "sha256": network.card.sha256,
            },
        },
    )


def _load_encoder(name: str | None, head: TrainedHead, model: Path, device: str | torch.device | None) -> Encoder:
    """The encoder that the head was trained with; UsageError where it is gone or another one."""
    card = head.card
    try:
        network = load_encoder(name or str(card.encoder), device)
    except UsageError as error:
        if name is not None:
            raise
        raise UsageError(
            f"{error} (the encoder that {model} was trained with); say with --encoder where it is now"
        ) from error
    if network.width != card.width:
        raise UsageError(
            f"encoder {network.card.name} gives {network.width} features a tile, the head in {model} takes {card.width}"
            f"; give the encoder it was trained with, {card.encoder}"
        )
    if network.card.sha256 != card.encoder_sha256:
        raise UsageError(
            f"encoder {network.card.name} (checksum {network.card.sha256[:12]}) is not the one that {model} was trained"
            f" with ({card.encoder}, {str(card.encoder_sha256)[:12]}); give that one with --encoder"
        )
    return network
