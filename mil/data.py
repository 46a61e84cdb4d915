"""The slides of one fold for MIL: bags, labels, and who is trained, validated and tested on.

Test: the slides of `fold`. Validation, which picks the epoch and the threshold: those of the next fold. Training: the
rest. Everything that cannot fit together is said in one line before the first step.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from papsmear.cohort import Slide, folds_of, read_slides
from papsmear.errors import UsageError
from papsmear.mil.bags import BagCard, bag_shape, read_card, read_encoder_card
from papsmear.mil.draws import Balance, Cell, EpochOrder, cells_of
from papsmear.mil.shelf import Shelf
from papsmear.probes.sources import SetSource
from papsmear.progress import say
from papsmear.ssl.card import check_leak

PARTS = ("train", "validation", "test")
BLOCK = 128  # tiles of which the statistics are taken at once, so that they stay in the cache


class Item(NamedTuple):
    """A slide as the module sees it: features (N, D) float16; `label` is None where it is not known."""

    slide_id: str
    features: Tensor
    label: int | None


class Bags(Dataset[Item]):
    """Slides with their bags."""

    def __init__(self, shelf: Shelf, slides: Sequence[Slide]) -> None:
        self.shelf, self.slides = shelf, slides

    def __len__(self) -> int:
        """How many slides."""
        return len(self.slides)

    def __getitem__(self, index: int) -> Item:
        """The slide at `index`; InputError where its bag is broken."""
        slide = self.slides[index]
        return Item(slide.slide_id, torch.from_numpy(self.shelf.features(slide.slide_id)), slide.label)


class BagData(L.LightningDataModule):
    """Bags and labels of one fold.

    Args:
        features: The folder of bags: of papsmear embed, CLAM or TRIDENT.
        slides: The slides.csv with labels and folds.
        fold: The fold to test on; the next one validates, the rest trains.
        batch_size: Slides a training step.
        allow_leak: Test although the encoder has seen test slides; every figure is then marked LEAK.
        balance: How slides are drawn for training. none: each once an epoch, positive ones weighted by their rarity in
            the loss. class: both classes as often. site, scanner: also each site or scanner within a class.
        keep_gib: How many GiB of bags are kept in memory; the others are read anew in each epoch.
        cells: Sets of labelled single cells, as for papsmear c3p, to paste on tiles where the model has a `tile_loss`.
        shards: The shards of the bags' tiles, to paste the cells on.
    """

    def __init__(
        self,
        features: Path,
        slides: Path,
        fold: int = 0,
        batch_size: int = 4,
        allow_leak: bool = False,
        balance: Balance = "none",
        keep_gib: float = 4,
        cells: dict[str, SetSource | Path] | None = None,
        shards: Path | None = None,
    ) -> None:
        super().__init__()
        self.features, self.slides, self.fold = features, slides, fold
        self.batch_size, self.allow_leak, self.balance = batch_size, allow_leak, balance
        self.keep_gib = keep_gib
        self.single_cells, self.shards = cells, shards
        self.seed = 0
        self.leak = False
        self.parts: dict[str, list[Slide]] = {}
        self.cells: list[Cell] = []

    def setup(self, stage: str) -> None:
        """Sorts the slides into parts and checks that all fits; `predict` takes every slide, labelled or not."""
        if self.trainer is not None and self.trainer.world_size > 1:
            raise UsageError("trainer.devices: MIL on bags trains on one device; set --trainer.devices=1")
        if self.batch_size < 1:
            raise UsageError(f"data.batch_size={self.batch_size}: a training step needs at least 1 slide")
        self.shelf = Shelf(self.features, self.keep_gib)
        slides = read_slides(self.slides, need_files=False)
        if stage == "predict":
            self.parts = {"predict": slides}
        else:
            self.parts = _parts(self.slides, slides, self.fold)
            self.cells = cells_of(self.parts["train"], self.balance)
        wanted = [slide.slide_id for part in self.parts.values() for slide in part]
        self.width = _common_width(self.shelf, wanted)
        self.bag_card = _common_card(self.shelf, wanted)
        self.encoder_card = read_encoder_card(self.shelf.folder)
        if stage != "predict":
            if self.encoder_card is not None:
                self.leak = check_leak(self.encoder_card, self.ids("test"), self.allow_leak)
            self._report(stage, slides)

    def ids(self, part: str) -> tuple[str, ...]:
        """The slide ids of a part, `train`, `validation` or `test`."""
        return tuple(slide.slide_id for slide in self.parts.get(part, ()))

    def positive_weight(self) -> float:
        """The weight of a positive slide that makes both classes count the same; 1 where `balance` has seen to that."""
        return self._negatives_a_positive() if self.balance == "none" else 1.0

    def _negatives_a_positive(self) -> float:
        labels = [slide.label for slide in self.parts["train"]]
        return labels.count(0) / labels.count(1)

    def prior_log_odds(self) -> float:
        """The log odds of a positive slide in training, which both classes counting the same leave out."""
        return -math.log(self._negatives_a_positive())

    def feature_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean (D,) and standard deviation (D,) of the training features, every slide with the same weight."""
        first, second = np.zeros(self.width), np.zeros(self.width)
        train = self.parts["train"]
        for slide in train:
            bag = torch.from_numpy(self.shelf.features(slide.slide_id))  # (N, D)
            share = 1 / len(bag) / len(train)
            for block in torch.split(bag, BLOCK):
                x = block.double()
                first += x.sum(dim=0).numpy() * share
                second += x.square_().sum(dim=0).numpy() * share
        std = np.sqrt(np.maximum(second - first**2, 0))
        std[std < 1e-6] = 1  # a feature that never changes says nothing, at any scale
        return first.astype(np.float32), std.astype(np.float32)

    def train_dataloader(self) -> DataLoader[Item]:
        """Training bags in the epoch's order."""
        slides = self.parts["train"]
        order = EpochOrder(len(slides), self.seed, self.cells)
        return self._loader("train", batch_size=self.batch_size, sampler=order)

    def val_dataloader(self) -> DataLoader[Item]:
        """Validation bags, one at a time."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[Item]:
        """Test bags, one at a time."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Item]:
        """The bags of all slides, one at a time."""
        return self._loader("predict")

    def _loader(self, part: str, **settings: Any) -> DataLoader[Item]:
        return DataLoader(Bags(self.shelf, self.parts[part]), collate_fn=list, **settings)

    def _report(self, stage: str, slides: Sequence[Slide]) -> None:
        if stage != "fit":
            return
        unlabelled = [slide.slide_id for slide in slides if slide.label is None]
        if unlabelled:
            say(f"{self.slides}: {len(unlabelled)} slides without a label are left out: {', '.join(unlabelled)}")
        if self.encoder_card is None:
            say(f"{self.features}: no encoder.json, so nobody can tell whether its encoder was trained on test slides")
        if self.leak:
            say("LEAK: the encoder was trained on slides of the test fold; every test figure is marked")


