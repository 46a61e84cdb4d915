"""The DeepPap protocol: its numbers, its folds, and the figures it was published with.

Source: Zhang et al., DeepPap: Deep Convolutional Networks for Cervical Cell Classification, IEEE JBHI 2017. Each number
is an argument, so that a short run is possible; a report says where a run departs from the published ones.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from papsmear.errors import UsageError
from papsmear.probes.knn import Ints
from papsmear.probes.splits import Part
from papsmear.seeds import derive

SOURCE = "Zhang et al., DeepPap, IEEE JBHI 2017"
PATCH_PX = 128  # side of a patch, in pixels of the native Herlev images (0.201 µm)
UPSAMPLED_PX, CROP_PX = 256, 227  # a patch is enlarged to the one, and the network sees a crop of the other
TRANSLATION_PX = 10  # how far a patch moves from the nucleus centroid at most

# Mean over the folds, in percent; AUC is a share of 1.
PUBLISHED_SET = "herlev"
PUBLISHED = {
    "sensitivity": 98.2, "specificity": 98.3, "accuracy": 98.3, "H-mean": 98.3, "F": 98.8, "AUC": 0.998,
}  # fmt: skip
PUBLISHED_CLASS_ERROR = 1.6
PUBLISHED_DISPLACED_ACCURACY = 97.8  # nucleus centre displaced by up to 10 px
# Cells of each class that are rightly called normal or abnormal, percent: together they give the figures above.
PUBLISHED_CORRECT = {"CIS": 98.0, "LD": 100.0, "MD": 99.3, "SD": 95.9, "NC": 95.9, "NI": 100.0, "NS": 100.0}

Task = Literal["binary", "classes"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class DeepPap:
    """The numbers of the protocol; the defaults are the published ones.

    The learning rate itself is not among the figures we have; 0.01 is what AlexNet was trained with. It falls to a
    tenth after each third of the epochs: of 30, every ten.

    Args:
        tasks: What networks are trained for: binary (normal or abnormal), classes (all of them), or both, a network
            each.
        folds: Parts of the cross-validation.
        epochs: Passes over all augmented patches.
        batch_size: Patches a step.
        lr: Learning rate of the new layer; the encoder's is a tenth of it.
        abnormal: Rotations and translations of each abnormal cell in an epoch.
        normal: Rotations and translations of each normal cell; more, so that the two sides balance.
        views: Rotations and translations of each test cell.
        crops: Crops of each of these views, 1 to 10: centre, four corners, and their mirror images.
        displacements: How far the nucleus centre is displaced for the curve, px; [] for no curve.
    """

    tasks: tuple[Task, ...] = TASKS
    folds: int = 5
    epochs: int = 30
    batch_size: int = 256
    lr: float = 0.01
    abnormal: tuple[int, int] = (10, 10)
    normal: tuple[int, int] = (20, 14)
    views: tuple[int, int] = (10, 10)
    crops: int = 10
    displacements: tuple[int, ...] = tuple(range(1, 11))

    def check(self) -> None:
        """UsageError for a number that the protocol cannot be run with."""
        counts = {"folds": (self.folds, 2), "epochs": (self.epochs, 1), "batch_size": (self.batch_size, 1)}
        counts |= {name: (min(getattr(self, name)), 1) for name in ("abnormal", "normal", "views")}
        for name, (value, least) in counts.items():
            if value < least:
                raise UsageError(f"--protocol.{name}: {value}: give at least {least}")
        if not self.tasks:
            raise UsageError("--protocol.tasks: none given; give binary, classes, or both")
        if not 1 <= self.crops <= 10:
            raise UsageError(f"--protocol.crops: {self.crops}: give 1 to 10")
        if not self.lr > 0:
            raise UsageError(f"--protocol.lr: {self.lr}: give more than 0")
        if min(self.displacements, default=1) < 1:
            raise UsageError(f"--protocol.displacements: {list(self.displacements)}: give pixels from 1 on")

    def departures(self) -> dict[str, tuple[Any, Any]]:
        """Where this run departs from the published numbers: name → (here, published)."""
        pairs = {f.name: (getattr(self, f.name), getattr(PROTOCOL, f.name)) for f in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


PROTOCOL = DeepPap()


def cross_validation(
    labels: Ints, abnormal: Sequence[bool], pictures: Ints | None, folds: int, seed: int
) -> list[Part]:
    """Folds over cells, stratified by class, each cell tested once; grouped where their source `pictures` are given.

    Empty where a class has too few cells (or pictures) for that many folds, where a fold would lack a class to learn
    from, or normal or abnormal cells to test on.
    """
    groups = np.arange(len(labels)) if pictures is None else pictures
    if min(len(np.unique(groups[labels == label])) for label in np.unique(labels)) < folds:
        return []
    kind = StratifiedKFold if pictures is None else StratifiedGroupKFold
    cut = kind(folds, shuffle=True, random_state=derive(seed, "folds") % 2**32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        parts: list[Part] = list(cut.split(labels, labels, pictures))
    side = np.asarray(abnormal)[labels]
    whole = all(
        len(np.unique(labels[train])) == len(np.unique(labels)) and len(np.unique(side[test])) == 2
        for train, test in parts
    )
    return parts if whole else []
