"""`papsmear diagnose`: from slide files to diagnoses, the tiles never touching the disk.

The route is that of the shards and the bags, without them: the same tiles as the same JPEG bytes, the same encoder,
the features rounded to the same half precision, the same head. So a slide's probability is the one that
`lightning test` would give it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from papsmear.errors import InputError, PapsmearError, UsageError
from papsmear.files import sha256
from papsmear.mil.diagnosis import Diagnosis, write_diagnosis
from papsmear.mil.embed import embed_tiles
from papsmear.mil.model import NAME, TrainedHead, load_head
from papsmear.progress import say, track
from papsmear.ssl.encoder import Encoder, load_encoder
from papsmear.tiling.cut import TileSettings, iter_tiles, plan
from papsmear.tiling.deposit import Area
from papsmear.tiling.planes import Planes, open_planes


def diagnose(
    slides: list[Path],
    model: Path,
    out: Path = Path("diagnosis"),
    encoder: str | None = None,
    area: Area | None = None,
    mpp: float | None = None,
) -> int:
    """Diagnoses slides with a trained MIL model.

    For each slide writes to the output folder: <slide_id>.html, the page to read, with the ten tiles of the
    highest score at 40x and the heat map; <slide_id>.json; <slide_id>.geojson, the tiles for QuPath; and
    <slide_id>-heatmap.jpg. The slide_id is the file's name without its ending. Research use only.

    Args:
        slides: Slide files; for DICOM the folder of a slide.
        model: The run folder that `lightning fit -c configs/mil.yaml` made.
        out: Folder for the results.
        encoder: Where the encoder is now, if it is no longer where it was when the model was trained.
        area: What to read: the round cell deposit of a liquid-based preparation, all tissue, or all of the slide. Not
            given, it is what the model was trained on; all else of the tiles always is.
        mpp: µm per pixel of level 0, for slides whose files do not say.

    Returns:
        0, or 1 where a slide failed; the others are done nonetheless.
    """
    path_of = _slide_ids(slides)
    diagnoser = load_diagnoser(model, encoder, area)
    failures = []
    for slide_id, path in track(path_of.items(), "diagnose", total=len(path_of)):
        try:
            with open_planes(path, None, mpp, diagnoser.tiles.reader) as planes:
                diagnosis = diagnoser.diagnose(slide_id, planes)
                write_diagnosis(out, diagnosis, planes.middle)
        except PapsmearError as error:
            failures.append(f"{slide_id}: {error}")
            continue
        say(f"{slide_id}: {diagnosis.probability:.3f}, {diagnosis.decision}: {out / f'{slide_id}.html'}")
    for failure in failures:
        say(f"failed: {failure}")
    return 1 if failures else 0


@dataclass(frozen=True)
class Diagnoser:
    """A head, the encoder that made the bags it was trained on, and the tiles that both expect."""

    head: TrainedHead
    encoder: Encoder
    tiles: TileSettings
    names: dict[str, dict[str, str]]

    def diagnose(self, slide_id: str, planes: Planes) -> Diagnosis:
        """The diagnosis of an open slide; InputError where no tile can be made of it, or no score is finite."""
        reader = planes.middle
        planned = plan(reader, self.tiles)
        pairs = ((tile.xy_level0, tile.jpeg) for tile in iter_tiles(planes, self.tiles, planned))
        features, xy_level0 = embed_tiles(self.encoder, pairs)  # (N, D), (N, 2)
        probability, scores = self.head.judge(features)
        if not (np.isfinite(probability) and np.isfinite(scores).all()):
            raise InputError("the head gives scores that are not finite; train it again")
        knew = {"encoder": self.encoder.card.train_slides, "head": self.head.card.train_slides}
        return Diagnosis(
            slide_id=slide_id,
            probability=probability,
            operating_point=self.head.card.threshold,
            size_level0=reader.size_level0,
            mpp=reader.mpp,
            tile_size_px=self.tiles.size_px,
            tile_mpp=self.tiles.mpp,
            tile_size_level0=planned.size_level0,
            xy_level0=xy_level0,
            scores=scores,
            model=self.names,
            seen=tuple(part for part, slides in knew.items() if slide_id in slides),
        )


def load_diagnoser(model: Path, encoder: str | None = None, area: Area | None = None) -> Diagnoser:
    """Loads a run's head and its encoder; UsageError where they do not belong together.

    Args:
        model: The run folder of the head.
        encoder: Name or file of the encoder; None takes the name that the head's card gives.
        area: What of a slide to read; None takes what the training slides were tiled by.
    """
    head = load_head(model)
    card = head.card
    if card.encoder is None or card.encoder_sha256 is None or card.tiles is None:
        raise UsageError(
            f"{model}: its head was trained on bags that do not say which encoder and tiles made them, so slides cannot"
            " be read the same way; train it on bags of papsmear embed"
        )
    try:
        network = load_encoder(encoder or card.encoder)
    except UsageError as error:
        if encoder is not None:
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
            f" with ({card.encoder}, {card.encoder_sha256[:12]}); give that one with --encoder"
        )
    return Diagnoser(
        head=head,
        encoder=network,
        tiles=replace(card.tiles, area=area or card.tiles.area),
        names={
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


def _slide_ids(slides: Sequence[Path]) -> dict[str, Path]:
    """The path of each slide by its id; UsageError for files that are missing or share an id."""
    path_of: dict[str, Path] = {}
    problems = []
    for path in slides:
        name = path.resolve().name if path.is_dir() else path.stem
        slide_id = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "slide"
        if not path.exists():
            problems.append(f"{path}: no such file or folder")
        elif slide_id in path_of:
            problems.append(f"{path} and {path_of[slide_id]} would both be slide {slide_id!r}; rename one of them")
        path_of[slide_id] = path
    if problems:
        raise UsageError("; ".join(problems))
    return path_of
