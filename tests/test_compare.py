"""Reports side by side: the figures of each, paired differences where cells and splits agree, marks elsewhere."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image

import papsmear.probes
from papsmear.cli import main
from papsmear.probes.classes import HERLEV

SCHEMA = json.loads((Path(papsmear.probes.__path__[0]) / "results.schema.json").read_text())
FOLDERS = ["carcinoma_in_situ", "light_dysplastic", "normal_columnar", "normal_superficiel"]


def herlev(folder: Path, per_class: int = 12) -> Path:
    """A small set in the archive's layout, whose names tell the picture and whose classes differ a little."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(FOLDERS):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            rgb = generator.integers(0, 170, (16, 16, 3)) + 12 * np.array([label, 3 - label, label % 2])
            Image.fromarray(rgb.astype(np.uint8)).save(folder / name / f"{label}{i // 2:02}-9-{i % 2:03}.BMP")
    return folder


def probe(out: Path, cells: Path, *options: str) -> Path:
    words = ["probe", f"--sets.herlev={cells}", f"--out={out}", "--ks=[1,3]", "--runs=2", "--device=cpu", *options]
    assert main([*words, f"--cache={out.parent / 'cache'}"]) == 0
    return out


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One encoder in report a, another in b, both in both; the second with another seed in c."""
    folder = tmp_path_factory.mktemp("compare")
    cells = herlev(folder / "herlev")
    probe(folder / "a", cells, "--encoders.first=random:test_vit")
    probe(folder / "b", cells, "--encoders.second=random:resnet10t")
    probe(folder / "both", cells, "--encoders={first: random:test_vit, second: random:resnet10t}")
    probe(folder / "c", cells, "--encoders.second=random:resnet10t", "--seed=1")
    wandb.teardown()
    return folder


def compare(out: Path, *paths: Path) -> dict[str, Any]:
    assert main(["probe", "--compare", *map(str, paths), f"--out={out}"]) == 0
    return dict(json.loads((out / "compare.json").read_text()))


def test_differences_are_those_of_one_report_with_both(
    reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(tmp_path, reports / "a", reports / "b" / "results.json")
    both = json.loads((reports / "both" / "results.json").read_text())["differences"]
    assert len(found["differences"]) == len(both) == 12
    for ours, theirs in zip(found["differences"], both, strict=True):
        assert (ours["first"], ours["second"]) == (["a", "first"], ["b", "second"])
        for key in ("set", "splits", "probe", "chosen", "as_published", "honest", "clear"):
            assert ours[key] == theirs[key]
        assert ours["mean"] == pytest.approx(theirs["mean"])
        assert ours["interval_95"] == pytest.approx(theirs["interval_95"], abs=1e-6)
    assert any(row["mean"] for row in found["differences"])
    rows = {(row["report"], row["encoder"], row["splits"], row["probe"], row["chosen"]): row for row in found["rows"]}
    assert len(rows) == 24
    for name in ("a", "b"):
        for row in json.loads((reports / name / "results.json").read_text())["protocols"]:
            assert rows[name, row["encoder"], row["splits"], row["probe"], row["chosen"]] == {"report": name, **row}
    printed = capsys.readouterr().out
    assert "Weighted F1" in printed
    assert "(other" not in printed


def test_the_page_is_whole_by_itself(reports: Path, tmp_path: Path) -> None:
    found = compare(tmp_path, reports / "a", reports / "b")
    page = (tmp_path / "compare.html").read_text()
    assert not re.search(r"https?://", page)
    assert str(reports) not in page
    for row in found["rows"]:
        assert f"{100 * row['weighted_f1']['mean']:.1f} <span" in page
    published = next(row for row in found["differences"] if row["as_published"])
    assert f"{100 * published['mean']:+.1f}" in page
    shown = [row for row in found["differences"] if row["as_published"] or row["honest"]]
    assert page.count("<b>") == sum(row["clear"] for row in shown) < len(shown)
    for text in ("a<br>first", "b<br>second", "paired bootstrap", "Research use only"):
        assert text in page, text
    assert "do not compare" not in page


def test_other_splits_and_other_cells_are_marked_and_not_paired(
    reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(tmp_path / "seeds", reports / "a", reports / "c")
    assert found["sets"]["herlev"]["c"]["differs"] == ["other splits"]
    assert found["differences"] == []
    assert len(found["rows"]) == 24
    page = (tmp_path / "seeds" / "compare.html").read_text()
    assert "c: other splits than in a; its figures do not compare" in page
    assert "No paired differences" in page
    assert "such figures do not compare" in " ".join(capsys.readouterr().out.split())

    fewer = herlev(tmp_path / "herlev", per_class=10)
    probe(tmp_path / "fewer", fewer, "--encoders.first=random:test_vit")
    wandb.teardown()
    found = compare(tmp_path / "cells", reports / "a", tmp_path / "fewer", reports / "b")
    assert {name: of["differs"] for name, of in found["sets"]["herlev"].items()} == {
        "a": [], "fewer": ["other cells"], "b": []
    }  # fmt: skip
    assert {(*row["first"], *row["second"]) for row in found["differences"]} == {("a", "first", "b", "second")}


def test_reports_of_one_name_are_told_apart_and_a_lost_bootstrap_leaves_no_pairs(reports: Path, tmp_path: Path) -> None:
    shutil.copytree(reports / "b", tmp_path / "a")
    (tmp_path / "a" / "bootstrap.npy").unlink()
    found = compare(tmp_path / "out", reports / "a", tmp_path / "a")
    assert [report["name"] for report in found["reports"]] == ["a", "a #2"]
    assert found["differences"] == []


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["A"], 2, "--compare: give two reports or more"),
        (["A", "gone"], 2, "gone: no such file; give a report's folder"),
        (["A", "damaged.json"], 1, "damaged.json: damaged (Expecting value"),
        (["A", "old.json"], 2, "old.json: its schema is an earlier one, this papsmear reads 1"),
        (["A", "other.json"], 2, "no set in common (a: herlev; "),
        (["A", "A", "--encoders=timm:x"], 2, "takes reports that are there already"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    (tmp_path / "damaged.json").write_text("")
    (tmp_path / "old.json").write_text("{}")
    other = json.loads((reports / "a" / "results.json").read_text())
    other["sets"]["elsewhere"] = other["sets"].pop("herlev")
    (tmp_path / "other.json").write_text(json.dumps(other))
    given = [str(reports / "a") if w == "A" else w if w[0] == "-" else str(tmp_path / w) for w in words]
    assert main(["probe", "--compare", *given, f"--out={tmp_path / 'out'}"]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- the schema -------------------------------------------------------------------------------------------------

TYPES = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip
CHECKED = {
    "$schema", "$ref", "$defs", "title", "description", "type", "const", "enum", "required", "properties",
    "additionalProperties", "items", "minItems", "maxItems", "minimum", "maximum", "pattern",
}  # fmt: skip


def faults(value: Any, schema: dict[str, Any], at: str = "") -> list[str]:
    """What JSON Schema says against a value: the keywords that results.schema.json uses, and no others."""
    assert set(schema) <= CHECKED, f"{at}: a keyword that this does not check"
    if "$ref" in schema:
        return faults(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], at)
    kinds = schema.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    truth_is_no_number = isinstance(value, bool) and "boolean" not in kinds
    if truth_is_no_number or not isinstance(value, tuple(t for k in kinds for t in np.ravel(TYPES[k]))):
        return [f"{at}: not of type {kinds}"]
    found = []
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        found.append(f"{at}: {value!r} is not allowed")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{at}: {value!r} is not of the pattern")
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{at}: {value} is out of range")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{at}: {len(value)} items")
        found += [f for i, item in enumerate(value) for f in faults(item, schema.get("items", {}), f"{at}/{i}")]
    if isinstance(value, dict):
        found += [f"{at}: no {key}" for key in schema.get("required", []) if key not in value]
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        if others is False:
            found += [f"{at}: {key} is not known" for key in value.keys() - known.keys()]
            others = {}
        found += [f for key, item in value.items() for f in faults(item, known.get(key, others), f"{at}/{key}")]
    return found


def test_results_json_is_what_its_schema_says(reports: Path) -> None:
    found = json.loads((reports / "both" / "results.json").read_text())
    assert faults(found, SCHEMA) == []
    assert set(found) == set(SCHEMA["properties"]) == set(SCHEMA["required"])
    assert found["differences"], "rows to check"
    for spoil in (
        lambda f: f.update(schema=2),
        lambda f: f.pop("protocols"),
        lambda f: f["scores"][0].update(k="5"),
        lambda f: f["scores"][0]["weighted_f1"].update(mean=61.5),
        lambda f: f["protocols"][0].update(splits="random"),
        lambda f: f["protocols"][0]["weighted_f1"].update(interval_95=[0.5]),
        lambda f: f["sets"]["herlev"].update(sha256="?"),
    ):
        spoilt = json.loads(json.dumps(found))
        spoil(spoilt)
        assert len(faults(spoilt, SCHEMA)) == 1


def test_the_checksum_of_a_set_tells_cells_classes_and_pictures(reports: Path) -> None:
    from papsmear.probes.cache import set_checksum
    from papsmear.probes.datasets import CellSet

    image = np.zeros((2, 2, 3), np.uint8)
    cells = CellSet("mine", HERLEV[:2], ("a", "b"), (image, image + 1), np.array([0, 1]), {})
    pictures = np.array([0, 1])
    told = {
        set_checksum(cells, pictures),
        set_checksum(cells, None),
        set_checksum(cells, np.array([0, 0])),
        set_checksum(CellSet("mine", HERLEV[:2], ("a", "b"), (image, image), np.array([0, 1]), {}), pictures),
        set_checksum(CellSet("mine", HERLEV[1:3], ("a", "b"), cells.images, cells.labels, {}), pictures),
        set_checksum(CellSet("mine", HERLEV[:2], ("a", "b"), cells.images, np.array([1, 0]), {}), pictures),
    }
    assert len(told) == 6
    other_names = CellSet("other", HERLEV[:2], ("x", "y"), cells.images, cells.labels, {})
    assert set_checksum(other_names, pictures) == set_checksum(cells, pictures)
