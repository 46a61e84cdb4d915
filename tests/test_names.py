"""Names of encoders, patterns and lists of folds' encoders, and the figures over them."""

from pathlib import Path

import numpy as np
import pytest

from papsmear.errors import UsageError
from papsmear.probes.classes import SIPAKMED
from papsmear.probes.datasets import CellSet
from papsmear.probes.foldspread import fold_rows, over_folds, transfer_fold_rows
from papsmear.probes.names import name_encoders, with_folds
from papsmear.probes.results import measure
from papsmear.probes.transfer import Transferred


def test_a_pattern_stands_for_every_fold_that_is_there(tmp_path: Path) -> None:
    for fold in (10, 0, 2):
        (tmp_path / f"fold{fold}").mkdir()
        (tmp_path / f"fold{fold}" / f"encoder-{fold}.safetensors").touch()
    (tmp_path / "fold3").mkdir()
    (tmp_path / "fold3" / "encoder-2.safetensors").touch()  # one fold in its folder, another in its name
    pattern = f"{tmp_path}/fold{{fold}}/encoder-{{fold}}.safetensors"
    single, folds = with_folds({"dino": pattern, "floor": "random:resnet50", "two": ["timm:a", "timm:b"]})
    assert single == {
        **{f"dino fold {n}": f"{tmp_path}/fold{n}/encoder-{n}.safetensors" for n in (0, 2, 10)},
        "floor": "random:resnet50", "two #1": "timm:a", "two #2": "timm:b",
    }  # fmt: skip
    assert folds == {"dino": ("dino fold 0", "dino fold 2", "dino fold 10"), "two": ("two #1", "two #2")}


def test_a_relative_pattern_is_found_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs[1]" / "vits16-fold1").mkdir(parents=True)
    (tmp_path / "runs[1]" / "vits16-fold1" / "encoder.safetensors").touch()
    named = name_encoders("./runs[1]/vits16-fold{fold}/encoder.safetensors")
    assert with_folds(named)[0] == {"vits16 fold 1": "runs[1]/vits16-fold1/encoder.safetensors"}


@pytest.mark.parametrize(
    ("told", "message"),
    [("gone-{fold}.safetensors", "no file is called gone-{fold}.safetensors"), ([], "an empty list")],
)
def test_folds_that_are_not_there_are_refused(told: str | list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"--encoders.dino: {message}"):
        with_folds({"dino": told})


def test_figures_over_folds_are_those_of_their_means() -> None:
    """The sd over folds is that of the encoders' means; the sd over runs the root of their mean variance."""
    labels = np.repeat(np.arange(5), 24)
    cells = CellSet("mine", SIPAKMED, tuple(map(str, labels)), (), labels, {})
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(5, 6))
    of = {
        name: measure((centres[labels] + generator.normal(size=(120, 6))).astype(np.float32), cells, [1, 5], 3, 0)
        for name in ("a fold 0", "a fold 1", "a fold 2", "b")
    }
    rows = fold_rows({"mine": of}, {"a": ("a fold 0", "a fold 1", "a fold 2", "a fold 3")})
    assert len(rows) == len(of["b"])
    (row,) = (row for row in rows if row["as_published"])
    assert row["of"] == ["a fold 0", "a fold 1", "a fold 2"], "a fold 3 gave nothing"
    (protocol,) = (protocol for protocol in of["b"] if protocol.as_published)
    results = [of[name][protocol] for name in row["of"]]
    for name, facts in row["scores"].items():
        spreads = [{**r.class_f1, **r.side_f1, "weighted F1": r.weighted_f1}[name] for r in results]
        means = [float(np.mean(spread.runs)) for spread in spreads]
        assert facts["folds"] == means
        assert facts["mean"] == pytest.approx(np.mean(means))
        assert facts["sd_folds"] == pytest.approx(np.std(means, ddof=1))
        assert facts["sd_runs"] == pytest.approx(np.sqrt(np.mean([np.var(s.runs, ddof=1) for s in spreads])))
    assert set(row["scores"]) == {"D", "K", "M", "P", "SI", "positives", "negatives", "weighted F1"}
    assert over_folds(results[:1])["weighted F1"].sd == 0


def test_the_transfer_over_folds_leaves_out_what_one_of_them_has_not() -> None:
    def row(encoder: str, **scores: float) -> Transferred:
        of = {name: (value, None) for name, value in scores.items()}
        return Transferred(encoder, ("herlev",), "cells", 5, 10, 10, 2, None, False, of)

    found = [row("a fold 0", sensitivity=0.5, auc=0.7), row("b", sensitivity=0.1), row("a fold 1", sensitivity=0.7)]
    (facts,) = transfer_fold_rows(found, {"a": ("a fold 0", "a fold 1")})
    assert (facts["fit"], facts["target"], facts["of"]) == (["herlev"], "cells", ["a fold 0", "a fold 1"])
    assert list(facts["scores"]) == ["sensitivity"]
    assert facts["scores"]["sensitivity"]["mean"] == pytest.approx(0.6)
    assert facts["scores"]["sensitivity"]["sd_folds"] == pytest.approx(0.2 / 2**0.5)
