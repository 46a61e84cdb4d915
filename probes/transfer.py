"""Transfer: k-NN fitted on public cells as positive and negative, tested on in-house cells and tiles.

Stegmüller et al., arXiv 2302.05195: fitted on binary Herlev, SIPaKMeD or both, whole sets, classes of neither side left
out, and tested on in-house positives by sensitivity. Sensitivity alone is best for an encoder that calls everything
positive; specificity, AUC and F1 of the positives stand beside it. The paper does not tell k: here it is chosen by
cross-validation inside the fitting set, whose folds share no source picture where those are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from papsmear.errors import UsageError
from papsmear.probes.bootstrap import Interval, interval, resamples
from papsmear.probes.choice import choose_k
from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import PLAIN, Floats, Ints, Neighbourhoods, neighbours, votes
from papsmear.probes.splits import inner_folds, source_pictures
from papsmear.seeds import derive
from papsmear.ssl.card import EncoderCard, check_leak

METRICS = ("sensitivity", "specificity", "auc", "f1")

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Transferred:
    """What an encoder fitted on the sets `fit` gave on the set `target`.

    `scores`: each of METRICS as a share of 1 with its bootstrap 95 % interval over slides; a metric without meaning
    there, such as specificity without negatives, is missing, and so is an interval of fewer than two slides. `fold`:
    the encoder's held-out fold, where only its cells were tested. `leak`: tested on slides it was trained on.
    """

    encoder: str
    fit: tuple[str, ...]
    target: str
    k: int
    n_positive: int
    n_negative: int
    n_slides: int | None
    fold: int | None
    leak: bool
    scores: dict[str, tuple[float, Interval | None]]


def check_targets(sets: Mapping[str, CellSet], targets: Mapping[str, CellSet]) -> None:
    """UsageError where no set can be fitted on, or a target has neither positive nor negative cells."""
    if targets and not fitting_names(sets, targets):
        raise UsageError(
            "--targets: no set has both positive and negative cells to learn from and no slide of a target; "
            "add one to --sets, such as --sets.herlev=DIR"
        )
    for name, cells in targets.items():
        if not len(sides(cells)[0]):
            raise UsageError(
                f"--targets.{name}: none of its cells is positive or negative; give its classes their sides"
            )


def fitting_names(sets: Mapping[str, CellSet], targets: Mapping[str, CellSet]) -> list[str]:
    """The sets that can be fitted on: they have both sides, and share no slide with a target."""
    of_targets = {slide for cells in targets.values() for slide in cells.slides} - {""}
    return [
        name
        for name, cells in sets.items()
        if len(np.unique(sides(cells)[1])) == 2 and of_targets.isdisjoint(cells.slides)
    ]


def cells_to_test(card: EncoderCard, cells: CellSet, allow_leak: bool) -> tuple[Ints, int | None, bool]:
    """Which cells (T,) of an in-house set an encoder is tested on, of which fold alone, and whether it has seen them.

    An encoder that held a fold out is tested on that fold, where the set tells folds. UsageError for a leak that is not
    allowed, and where the fold has no cells.
    """
    members, _ = sides(cells)
    fold = card.fold if cells.folds and card.fold is not None else None
    if fold is not None:
        members = np.array([i for i in members if cells.folds[i] == fold], dtype=np.int64)
        if not len(members):
            raise UsageError(f"encoder {card.name} held fold {fold} out, and {cells.title} has no cells of that fold")
    slides = {cells.slides[i] for i in members} - {""} if cells.slides else set()
    return members, fold, check_leak(card, sorted(slides), allow_leak)


def transfer(
    encoder: str,
    card: EncoderCard,
    features: Mapping[str, Floats],
    sets: Mapping[str, CellSet],
    targets: Mapping[str, CellSet],
    ks: Sequence[int],
    seed: int,
    allow_leak: bool = False,
) -> list[Transferred]:
    """Every set, and all together, to every target; `features` (N, D) by the names of sets and targets."""
    useful = fitting_names(sets, targets)
    fits = [(name,) for name in useful] + ([tuple(useful)] if len(useful) > 1 else [])
    found = []
    for fit in fits:
        x, y, groups = fitting_set(fit, features, sets)
        folds = inner_folds(y, groups, derive(seed, "transfer", *fit))
        k = min(choose_k(Neighbourhoods.of(x, max(ks)), y, folds, ks, 2)[PLAIN], len(x))
        for target, cells in targets.items():
            members, fold, leak = cells_to_test(card, cells, allow_leak)
            truth = _truth(cells)[members]
            near = y[neighbours(x, features[target][members], k)[0]]  # (T, k)
            slides = _slides(cells, members)
            found.append(Transferred(
                encoder, fit, target, k, int(truth.sum()), int((1 - truth).sum()),
                None if slides is None else len(np.unique(slides)), fold, leak,
                scores(truth, votes(near, 2), near.mean(axis=1), slides, seed),
            ))  # fmt: skip
    return found


def sides(cells: CellSet) -> tuple[Ints, Ints]:
    """The cells (M,) that are positive or negative, and which (M,): 1 or 0."""
    truth = _truth(cells)
    members = np.flatnonzero(truth >= 0)
    return members, truth[members]


def _truth(cells: CellSet) -> Ints:
    of_class = np.array([{"positive": 1, "negative": 0, "neither": -1}[c.side] for c in cells.classes], dtype=np.int64)
    return of_class[cells.labels]


def fitting_set(
    names: Sequence[str], features: Mapping[str, Floats], sets: Mapping[str, CellSet]
) -> tuple[Floats, Ints, Ints | None]:
    """Features (M, D), sides (M,) and source pictures (M,) of several sets; a cell without one is its own group."""
    x, y, groups, first = [], [], [], 0
    known = False
    for name in names:
        members, truth = sides(sets[name])
        pictures = source_pictures(sets[name])
        known |= pictures is not None
        of_set = np.arange(len(sets[name].labels)) if pictures is None else pictures
        x.append(features[name][members])
        y.append(truth)
        groups.append(of_set[members] + first)
        first += int(of_set.max()) + 1
    return np.concatenate(x), np.concatenate(y), np.concatenate(groups) if known else None


def _slides(cells: CellSet, members: Ints) -> Ints | None:
    """The slide (T,) of each cell, counted from 0, or its group; None where neither is told of all."""
    told = cells.slides or cells.groups
    if not told or not all(told[i] for i in members):
        return None
    return np.unique([told[i] for i in members], return_inverse=True)[1].astype(np.int64)


def scores(
    truth: Ints, predicted: Ints, shares: Doubles, slides: Ints | None, seed: int
) -> dict[str, tuple[float, Interval | None]]:
    """The metrics of predictions (T,) and shares (T,) of positive neighbours, resampled by slide, else by cell."""
    groups = np.arange(len(truth)) if slides is None else slides
    point = metrics(truth, predicted, shares, np.ones((1, len(truth))))
    drawn = metrics(truth, predicted, shares, resamples(groups, seed))
    found: dict[str, tuple[float, Interval | None]] = {}
    for name in METRICS:
        if np.isnan(point[name][0]):
            continue
        kept = drawn[name][~np.isnan(drawn[name])]  # a resample may lack a side
        enough = len(np.unique(groups)) > 1 and len(kept)
        found[name] = float(point[name][0]), interval(kept) if enough else None
    return found


def metrics(truth: Ints, predicted: Ints, shares: Doubles, weights: Doubles) -> dict[str, Doubles]:
    """Each metric for every row of weights (B, T): name → (B,); NaN where a side that it needs has no weight.

    AUC is the chance that a positive cell's share is above a negative one's, equal ones counting half (Mann & Whitney).
    """
    positive, negative = weights * truth, weights * (1 - truth)  # (B, T)
    hits, false = positive @ predicted, negative @ predicted
    n_positive, n_negative = positive.sum(axis=1), negative.sum(axis=1)
    levels, level = np.unique(shares, return_inverse=True)
    onto = np.eye(len(levels))[level]  # (T, L)
    of_positive, of_negative = positive @ onto, negative @ onto  # (B, L)
    below = np.cumsum(of_negative, axis=1) - of_negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        both = np.where((n_positive > 0) & (n_negative > 0), 1.0, np.nan)
        return {
            "sensitivity": hits / n_positive,
            "specificity": 1 - false / n_negative,
            "auc": (of_positive * below).sum(axis=1) / (n_positive * n_negative),
            "f1": both * 2 * hits / (hits + false + n_positive),
        }
