"""What the end of a test leaves in the run's folder: test.json, test.csv and test.html, and in W&B the same.

test.csv holds each slide's raw logit beside its probability, so that heads can be compared, and folds put together,
from these files alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import expit
from torch import Tensor

from papsmear import __version__
from papsmear.cohort import Slide, write_rows
from papsmear.errors import InputError
from papsmear.files import write_text
from papsmear.mil.bags import read_bag, read_size_level0
from papsmear.mil.calibration import Calibration
from papsmear.mil.evaluation import TITLES, Evaluation, evaluate
from papsmear.mil.model import HeadCard
from papsmear.mil.plots import pixels, reliability_figure, roc_figure
from papsmear.mil.provenance import Provenance
from papsmear.mil.truth import TOPS, TopTiles, abnormal_cells, top_tiles
from papsmear.mil.verdicts import Verdicts
from papsmear.page import figure_uri, render
from papsmear.progress import say

if TYPE_CHECKING:
    import wandb

    from papsmear.mil.data import BagData

RANKED = max(TOPS)


class Judged(NamedTuple):
    """What a head said of a slide: its logit, and which of its tiles score highest, the highest first."""

    slide_id: str
    label: int | None
    logit: float
    ranked: tuple[int, ...]

    @classmethod
    def of(cls, slide_id: str, label: int | None, logit: Tensor, score: Tensor) -> "Judged":
        """A head's answer: the logit () and the tiles' scores (N,)."""
        ranked = score.argsort(descending=True, stable=True)[:RANKED]
        return cls(slide_id, label, float(logit), tuple(ranked.tolist()))


class Outcome(NamedTuple):
    """A test: the head and the fold, what it said of each slide, and the figures."""

    card: HeadCard
    fold: int
    leak: bool
    verdicts: Verdicts
    evaluation: Evaluation


def outcome(card: HeadCard, bags: "BagData", judged: Sequence[Judged]) -> Outcome:
    """The figures of the test slides by what the head said of each of them."""
    slide_of = {slide.slide_id: slide for slide in bags.parts["test"]}
    slides = [slide_of[said.slide_id] for said in judged]
    logits = np.array([said.logit for said in judged])
    verdicts = Verdicts.of(slides, bags.fold, logits, card.calibration, card.threshold)
    found = [_top_tiles(slide, bags, said) for slide, said in zip(slides, judged, strict=True)]
    tops = [TopTiles.together(parts) for parts in zip(*filter(None, found), strict=True)]
    return Outcome(card, bags.fold, bags.leak, verdicts, evaluate(verdicts, tops))


def _top_tiles(slide: Slide, bags: "BagData", said: Judged) -> list[TopTiles]:
    """How many of a positive slide's top tiles hold an annotated cell; empty where nothing tells."""
    name, file = slide.row.get("annotations", ""), bags.shelf.file(slide.slide_id)
    size_level0 = read_size_level0(file)
    if slide.label != 1 or not name or size_level0 is None:
        return []
    try:
        cells = abnormal_cells(bags.slides.parent / name)  # (A, 2)
    except InputError as error:
        say(f"{slide.slide_id}: its top tiles are not counted: {error}")
        return []
    return top_tiles(said.ranked, read_bag(file).xy_level0, size_level0, cells) if len(cells) else []


def write_outcome(run: Path, test: Outcome) -> None:
    """Writes test.csv, test.html and, last, test.json."""
    write_rows(run / "test.csv", _rows(test.verdicts))
    write_text(run / "test.html", _page(run.absolute().name, test))
    write_text(run / "test.json", json.dumps(facts(test), indent=1) + "\n")


def write_predictions(
    file: Path, said: Sequence[Judged], calibration: Calibration, threshold: float, provenance: Provenance | None
) -> None:
    """Writes predictions.csv, which says of each slide whether the head has seen it in training."""
    part_of: dict[str, str] = {}
    if provenance:
        part_of |= dict.fromkeys(provenance.train_slides, "train")
        part_of |= dict.fromkeys(provenance.validation_slides, "validation")
    probabilities = calibration.probability(np.array([slide.logit for slide in said]))
    rows = [
        {
            "slide_id": slide.slide_id,
            "label": "" if slide.label is None else str(slide.label),
            "seen_in": part_of.get(slide.slide_id, ""),
            "probability": f"{p:.6f}",
            "positive": str(int(p >= threshold)),
        }
        for slide, p in zip(said, probabilities, strict=True)
    ]
    write_rows(file, rows)


def facts(test: Outcome) -> dict[str, Any]:
    """test.json: which head, fold and operating point, and the figures."""
    card = test.card
    told = {"papsmear": __version__, "fold": test.fold, "leak": test.leak, "head": card.head, "encoder": card.encoder}
    point = {"threshold": card.threshold, "temperature": card.temperature, "prior_log_odds": card.prior_log_odds}
    return told | point | test.evaluation.facts()


def _rows(verdicts: Verdicts) -> list[dict[str, str]]:
    probabilities = expit(verdicts.log_odds)
    return [
        {
            "slide_id": slide.slide_id,
            "fold": str(verdicts.folds[n]),
            "label": str(slide.label),
            "logit": repr(float(verdicts.logits[n])),
            "probability": f"{probabilities[n]:.6f}",
            "positive": str(int(verdicts.called[n])),
        }
        for n, slide in enumerate(verdicts.slides)
    ]


def _page(name: str, test: Outcome) -> str:
    found = test.evaluation
    return render(
        "mil/test.html",
        name=name,
        card=test.card,
        fold=test.fold,
        leak=test.leak,
        e=found,
        titles=TITLES,
        roc=figure_uri(roc_figure({test.card.head: test.verdicts})),
        reliability=figure_uri(reliability_figure(found.reliability)),
        version=__version__,
    )


def log_outcome(run: "wandb.Run", folder: Path, test: Outcome) -> None:
    """Figures, plots and the page (as an artifact) into a W&B run; the names are marked where the encoder leaks."""
    import wandb

    mark = "LEAK " if test.leak else ""
    told = test.evaluation.facts()
    numbers = {f"{mark}test/{name}": value for name, value in told.items() if isinstance(value, int | float)}
    for name, bounds in told["interval_95"].items():
        if bounds is not None:
            numbers |= {f"{mark}test/{name}_low": bounds[0], f"{mark}test/{name}_high": bounds[1]}
    numbers |= {f"{mark}test/top_{top.top}_tiles": top.share for top in test.evaluation.top_tiles}
    rows = _rows(test.verdicts)
    run.log({
        **numbers,
        f"{mark}test/slides_judged": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows]),
        f"{mark}test/roc": wandb.Image(pixels(roc_figure({test.card.head: test.verdicts}))),
        f"{mark}test/reliability_plot": wandb.Image(pixels(reliability_figure(test.evaluation.reliability))),
    })  # fmt: skip
    artifact = wandb.Artifact(f"test-{run.id}", type="report")
    artifact.add_file(str(folder / "test.html"))
    run.log_artifact(artifact)
