"""The C3P ablation: a linear classifier of tiles, fitted on single cells as they are, or on tiles they were pasted on.

Nine ways of pasting, three methods by three probabilities, are told apart by one embedding of each method's tiles: a
generator gives the same cell and place for every probability, so a canvas is embedded with a cell and without one. The
classifier is the linear probe's: C chosen inside the training part, in folds that share no slide (or picture).

Shapes: N tiles or cells, D features, Q tiles to test on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from papsmear import seeds
from papsmear.probes.binary import F1, Doubles, binary_scores, slide_resamples
from papsmear.probes.bootstrap import Interval, interval
from papsmear.probes.cache import features_of, features_of_images
from papsmear.probes.canvases import SlideTiles
from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import Floats, Ints
from papsmear.probes.labelled import SIDES, LabelledCell
from papsmear.probes.linear import choose_c, coordinates
from papsmear.probes.pasted import PastedTiles
from papsmear.probes.pasting import METHODS, Pasting, Tile
from papsmear.probes.scores import Spread
from papsmear.probes.splits import inner_folds, source_pictures
from papsmear.ssl.encoder import Encoder

PROBABILITIES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Variant:
    """What the classifier is fitted on: single cells (`method` None), or tiles, by method and paste probability."""

    method: str | None
    probability: float | None

    @property
    def title(self) -> str:
        return "no pasting" if self.method is None else f"{self.method}, p = {self.probability:g}"


NO_PASTING = Variant(None, None)
VARIANTS = (NO_PASTING, *(Variant(method, p) for method in METHODS for p in PROBABILITIES))


@dataclass(frozen=True)
class Fold:
    """What a fold's classifiers are fitted on and tested on: canvases of other slides, and the fold's own tiles."""

    number: int
    canvases: SlideTiles
    tested: SlideTiles


@dataclass(frozen=True)
class Outcome:
    """What a variant gave for one encoder: the C of each fold, each score over the folds, and its 95 % interval.

    `gain`: F1 of positives above that of no pasting, and its paired interval; None for no pasting itself.
    """

    picks: tuple[float, ...]
    scores: dict[str, Spread]
    intervals: dict[str, Interval]
    gain: tuple[float, Interval] | None


@dataclass(frozen=True)
class _FirstEpoch:
    """The tiles that the first epoch makes of all canvases, made anew each time: together they fill the memory."""

    tiles: PastedTiles

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[Tile]:
        return (self.tiles.tile(0, number) for number in range(len(self.tiles)))


def ablate(
    encoder: Encoder,
    name: str,
    sets: Sequence[CellSet],
    cells: Sequence[LabelledCell],
    folds: Sequence[Fold],
    seed: int,
    cache: Path,
) -> dict[Variant, Outcome]:
    """Every variant's scores on the tiles of all folds, for one encoder called `name`; features are kept in `cache`."""
    single = _single_cells(encoder, name, sets, cache)
    decisions: dict[Variant, list[Doubles]] = {variant: [] for variant in VARIANTS}
    picks: dict[Variant, list[float]] = {variant: [] for variant in VARIANTS}
    for fold in folds:
        what = f"{name}: fold {fold.number}"
        queries = features_of_images(encoder, f"{what}, tiles to test on", "tiles", fold.tested.tiles, cache)
        train = {NO_PASTING: single, **_pasted_tiles(encoder, what, cells, fold.canvases, seed, cache)}
        for variant, (features, labels, groups) in train.items():
            c, decided = decide(features, labels, groups, queries, seed)
            picks[variant].append(c)
            decisions[variant].append(decided)
    return _outcomes(decisions, picks, folds, seed)


def decide(features: Floats, labels: Ints, groups: Ints, queries: Floats, seed: int) -> tuple[float, Doubles]:
    """C, and the decisions (Q,) of logistic regression on `features` (N, D): log-odds of positive."""
    x, q = coordinates(features, queries)
    c = choose_c(x, labels, inner_folds(labels, groups, seed))
    model = LogisticRegression(C=c, max_iter=2000).fit(x, labels)
    return c, np.asarray(model.decision_function(q), np.float64)


def _single_cells(encoder: Encoder, name: str, sets: Sequence[CellSet], cache: Path) -> tuple[Floats, Ints, Ints]:
    """Features, labels and source pictures of the positive and negative cells of all sets."""
    features, labels, groups, first = [], [], [], 0
    for cells in sets:
        sides = [SIDES.get(c.side, -1) for c in cells.classes]
        pictures = source_pictures(cells)
        of_set = np.arange(len(cells.labels)) if pictures is None else pictures
        label = np.array(sides)[cells.labels]
        kept = label >= 0
        features.append(features_of(encoder, name, cells, cache)[kept])
        labels.append(label[kept])
        groups.append(first + of_set[kept])
        first += int(of_set.max()) + 1
    return np.concatenate(features), np.concatenate(labels), np.concatenate(groups)


def _pasted_tiles(
    encoder: Encoder,
    what: str,
    cells: Sequence[LabelledCell],
    canvases: SlideTiles,
    seed: int,
    cache: Path,
) -> dict[Variant, tuple[Floats, Ints, Ints]]:
    """For each way of pasting features of the canvases with their cells, labels and slides."""
    labels, slides = canvases.labels, canvases.groups()
    negative = np.flatnonzero(labels == 0)  # they come last
    bare = canvases.tiles[int(negative[0]) :]
    of_bare = features_of_images(encoder, f"{what}, bare canvases", "canvases", bare, cache)
    chances = np.array([seeds.rng(seed, "c3p", 0, int(i)).random() for i in negative])  # what Pasting draws first
    found = {}
    for method in METHODS:
        tiles = _FirstEpoch(PastedTiles(canvases.tiles, labels.tolist(), Pasting(cells, method, 1.0), seed))
        everywhere = features_of_images(encoder, f"{what}, {method}", method, tiles, cache)
        for probability in PROBABILITIES:
            features = everywhere.copy()
            features[negative[chances >= probability]] = of_bare[chances >= probability]
            found[Variant(method, probability)] = (features, labels, slides)
    return found


def _outcomes(
    decisions: Mapping[Variant, Sequence[Doubles]],
    picks: Mapping[Variant, Sequence[float]],
    folds: Sequence[Fold],
    seed: int,
) -> dict[Variant, Outcome]:
    drawn = [slide_resamples(f.tested.groups(), f.tested.labels, seeds.derive(seed, f.number)) for f in folds]
    found: dict[Variant, Outcome] = {}
    resampled: dict[Variant, Doubles] = {}
    for variant, of_fold in decisions.items():
        tested = [(fold.tested.labels, decided) for fold, decided in zip(folds, of_fold, strict=True)]
        runs = [binary_scores(labels, decided, np.ones((1, len(labels)))) for labels, decided in tested]
        many = [binary_scores(*pair, weights) for pair, weights in zip(tested, drawn, strict=True)]
        scores = {key: Spread(tuple(float(run[key][0]) for run in runs)) for key in runs[0]}
        replicates = {key: np.mean([run[key] for run in many], axis=0) for key in scores}  # (B,)
        resampled[variant] = replicates[F1]
        gain = None
        if variant != NO_PASTING:
            above = interval(replicates[F1] - resampled[NO_PASTING])
            gain = (scores[F1].mean - found[NO_PASTING].scores[F1].mean, above)
        found[variant] = Outcome(
            tuple(picks[variant]), scores, {key: interval(values) for key, values in replicates.items()}, gain
        )
    return found
