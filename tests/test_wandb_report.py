"""The W&B Report page, built without the network, and what is said where it cannot be written."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from papsmear.probes import published
from papsmear.probes.classes import HERLEV
from papsmear.probes.datasets import CellSet
from papsmear.probes.protocol import knn_probe
from papsmear.probes.report import Results
from papsmear.probes.results import HONEST_KNN, measure
from papsmear.probes.transfer import Transferred
from papsmear.probes.wandb_report import build_report, write_report
from papsmear.ssl.card import EncoderCard
from papsmear.tracking import run_of

CARD = EncoderCard("encoder.safetensors", "resnet10t", 64, (0.5,) * 3, (0.2,) * 3, sha256="ab" * 32)


@pytest.fixture(scope="module")
def results() -> Results:
    """One encoder on 84 cells of 28 pictures, and on in-house cells."""
    labels = np.repeat(np.arange(7), 12)
    groups = tuple(f"p{i // 3}" for i in range(84))
    cells = CellSet("herlev", HERLEV, tuple(map(str, range(84))), (), labels, {}, groups=groups)
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(7, 6))[labels] + generator.normal(size=(84, 6))).astype(np.float32)
    moved = Transferred("my DINO", ("herlev",), "cells", 5, 9, 3, 2, 0, True, {"sensitivity": (0.875, None)})
    return Results(
        sets={"herlev": cells}, cards={"my DINO": CARD}, scores={"herlev": {"my DINO": knn_probe(x, cells, [3], 2, 0)}},
        failed={}, runs=2, seed=0, protocols={"herlev": {"my DINO": measure(x, cells, [3], 2, 0)}}, few_shot={},
        transfer=[moved], leaks={"herlev": ["my DINO"]},
        pretraining={"my DINO": {"id": "abc123", "url": "https://wandb.example/e/p/runs/abc123"}},
    )  # fmt: skip


def blocks_of(report: Any) -> tuple[str, list[Any]]:
    """The page's words, and its panel grids."""
    text = "\n".join(block.text for block in report.blocks if hasattr(block, "text") and isinstance(block.text, str))
    return text, [block for block in report.blocks if type(block).__name__ == "PanelGrid"]


def test_the_page_has_published_beside_honest_figures_and_the_runs_plots(results: Results) -> None:
    report = build_report(results, "a-team", "papsmear", "run42")
    assert (report.entity, report.project, report.title) == ("a-team", "papsmear", "Probe report: my DINO")
    text, grids = blocks_of(report)
    of = results.protocols["herlev"]["my DINO"]
    honest = of[HONEST_KNN].weighted_f1
    theirs = next(found.weighted_f1 for protocol, found in of.items() if protocol.as_published)
    assert "| encoder | k-NN, plain votes, as published | k-NN, plain votes, honest | linear, honest |" in text
    row = next(line for line in text.splitlines() if line.startswith("| my DINO | "))
    cells = row.split(" | ")
    assert cells[1].startswith(f"{100 * theirs.mean:.1f} ± {100 * theirs.sd:.1f} [")
    assert cells[2].startswith(f"{100 * honest.mean:.1f} ± {100 * honest.sd:.1f} [")
    assert theirs.mean != honest.mean
    for told in (
        f"not measured here ({published.SOURCE})",
        "| ViT-S/16 DINO | 62.6 ± 2.8 |",
        "[abc123](https://wandb.example/e/p/runs/abc123)",
        "**LEAK**: my DINO trained on slides of herlev",
        "| my DINO | herlev | cells LEAK | 87.5 | – | – | – |",
        "Research use only",
    ):
        assert told in text, told
    kinds = ("weighted_f1", "f1_by_k", "few_shot", "confusion/my DINO", "neighbours/my DINO")
    assert [[key for panel in grid.panels for key in panel.media_keys] for grid in grids] == [
        [f"herlev/{kind}" for kind in kinds],
        ["map/my DINO"],
    ]
    places = [(panel.layout.x, panel.layout.w) for panel in grids[0].panels]
    assert set(places) == {(0, 12), (12, 12)}


def test_the_panels_show_this_run_alone_and_their_blocks_can_be_sent(results: Results) -> None:
    """What the library makes of the filter is the run's id; only the project's own id wants the server."""
    from wandb_workspaces import expr

    report = build_report(results, "a-team", "papsmear", "run42")
    for grid in blocks_of(report)[1]:
        (runs,) = grid.runsets
        assert (runs.entity, runs.project) == ("a-team", "papsmear")
        leaf = json.loads(expr.expr_to_filters(runs.filters).model_dump_json())
        assert (leaf["key"], leaf["op"], leaf["value"]) == ({"section": "run", "name": "name"}, "=", "run42")
        sent = [json.loads(panel._to_model().model_dump_json(by_alias=True)) for panel in grid.panels]
        assert [one["config"]["mediaKeys"] for one in sent] == [panel.media_keys for panel in grid.panels]
    for block in report.blocks:
        if type(block).__name__ != "PanelGrid":
            block._to_model()


def test_without_a_login_one_line_says_how(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    @dataclasses.dataclass
    class Run:
        offline: bool
        disabled: bool = False
        entity: str = "a-team"
        project: str = "papsmear"
        id: str = "run42"

    assert write_report(Run(offline=True), results) is None  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "W&B report: skipped" in told
    assert "wandb login" in told
    assert write_report(Run(offline=False), results) is None, "a login that went away"  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "W&B report: not written (not logged in to W&B" in told


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ('{"id": "x1", "url": "https://w/x1"}', {"id": "x1", "url": "https://w/x1"}),
        (None, {"id": "later9"}),
        ("", {"id": "later9"}),
        ("{}", {"id": "later9"}),
    ],
)
def test_the_run_of_a_folder_is_known_by_our_note_or_else_by_wandbs_names(
    tmp_path: Path, note: str | None, expected: dict[str, str]
) -> None:
    assert run_of(tmp_path) is None
    for name in ("run-20260101_120000-early1", "offline-run-20260102_080000-later9", "latest-run"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    if note is not None:
        (tmp_path / "wandb" / "last-run.json").write_text(note)
    assert run_of(tmp_path) == expected
