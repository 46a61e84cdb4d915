"""Labelled tiles, and what a head learns from them: the second remedy of the study, L = L_slide + λ · L_tile.

A labelled tile is a labelled slide of one tile. So L_tile is the head's own loss of bags of one tile, for every head
alike, and reaches all that the slide's loss does, but for attention: the weight of a single tile is always 1. The
labels come from annotated cells (this module), or are made by pasting cells (`papsmear.mil.suspicious`).

Stegmüller et al. 2023 (arXiv 2302.05195), as its journal version is reported by third parties. T: tiles.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from papsmear import seeds
from papsmear.errors import UsageError
from papsmear.mil.bags import read_bag, read_card
from papsmear.mil.head import Standardised
from papsmear.mil.truth import abnormal_cells, hold_a_cell

if TYPE_CHECKING:
    from papsmear.mil.data import BagData

TILES_A_STEP = 32  # half of them positive
NEGATIVES_A_SLIDE = 50  # drawn of each negative slide: thousands would say little more


@dataclass(frozen=True)
class LabelledTiles:
    """Features (T, D) of tiles of both classes, and their labels (T,), 0 or 1."""

    features: Tensor
    labels: Tensor

    def draw(self, count: int, random: np.random.Generator) -> "LabelledTiles":
        """`count` tiles, half of each class, with replacement."""
        sides = [torch.nonzero(self.labels == label).squeeze(1).numpy() for label in (1, 0)]
        chosen = torch.from_numpy(np.concatenate([random.choice(side, count // 2) for side in sides]))
        return LabelledTiles(self.features[chosen], self.labels[chosen])


def tile_loss(head: Standardised, tiles: LabelledTiles) -> Tensor:
    """L_tile (): the mean loss of the tiles, each as a slide of its own. Both classes count the same."""
    return head.losses(torch.split(tiles.features, 1), tiles.labels.long(), _cross_entropy).mean()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of tiles, any shape."""
    return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits).expand_as(logits), reduction="none")


def annotated_tiles(bags: "BagData", seed: int) -> LabelledTiles | None:
    """The tiles of the positive training slides that hold an annotated abnormal cell, and some of each negative slide.

    Other tiles of positive slides have no label: not every abnormal cell is annotated. None where slides.csv names no
    annotations of a positive training slide. Raises InputError where they cannot be read, and UsageError where they
    cannot be laid over the tiles, or none lies in one.
    """
    positive, negative = [], []
    annotated = [slide for slide in bags.parts["train"] if slide.label == 1 and slide.row.get("annotations")]
    if not annotated:
        return None
    for slide in annotated:
        file = bags.shelf.file(slide.slide_id)
        bag, card = read_bag(file), read_card(file)
        if card is None:
            raise UsageError(
                f"{file}: the bag does not say how large its tiles are, so annotations cannot be laid over them; "
                "make it with papsmear embed, or set model.tile_loss=0"
            )
        cells = abnormal_cells(bags.slides.parent / slide.row["annotations"])  # (A, 2)
        positive.append(bag.features[hold_a_cell(bag.xy_level0, card.size_level0, cells)])
    for slide in bags.parts["train"]:
        if slide.label == 0:
            features = bags.shelf.features(slide.slide_id)  # (N, D)
            drawn = seeds.rng(seed, "negative tiles", slide.slide_id).permutation(len(features))[:NEGATIVES_A_SLIDE]
            negative.append(features[np.sort(drawn)])
    found, others = np.concatenate(positive), np.concatenate(negative)
    if len(found) == 0:
        raise UsageError(
            f"{bags.slides}: no abnormal cell annotated on the {len(annotated)} positive training slides lies in one "
            "of their tiles; see that annotations and tiles are of the same slides, or set model.tile_loss=0"
        )
    labels = torch.cat((torch.ones(len(found)), torch.zeros(len(others))))
    return LabelledTiles(torch.from_numpy(np.concatenate((found, others))), labels)
