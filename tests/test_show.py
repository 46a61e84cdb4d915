"""`papsmear show-batch` with the very files of trainings: which tiles, which views, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from papsmear.cli import main
from papsmear.ssl.data import TileData

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs" / "ssl").glob("*.yaml"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """Twelve tiles of 48 px."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    low = rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    write_shards(folder / "shards", "s1", list(low.repeat(8, axis=1).repeat(8, axis=2)))
    (folder / "slides.csv").write_text("slide_id,path\ns1,a\n")
    return folder


def sheet_of(out: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB), np.uint8)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_sheet_shows_what_the_first_steps_see(cohort: Path, tmp_path: Path, file: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    data = f"--data.shards={cohort}/shards --data.slides={cohort}/slides.csv --data.batch_size=2 --data.crop_px=64"
    assert main(f"show-batch -c {file} {data} --out={out} --count=3 --data.turns=true".split()) == 0
    sheet = sheet_of(out)

    trained = TileData(cohort / "shards", cohort / "slides.csv", batch_size=2, workers=0, crop_px=64, turns=True)
    trained.setup("fit")
    batches = [views.numpy() for (views,) in trained.loader()]
    row, left = sheet.shape[0] // 3, 48 + 4
    assert sheet.shape[1] == left + 2 * (64 + 4)
    for number, views in enumerate([*batches[0], batches[1][0]]):
        for view, x in zip(views, (left, left + 68), strict=True):
            np.testing.assert_array_equal(sheet[row * number + 16 : row * number + 80, x : x + 64], view)
    assert (sheet[:16, :48] < 128).any(), "a caption"


def test_local_views_stand_beside_the_global_ones(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"batch_size": 2, "crop_px": 64, "local_crops": 3, "local_crop_px": 32}
    words = [f"--data.{key}={value}" for key, value in {"shards": cohort / "shards", **more}.items()]
    out = tmp_path / "sheet.png"
    assert main(["show-batch", *words, f"--data.slides={cohort}/slides.csv", f"--out={out}", "--count=2"]) == 0
    assert "2 tiles with 2 views of 64 px and 3 views of 32 px each" in capsys.readouterr().err
    sheet = sheet_of(out)
    trained = TileData(cohort / "shards", cohort / "slides.csv", workers=0, **more)
    trained.setup("fit")
    local = next(iter(trained.loader()))[1].numpy()
    row, left = sheet.shape[0] // 2, 48 + 4 + 2 * (64 + 4)
    for number, views in enumerate(local):
        for view, x in zip(views, range(left, left + 3 * 36, 36), strict=True):
            np.testing.assert_array_equal(sheet[row * number + 16 : row * number + 48, x : x + 32], view)


def test_what_cannot_be_shown_is_said(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"show-batch --data.shards={cohort}/shards --data.slides={cohort}/slides.csv --data.batch_size=2"
    for more, said in (("--count=0", "--count=0: give 1 or more"), ("--out=a.jpg", "--out=a.jpg: the sheet is a PNG")):
        assert main([*words.split(), more]) == 2
        assert said in capsys.readouterr().err
    assert main(["show-batch", "--data.shards=nowhere", f"--data.slides={cohort}/slides.csv"]) == 2
    assert "nowhere: no tiled slides in it" in capsys.readouterr().err
