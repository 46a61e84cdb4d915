"""The Bethesda class of a phantom slide, by hand and in the list of a cohort of many abnormal cells."""

import json
from pathlib import Path

import pytest

from papsmear.cohort import read_slides
from papsmear.tiling.phantom.bethesda import bethesda_class
from papsmear.tiling.phantom.cohort import phantom

MILD, KOILOCYTE, SEVERE, IN_SITU = "light_dysplastic", "im_Koilocytotic", "severe_dysplastic", "carcinoma_in_situ"


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], "NILM"),
        ([MILD], "ASC-US"),
        ([KOILOCYTE] * 6 + ["moderate_dysplastic"] * 3, "ASC-US"),
        ([MILD] * 6 + [KOILOCYTE] * 3 + ["moderate_dysplastic"], "LSIL"),
        ([SEVERE] * 9, "ASC-H"),
        (["im_Dyskeratotic"], "ASC-H"),
        ([MILD] * 5 + [SEVERE] * 5, "HSIL"),
        ([IN_SITU] * 300, "HSIL"),
    ],
)
def test_class_by_hand(kinds: list[str], expected: str) -> None:
    assert bethesda_class(kinds) == expected


def test_a_cohort_has_the_classes_of_its_cells(tmp_path: Path) -> None:
    """Seed 2 draws lesions of either grade; a slide with every cell abnormal has enough of them, one of 0.1 mm few."""
    for name, diameter_mm, classes in (("many", 0.3, ("LSIL", "HSIL")), ("few", 0.1, ("ASC-US", "ASC-H"))):
        out = tmp_path / name
        phantom(out, 6, 0.7, 1.0, diameter_mm, mpp=0.5, sites=1, folds=1, cell_sets=0, seed=2, workers=1)
        found = set()
        for slide in read_slides(out / "slides.csv"):
            features = json.loads((out / slide.row["annotations"]).read_text(encoding="utf-8"))["features"]
            kinds = [feature["properties"]["classification"]["name"] for feature in features]
            low = kinds.count(MILD) + kinds.count(KOILOCYTE) > len(kinds) / 2
            assert slide.row["bethesda"] == (classes[0 if low else 1] if slide.label else "NILM")
            found.add(slide.row["bethesda"])
        assert found == {"NILM", *classes}
