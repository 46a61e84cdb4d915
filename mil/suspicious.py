"""Labelled tiles made of unlabelled ones: cells pasted on the tiles that a head finds most suspicious.

C3P with the Poisson solver (`papsmear.probes.pasting`), on canvases of the study: hard negatives, the ten tiles of
highest score of each negative slide, and confident positives, those of each positive slide. A tile of a positive slide
always gets a positive cell; one of a negative slide gets a negative cell or, half of the times, stays as it is. The
tiles are embedded as the bags were, by the same frozen encoder.

D: width of the features. T: tiles.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from papsmear import seeds
from papsmear.cohort import Slide
from papsmear.errors import InputError, UsageError
from papsmear.files import sha256
from papsmear.mil.bags import BagCard, read_attribute
from papsmear.mil.head import Standardised
from papsmear.mil.shelf import Shelf
from papsmear.mil.tiles import LabelledTiles
from papsmear.probes.canvases import JpegTiles
from papsmear.probes.datasets import read_cells
from papsmear.probes.labelled import LabelledCell, by_side, labelled_cells
from papsmear.probes.pasting import Pasting, Tile
from papsmear.probes.sources import SetSource
from papsmear.ssl.encoder import Encoder, embed_images, load_encoder
from papsmear.ssl.tiles import find_shards, read_index
from papsmear.tiling.shards import read_slide_json

if TYPE_CHECKING:
    from papsmear.mil.data import BagData

TOP = 10  # tiles of a slide

Chosen = dict[str, list[int]]  # by the slide's id the rows of its bag, which are its tiles in the order of its shards


@dataclass(frozen=True)
class Canvases:
    """The tiles of the training slides, with all that makes labelled ones of them."""

    shelf: Shelf
    shards: Path
    slides: Sequence[Slide]
    pasting: Pasting
    encoder: Encoder
    seed: int

    @classmethod
    def of(cls, bags: "BagData", seed: int) -> "Canvases | None":
        """Those of the training slides, None where no cells are given; a UsageError where something does not fit."""
        if not bags.single_cells:
            return None
        if bags.shards is None:
            raise UsageError("data.cells: cells are pasted on tiles; give their shards too, in data.shards")
        if bags.bag_card is None:
            raise UsageError(
                f"{bags.features}: the bags do not name their encoder, which pasted tiles must go through; make them "
                "with papsmear embed"
            )
        slides = bags.parts["train"]
        for slide in slides:
            _check_same_tiles(bags.shelf.file(slide.slide_id), bags.shards / slide.slide_id)
        pasting = Pasting(_cells(bags.single_cells, bags.bag_card.tiles.mpp, set(bags.ids("train"))))
        return cls(bags.shelf, bags.shards, slides, pasting, _encoder(bags.bag_card, bags.features), seed)

    @torch.no_grad()
    def collect(self, head: Standardised) -> Chosen:
        """The tiles of highest score of each slide, by the head in evaluation; of equal scores the first."""
        training = head.training
        head.eval()
        chosen = {}
        for slide in self.slides:
            features = torch.from_numpy(self.shelf.features(slide.slide_id))  # (N, D)
            _, score = head(features.to(head.mean.device))  # (N,)
            best = score.argsort(descending=True, stable=True)[:TOP]
            chosen[slide.slide_id] = sorted(best.tolist())
        head.train(training)
        return chosen

    def paste(self, chosen: Chosen, epoch: int) -> LabelledTiles:
        """The labelled tiles (T) that `chosen` ones become; the cells and their places are the epoch's."""
        labels = [float(slide.label or 0) for slide in self.slides for _ in chosen[slide.slide_id]]
        features = embed_images(self.encoder, self.tiles(chosen, epoch)).astype(np.float16)  # (T, D)
        return LabelledTiles(torch.from_numpy(features), torch.tensor(labels))

    def tiles(self, chosen: Chosen, epoch: int) -> Iterator[Tile]:
        """The same as pixels (H, W, 3)."""
        for slide in self.slides:
            rows = chosen[slide.slide_id]
            for row, canvas in zip(rows, _read(self.shards / slide.slide_id, rows), strict=True):
                yield self.pasting(canvas, slide.label or 0, seeds.rng(self.seed, "paste", epoch, slide.slide_id, row))


def _read(folder: Path, rows: Sequence[int]) -> JpegTiles:
    """The tiles of a slide at `rows`, counted through its shards."""
    found = find_shards(folder, read_slide_json(folder))
    starts = np.cumsum([0, *(shard.n_tiles for shard in found)])
    jpegs = []
    for shard, start, end in zip(found, starts, starts[1:], strict=False):
        within = [row - start for row in rows if start <= row < end]
        if within:
            with shard.path.open("rb") as file:
                for offset, size in read_index(shard)[within]:
                    file.seek(offset)
                    jpegs.append(file.read(size))
    return JpegTiles(jpegs)


def _check_same_tiles(bag: Path, folder: Path) -> None:
    file = folder / "slide.json"
    if not file.is_file():
        raise UsageError(f"{folder}: no shards of this slide; give the shards that the bags were embedded from")
    if read_attribute(bag, "slide_json_sha256") != sha256(file):
        raise UsageError(f"{folder}: not the tiles that {bag} was embedded from; embed them again")


def _encoder(card: BagCard, features: Path) -> Encoder:
    encoder = load_encoder(card.encoder)
    if encoder.card.sha256 != card.encoder_sha256:
        raise UsageError(
            f"{features}: bags of encoder {card.encoder} (checksum {card.encoder_sha256[:12]}), which is another now "
            f"({encoder.card.sha256[:12]}); embed again"
        )
    return encoder


def _cells(sources: Mapping[str, SetSource | Path], mpp: float, train: set[str]) -> tuple[LabelledCell, ...]:
    """The cells to paste, of both sides; a UsageError where some are of slides that the head is not to see."""
    sets = [read_cells(name, source) for name, source in sources.items()]
    if others := sorted({slide_id for cells in sets for slide_id in cells.slides} - train):
        raise UsageError(
            f"data.cells: cells of {len(others)} slides that are not trained on: {', '.join(others)}; give only cells "
            "of the training folds, or of public sets"
        )
    found = tuple(cell for cells in sets for cell in labelled_cells(cells, mpp, masked=True).cells)
    for label, side in ((1, "positive"), (0, "negative")):
        if not by_side(found, label):
            raise InputError(f"data.cells: no {side} cells in {', '.join(sources)}; it takes both sides")
    return found
