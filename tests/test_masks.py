"""SIPaKMeD's outlines from end to end: what `papsmear data` says, patches round the nucleus, cells pasted on tiles."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import wandb
from PIL import Image

from papsmear.cli import main
from papsmear.errors import UsageError
from papsmear.probes.classes import SETS
from papsmear.probes.datasets import read_cells
from papsmear.probes.labelled import labelled_cells
from papsmear.probes.nuclei import read_nuclei, without_scale
from papsmear.probes.pasting import LOOSE_PX, METHODS, Method, Pasting
from papsmear.probes.patches import Views
from papsmear.probes.sources import SetSource

FOLDERS = ("im_Dyskeratotic", "im_Koilocytotic", "im_Metaplastic", "im_Parabasal", "im_Superficial-Intermediate")
PER_CLASS = 4
GLASS, BODY = (200, 205, 215), (160, 120, 150)
DAT = "im_Dyskeratotic/im_Dyskeratotic/CROPPED"


def ring(centre: tuple[float, float], radius: float) -> str:
    """An outline as the set's files hold it."""
    angle = np.arange(0, 2 * np.pi, 0.1)
    x, y = centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)
    return "".join(f"{a:.5f},{b:.5f}\r\n" for a, b in zip(x, y, strict=True))


def sipakmed(folder: Path) -> Path:
    """The archive's layout: four cells a class, two of a picture, each with its outlines; abnormal nuclei are large.

    The fields of view lie one folder up with outlines of theirs.
    """
    generator = np.random.default_rng(0)
    for label, name in enumerate(FOLDERS):
        home = folder / name / name
        (home / "CROPPED").mkdir(parents=True)
        for i in range(PER_CLASS):
            rgb = np.clip(np.array(GLASS) + generator.normal(0, 3, (92 + i, 100 + label, 3)), 0, 255).astype(np.uint8)
            centre, radius = tuple(generator.uniform(44, 52, 2).tolist()), 20.5 if label < 2 else 8.5
            middle = (centre[0] + 7, centre[1] - 5)
            cv2.circle(rgb, (round(centre[0]), round(centre[1])), 36, BODY, -1)
            cv2.circle(rgb, (round(middle[0]), round(middle[1])), round(radius), (60, 40, 110 + 20 * label), -1)
            cell = home / "CROPPED" / f"{1 + i // 2:03}_{1 + i % 2:02}.bmp"
            Image.fromarray(rgb).save(cell)
            cell.with_name(f"{cell.stem}_cyt.dat").write_text(ring(centre, 36))
            cell.with_name(f"{cell.stem}_nuc.dat").write_text(ring(middle, radius))
        Image.new("RGB", (300, 200)).save(home / "001.bmp")
        (home / "001_cyt01.dat").write_text(ring((80, 80), 20))
        (home / "001_nuc01.dat").write_text("no outline\n")
    return folder


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of which the public one has as many cells."""
    monkeypatch.setitem(SETS, "sipakmed", replace(SETS["sipakmed"], cells=(PER_CLASS,) * 5))
    return sipakmed(tmp_path / "sipakmed")


def test_data_counts_the_cells_that_have_outlines(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "sipakmed", str(cells)]) == 0
    assert "masks: 20 of 20 (outlines)" in capsys.readouterr().out.splitlines()
    for file in cells.rglob("*_*.dat"):
        file.rename(file.with_name(file.name.upper()))
    assert main(["data", "sipakmed", str(cells)]) == 0, "capitals"
    assert "masks: 20 of 20 (outlines)" in capsys.readouterr().out.splitlines()
    for file in cells.rglob("*.DAT"):
        file.unlink()
    assert main(["data", "sipakmed", str(cells)]) == 0
    assert "masks: none" in capsys.readouterr().out.splitlines()


def test_data_names_every_cell_whose_outlines_are_not_right(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cells / DAT / "001_01_nuc.dat").unlink()
    (cells / DAT / "001_02_cyt.dat").unlink()
    (cells / DAT / "002_01_cyt.dat").write_text("1,2\n3,4\n5\n")
    (cells / DAT / "002_02_nuc.dat").write_text(ring((2, 2), 3))
    assert main(["data", "sipakmed", str(cells)]) == 1
    printed = capsys.readouterr()
    assert "masks: 19 of 20 (outlines)" in printed.out.splitlines()
    assert [line for line in printed.err.splitlines() if not line.startswith("nearly equal")] == [
        f"wrong: {DAT}/001_01.bmp: its mask 001_01_cyt.dat has no outline of the nucleus beside it",
        f"wrong: {DAT}/001_02.bmp: has no mask",
        f"wrong: {DAT}/002_01.bmp: its mask 002_01_cyt.dat, line 3: '5' is not a point 'x,y' in px",
        f"wrong: {DAT}/002_02.bmp: its mask 002_02_nuc.dat lies outside the cell",
        "SIPaKMeD: 4 wrong",
    ]


def test_patches_are_centred_on_the_outlined_nucleus(cells: Path) -> None:
    """In the upright patch, the middle of what has the nucleus's colour is the patch's."""
    found = read_cells("sipakmed", cells)
    assert not without_scale(found)
    nuclei, problems = read_nuclei(found)
    assert not problems
    n = len(found.paths)
    blank = Views(np.arange(n), np.zeros(n), np.zeros((n, 2)), np.zeros((n, 2)), np.zeros(n, np.bool_)).upright()
    for row, (image, nucleus) in enumerate(zip(found.images, nuclei, strict=True)):
        assert nucleus is not None
        assert nucleus.patch_px == 128
        patch = blank.cut(row, image, nucleus, 227).astype(int)
        dark = patch[:, :, 2] - patch[:, :, 1] > 50
        # The drawn disc lies on whole pixels, up to half of one beside its outline; 2 pixels of the view to one.
        assert np.argwhere(dark).mean(0) == pytest.approx((113, 113), abs=1.2)


def test_it_is_fine_tuned_on_without_the_cells_of_neither_side(
    cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cells / DAT / "001_01_nuc.dat").unlink()
    out = tmp_path / "out"
    status = main([
        "finetune", "-c", "configs/finetune.yaml", f"--set.sipakmed={cells}", f"--out={out}", "--device=cpu",
        "--encoder=random:test_vit", "--input_px=32", "--protocol.folds=2", "--protocol.epochs=1",
        "--protocol.batch_size=8", "--protocol.abnormal=[1,1]", "--protocol.normal=[1,1]", "--protocol.views=[1,1]",
        "--protocol.crops=1", "--protocol.displacements=[10]",
    ])  # fmt: skip
    wandb.teardown()
    assert status == 1, "one cell has no nucleus"
    why = "its mask 001_01_cyt.dat has no outline of the nucleus beside it"
    found = json.loads((out / "finetune.json").read_text())
    assert found["set"]["damaged"] == {f"{DAT}/001_01.bmp": why}
    assert found["set"]["images"] == 4 * PER_CLASS - 1
    rows = [(row["class"], row["side"], row["cells"]) for row in found["folds"]["grouped"]["binary"]["correct"]]
    assert rows == [("D", "positive", 3), ("K", "positive", 4), ("P", "negative", 4), ("SI", "negative", 4)]
    errors = capsys.readouterr().err.splitlines()
    assert "SIPaKMeD: 4 metaplastic cells are left out: they are neither normal nor abnormal" in errors
    assert f"SIPaKMeD: {DAT}/001_01.bmp is left out: {why}" in errors
    page = (out / "finetune.html").read_text()
    assert "The published figures are of Herlev cells" in page
    assert str(tmp_path) not in page, "a path of the user's machine"


@pytest.mark.parametrize("method", METHODS)
def test_only_the_pixels_of_the_cell_are_pasted(cells: Path, method: Method) -> None:
    """At the cells' own µm/px; `poisson` takes a loose selection."""
    found = labelled_cells(read_cells("sipakmed", SetSource(cells, mpp=0.5)), 0.5, masked=True)
    assert found.masked
    assert [cell.label for cell in found.cells] == [1] * 2 * PER_CLASS + [0] * 2 * PER_CLASS
    canvas = np.random.default_rng(3).integers(1, 256, (160, 170, 3)).astype(np.uint8)
    for label in (0, 1):
        pasting = Pasting(found.cells, method, probability=1)
        tile = pasting(canvas, label, np.random.default_rng(label))
        rng = np.random.default_rng(label)
        rng.random()
        cell, (x, y), _ = pasting.draw(canvas, label, rng)
        assert cell.inside is not None
        assert cell.inside.sum() == pytest.approx(np.pi * 36**2, rel=0.01)
        inside = np.zeros(canvas.shape[:2], np.bool_)
        inside[y : y + cell.image.shape[0], x : x + cell.image.shape[1]] = cell.inside
        changed = (tile != canvas).any(-1)
        assert (changed & inside).sum() > 0.99 * inside.sum()
        loose = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * LOOSE_PX + 1,) * 2)
        allowed = cv2.dilate(inside.astype(np.uint8), loose) > 0 if method == "poisson" else inside
        assert not (changed & ~allowed).any()
        if method == "paste":
            assert (tile[inside] == cell.image[cell.inside]).all()


def test_a_set_without_all_outlines_is_refused_where_they_are_needed(cells: Path) -> None:
    (cells / DAT / "001_01_nuc.dat").unlink()
    assert labelled_cells(read_cells("sipakmed", SetSource(cells, mpp=0.5)), 0.5, masked=True).masked, "no nucleus"
    file = cells / DAT / "001_02_cyt.dat"
    file.write_text("")
    with pytest.raises(UsageError, match=r"001_02.bmp: its mask 001_02_cyt.dat is empty; an outline has .*; mend it"):
        labelled_cells(read_cells("sipakmed", SetSource(cells, mpp=0.5)), 0.5, masked=True)
    file.unlink()
    with pytest.raises(UsageError, match=r"1 of 20 .* no mask, .*001_02.bmp; .* \(<name>_cyt.dat and <name>_nuc.dat"):
        labelled_cells(read_cells("sipakmed", SetSource(cells, mpp=0.5)), 0.5, masked=True)
    for outline in cells.rglob("*.dat"):
        outline.unlink()
    with pytest.raises(UsageError, match=r"SIPaKMeD: no cell has a mask that shows its nucleus .*001_01.bmp: no mask"):
        read_nuclei(read_cells("sipakmed", cells))
