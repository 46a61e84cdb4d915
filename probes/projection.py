"""Features as a map in the plane: t-SNE of the cells of all sets and targets together, as one encoder sees them.

t-SNE (van der Maaten & Hinton, JMLR 2008) keeps neighbours, not distances: clusters and which cells lie among others'
mean something, the gaps between clusters and their sizes do not. Features are brought to length 1, as k-NN takes them,
and to 50 principal components first, as that paper does (section 4.2).
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from papsmear.probes.classes import CellClass
from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import Floats, Ints, normalised
from papsmear.probes.plots import COLOURS, INK, LINE, SOFT
from papsmear.seeds import derive, rng

POINTS = 1500  # drawn from all sets and targets together: more of them cost much time and show no more
_COMPONENTS, _PERPLEXITY = 50, 30
_OF_SIDE = {  # warm for positives, cool for negatives, so that a class tells its side
    "positive": ("#b3261e", "#e08a00", "#d4588a", "#7a1f3d", "#c96f4a", "#f2b134"),
    "negative": ("#2c6e49", "#2a7f9e", "#8ab17d", "#4b5fb5", "#63c1bd", "#1d3f72"),
    "neither": ("#7f8c99", "#b9a98f", "#5b6878"),
}


def project(features: Floats, seed: int) -> NDArray[np.float64]:
    """Places (N, 2) of N features (N, D); all in one point where nothing tells them apart.

    Half of scikit-learn's time by 750 steps, as many as openTSNE takes (Poličar et al., JSS 109, 2024), and by coarser
    sums of far forces: on features like these the divergence stays within 1 %.
    """
    unit = normalised(features).astype(np.float64)
    if len(unit) < 4 or np.linalg.norm(unit - unit.mean(axis=0)) < 1e-6:
        return np.zeros((len(unit), 2))
    perplexity = min(_PERPLEXITY, (len(unit) - 1) / 3)
    state = derive(seed, "t-SNE") % 2**32
    tsne = TSNE(perplexity=perplexity, angle=0.7, max_iter=750, random_state=state)
    places: NDArray[np.float64] = tsne.fit_transform(reduced(unit, state))
    return places


def reduced(unit: NDArray[np.float64], state: int) -> NDArray[np.float64]:
    """The principal components (N, 50) of rows (N, D), by a random range finder where there are many columns."""
    components: NDArray[np.float64] = PCA(min(_COMPONENTS, *unit.shape), random_state=state).fit_transform(unit)
    return components


def drawn_points(counts: Mapping[str, int], seed: int, points: int = POINTS) -> dict[str, Ints]:
    """Which cells (P,) of each set are drawn, in proportion to its cells but a tenth of the points at least."""
    total = sum(counts.values())
    drawn = {}
    for name, count in counts.items():
        wanted = count if total <= points else min(count, max(points // 10, points * count // total))
        drawn[name] = np.sort(rng(seed, "points", name).permutation(count)[:wanted])
    return drawn


def class_map(features: Mapping[str, Floats], sets: Mapping[str, CellSet], title: str, seed: int) -> Figure:
    """One encoder's map, a panel coloured by set where there are several, and one a set coloured by class."""
    points = drawn_points({name: len(cells.labels) for name, cells in sets.items()}, seed)
    places = project(np.concatenate([features[name][points[name]] for name in sets]), seed)
    of_set = np.repeat(np.arange(len(sets)), [len(points[name]) for name in sets])
    n_panels = len(sets) + (len(sets) > 1)
    columns = 2 if n_panels == 4 else min(3, n_panels)
    rows = -(-n_panels // columns)
    figure = Figure(figsize=(4.3 * columns, 4.9 * rows), layout="constrained", dpi=150)
    panels = iter(figure.subplots(rows, columns, squeeze=False).ravel())
    if len(sets) > 1:
        titles = [cells.title for cells in sets.values()]
        _panel(next(panels), places, of_set, titles, list(COLOURS), "by set")
    for number, (name, cells) in enumerate(sets.items()):
        labels = np.where(of_set == number, -1, -2)
        labels[of_set == number] = cells.labels[points[name]]
        names = [c.short for c in cells.classes]
        _panel(next(panels), places, labels, names, class_colours(cells.classes), f"{cells.title}, by class")
    for unused in panels:
        unused.set_axis_off()
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def class_colours(classes: tuple[CellClass, ...]) -> list[str]:
    """A colour for each class, of its side's."""
    taken = dict.fromkeys(_OF_SIDE, 0)
    colours = []
    for c in classes:
        colours.append(_OF_SIDE[c.side][taken[c.side] % len(_OF_SIDE[c.side])])
        taken[c.side] += 1
    return colours


def _panel(
    axes: Axes, places: NDArray[np.float64], labels: Ints, names: list[str], colours: list[str], title: str
) -> None:
    """The points (N, 2) by label (N,); those of no label pale behind them."""
    pale = labels < 0
    if pale.any():
        axes.scatter(places[pale, 0], places[pale, 1], s=4, color=LINE, linewidths=0, rasterized=True)
    for label, name in enumerate(names):
        there = labels == label
        x, y = places[there].T
        axes.scatter(x, y, s=9, color=colours[label % len(colours)], linewidths=0, label=name, rasterized=True)
    axes.set_title(title, fontsize=9, color=SOFT)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_color(LINE)
    axes.legend(
        fontsize=8, frameon=False, markerscale=2, handletextpad=0.1, columnspacing=0.8, ncols=min(4, len(names)),
        loc="upper center", bbox_to_anchor=(0.5, -0.01),
    )  # fmt: skip
