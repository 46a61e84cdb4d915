"""`papsmear phantom`: the cohort's files, its truth, and that the same options give the same bytes."""

import errno
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papsmear.cli import main
from papsmear.cohort import read_slides
from papsmear.errors import UsageError
from papsmear.files import sha256
from papsmear.tiling.phantom import cohort
from papsmear.tiling.phantom.cohort import phantom
from papsmear.tiling.phantom.roster import draw_roster

OPTIONS: dict[str, Any] = {
    "slides": 6, "prevalence": 0.5, "diameter_mm": 0.3, "mpp": 0.5, "folds": 2, "cell_sets": 2, "seed": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    phantom(out, **OPTIONS, workers=1)
    return out


def _tree(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _features(out: Path, slide_id: str) -> list[dict[str, Any]]:
    collection = json.loads((out / "annotations" / f"{slide_id}.geojson").read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    features: list[dict[str, Any]] = collection["features"]
    return features


def test_slides_csv_is_what_the_other_stages_read(made: Path) -> None:
    slides = read_slides(made / "slides.csv")
    assert [slide.slide_id for slide in slides] == [f"phantom_{number:04d}" for number in range(1, 7)]
    assert sum(slide.label or 0 for slide in slides) == 3
    assert {slide.fold for slide in slides} == {0, 1}
    assert list(slides[0].row) == [
        "slide_id", "path", "label", "bethesda", "patient_id", "fold", "site", "scanner", "annotations",
    ]  # fmt: skip
    for slide in slides:
        assert (made / slide.row["annotations"]).is_file()
        with openslide.OpenSlide(slide.path) as opened:
            assert opened.properties["openslide.vendor"] == "aperio"
            assert float(opened.properties["openslide.mpp-x"]) == 0.5
            assert opened.properties["openslide.objective-power"] == "20"
            assert opened.level_downsamples == (1, 4, 16)


def test_cell_sets_have_the_public_layouts(made: Path) -> None:
    assert len(list((made / "cells" / "herlev").glob("*/*-d.bmp"))) == 7 * 2
    assert len(list((made / "cells" / "sipakmed").glob("im_*/im_*/CROPPED/*.bmp"))) == 5 * 2


def test_names_stand_in_the_slides_and_nowhere_else(made: Path) -> None:
    text = "".join(
        file.read_text(encoding="utf-8") for file in made.rglob("*") if file.suffix in (".csv", ".json", ".geojson")
    )
    for entry in draw_roster(6, 0.5, 3, 2, seed=1):
        raw = (made / "slides" / f"{entry.slide_id}.svs").read_bytes()
        for secret in vars(entry.identity).values():
            assert secret.encode() in raw
            assert secret not in text


def test_annotations_lie_on_dark_nuclei_of_positive_slides(made: Path) -> None:
    for slide in read_slides(made / "slides.csv"):
        features = _features(made, slide.slide_id)
        assert bool(features) == (slide.label == 1)
        with openslide.OpenSlide(slide.path) as opened:
            rgb = np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        for feature in features:
            ring = np.array(feature["geometry"]["coordinates"][0])
            assert feature["geometry"]["type"] == "Polygon"
            assert (ring[0] == ring[-1]).all()
            assert feature["properties"]["objectType"] == "annotation"
            assert set(feature["properties"]["classification"]) == {"name", "color"}
            inside = np.zeros(grey.shape, np.uint8)
            cv2.fillPoly(inside, [ring.astype(np.int32)], 1)
            assert np.quantile(grey[inside == 1], 0.05) < np.median(grey[:20]) - 60


def test_same_options_same_bytes_whatever_the_workers(made: Path, tmp_path: Path) -> None:
    phantom(tmp_path / "again", **OPTIONS, workers=2)
    assert _tree(tmp_path / "again") == _tree(made)


def test_another_seed_gives_other_slides(made: Path, tmp_path: Path) -> None:
    phantom(tmp_path / "other", **{**OPTIONS, "seed": 2, "slides": 2, "cell_sets": 0}, workers=1)
    other, first = _tree(tmp_path / "other"), _tree(made)
    assert not (tmp_path / "other" / "cells").exists()
    assert not {h for n, h in other.items() if n.endswith(".svs")} & set(first.values())


def test_stopped_run_goes_on_where_it_stopped(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    shutil.copytree(made, out)
    (out / "slides.csv").unlink()
    (out / "slides" / "phantom_0002.svs").unlink()
    (out / "annotations" / "phantom_0003.geojson").unlink()
    times = {file.name: file.stat().st_mtime_ns for file in (out / "slides").iterdir()}
    phantom(out, **OPTIONS, workers=1)
    assert _tree(out) == _tree(made)
    for name, time in times.items():
        assert (out / "slides" / name).stat().st_mtime_ns == time


def test_other_settings_in_the_same_folder(made: Path) -> None:
    before = _tree(made)
    with pytest.raises(UsageError, match="holds a cohort made with slides=6, seed=1; use the same"):
        phantom(made, **{**OPTIONS, "slides": 7, "seed": 2})
    assert _tree(made) == before


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("slide_id,path\n", encoding="utf-8")
    with pytest.raises(UsageError, match="something else"):
        phantom(tmp_path, **OPTIONS)
    with pytest.raises(UsageError, match="is a file"):
        phantom(tmp_path / "slides.csv", **OPTIONS)


def test_impossible_values_are_listed_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["phantom", str(tmp_path / "x"), "--slides=0", "--prevalence=1.5", "--planes=2", "--mpp=9", "--abnormal=0"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in ("--slides=0", "--prevalence=1.5", "--planes=2", "--mpp=9", "--abnormal=0"):
        assert word in error
    assert not (tmp_path / "x").exists()


def test_a_full_disk_keeps_what_is_done(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "cohort"
    shutil.copytree(made, out)
    (out / "slides" / "phantom_0004.svs").unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "write_svs", full)
        with pytest.raises(OSError, match="No space left on device"):
            phantom(out, **OPTIONS, workers=1)
    phantom(out, **OPTIONS, workers=1)
    assert _tree(out) == _tree(made)


def test_planes_are_further_files(tmp_path: Path) -> None:
    options = {**OPTIONS, "slides": 1, "prevalence": 1.0, "planes": 3, "cell_sets": 0, "folds": 1, "diameter_mm": 0.2}
    phantom(tmp_path / "z", **options, workers=1)
    (row,) = read_slides(tmp_path / "z" / "slides.csv")
    pattern = row.row["z_planes"]
    files = [tmp_path / "z" / pattern.format(z=z) for z in (-1, 1)]
    pictures = []
    for file in (row.path, *files):
        with openslide.OpenSlide(file) as opened:
            pictures.append(np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("L"), float))
    assert pictures[0].shape == pictures[1].shape == pictures[2].shape
    assert not np.array_equal(pictures[1], pictures[2])
    blurred = [cv2.GaussianBlur(picture, (0, 0), 8) for picture in pictures]
    assert np.abs(blurred[1] - blurred[2]).mean() < 1  # the same cells in the same places


@pytest.mark.parametrize("name", ["herlev", "sipakmed"])
def test_folds_use_cells_of_different_source_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    phantom(tmp_path / "sets", **{**OPTIONS, "slides": 1, "prevalence": 0.0, "diameter_mm": 0.1, "cell_sets": 5})
    used: dict[int, set[str]] = defaultdict(set)
    write = cohort._write_slide

    def spy(job: Any, **rest: Any) -> None:
        used[job[0].fold] |= {cell.source for cell in job[1]}
        write(job, **rest)

    monkeypatch.setattr(cohort, "_write_slide", spy)
    options = {**OPTIONS, "slides": 4, "cell_sets": 0}
    phantom(tmp_path / "real", **options, cells=tmp_path / "sets" / "cells" / name, workers=1)
    assert set(used) == {0, 1}
    assert not used[0] & used[1]
    kinds = {
        feature["properties"]["classification"]["name"]
        for slide in read_slides(tmp_path / "real" / "slides.csv")
        for feature in _features(tmp_path / "real", slide.slide_id)
    }
    assert kinds
    assert {kind.startswith("im_") for kind in kinds} == {name == "sipakmed"}
    assert str(tmp_path) not in (tmp_path / "real" / "phantom.json").read_text(encoding="utf-8")


@given(
    slides=st.integers(1, 60),
    prevalence=st.floats(0, 1),
    sites=st.integers(1, 5),
    folds=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_roster(slides: int, prevalence: float, sites: int, folds: int, seed: int) -> None:
    roster = draw_roster(slides, prevalence, sites, folds, seed)
    assert len({entry.slide_id for entry in roster}) == len({entry.seed for entry in roster}) == slides
    positive = sum(entry.label for entry in roster)
    assert abs(positive - slides * prevalence) <= 1
    if 0 < prevalence < 1 and slides > 1:
        assert 0 < positive < slides
    by_patient = defaultdict(set)
    for entry in roster:
        by_patient[entry.patient_id].add((entry.fold, entry.label, entry.site, entry.identity.patient))
    assert all(len(found) == 1 for found in by_patient.values())
    for label, count in ((1, positive), (0, slides - positive)):
        in_fold = [sum(e.fold == fold and e.label == label for e in roster) for fold in range(folds)]
        assert max(in_fold) - min(in_fold) <= 2
        assert min(in_fold) >= 1 or count < folds
    if slides >= 24:
        assert len(by_patient) < slides or folds > 5
    assert draw_roster(slides, prevalence, sites, folds, seed) == roster