def _parts(file: Path, slides: Sequence[Slide], fold: int) -> dict[str, list[Slide]]:
    """The labelled slides by part; a UsageError where they cannot be parted, or a part lacks a class."""
    labelled = [slide for slide in slides if slide.label is not None]
    if not labelled:
        raise UsageError(f"{file}: no slide has a label; MIL needs a column `label` with 0 and 1")
    without = [slide.slide_id for slide in labelled if slide.fold is None]
    if without:
        which = "the slides have no fold" if len(without) == len(labelled) else f"no fold for {', '.join(without)}"
        raise UsageError(f"{file}: {which}; add the column with papsmear split {file}")
    folds = folds_of(file, labelled)
    if fold not in folds:
        raise UsageError(f"data.fold={fold}: {file} has the folds {', '.join(map(str, folds))}")
    if len(folds) < 3:
        raise UsageError(
            f"{file}: {len(folds)} folds; training, validation and test need 3: papsmear split {file} --folds 4"
        )
    next_fold = folds[(folds.index(fold) + 1) % len(folds)]
    part_of = {fold: "test", next_fold: "validation"}
    parts: dict[str, list[Slide]] = {part: [] for part in PARTS}
    for slide in labelled:
        parts[part_of.get(slide.fold or 0, "train")].append(slide)
    for part, members in parts.items():
        for label, name in ((1, "positive"), (0, "negative")):
            if not any(slide.label == label for slide in members):
                where = {"test": f"fold {fold}", "validation": f"fold {next_fold}", "train": "the other folds"}[part]
                raise UsageError(
                    f"{file}: {where} ({part}) has no {name} slide among {len(members)}; split again into fewer folds: "
                    f"papsmear split {file} --folds 3, or label more slides"
                )
    return parts


def _common_width(shelf: Shelf, slide_ids: Sequence[str]) -> int:
    """D of all bags; a UsageError that lists the missing ones, or those of differing width."""
    missing = [slide_id for slide_id in slide_ids if not shelf.file(slide_id).is_file()]
    if missing:
        raise UsageError(
            f"{shelf.folder}: no bag for {len(missing)} slides of the csv: {', '.join(missing)}; embed them, or "
            "take them out of the csv"
        )
    by_width: dict[int, list[str]] = {}
    for slide_id in slide_ids:
        by_width.setdefault(bag_shape(shelf.file(slide_id))[1], []).append(slide_id)
    if len(by_width) > 1:
        told = "; ".join(f"{width} features in {len(ids)} bags, such as {ids[0]}" for width, ids in by_width.items())
        raise UsageError(f"{shelf.folder}: bags of differing width: {told}; embed all slides with one encoder")
    return next(iter(by_width))


def _common_card(shelf: Shelf, slide_ids: Sequence[str]) -> BagCard | None:
    """The card of the first bag, None for bags of others; a UsageError where others were made in another way."""
    cards = {slide_id: read_card(shelf.file(slide_id)) for slide_id in slide_ids}
    by_way: dict[str, list[str]] = {}
    for slide_id, card in cards.items():
        by_way.setdefault(_way(card), []).append(slide_id)
    if len(by_way) > 1:
        told = "; ".join(f"{way} in {len(ids)} bags, such as {ids[0]}" for way, ids in by_way.items())
        raise UsageError(f"{shelf.folder}: bags made in differing ways: {told}; tile and embed all slides alike")
    return cards[slide_ids[0]]


def _way(card: BagCard | None) -> str:
    """How a bag was made, in words."""
    if card is None:
        return "tiles and encoder unsaid"
    tiles = card.tiles
    return (
        f"tiles of {tiles.size_px} px at {tiles.mpp:g} µm/px in the area {tiles.area}, JPEG quality {tiles.quality}, "
        f"encoder {card.encoder_sha256[:12]}"
    )
