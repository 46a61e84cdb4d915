"""The finetune command: its files, going on after a kill, its page and W&B run, and what it refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import wandb
import yaml
from PIL import Image

from papsmear.cli import main
from papsmear.probes.deeppap import DeepPap
from papsmear.probes.finetune import finetune

FOLDERS = ("carcinoma_in_situ", "light_dysplastic", "normal_columnar", "normal_superficiel")
SHORT = [
    "--encoder=random:test_vit", "--input_px=32", "--device=cpu", "--protocol.folds=2", "--protocol.epochs=8",
    "--protocol.batch_size=8", "--protocol.lr=0.01", "--protocol.abnormal=[4,1]", "--protocol.normal=[4,1]",
    "--protocol.views=[2,1]", "--protocol.crops=1", "--protocol.displacements=[10]",
]  # fmt: skip


def herlev(folder: Path, classes: tuple[str, ...] = FOLDERS, per_class: int = 8, resized: bool = False) -> Path:
    """Cells in the archive's layout with their masks, two of a picture; abnormal nuclei are large."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            size = (90, 90) if resized else (88 + i, 96)
            rgb, mask = np.full((*size, 3), (190, 205, 215), np.uint8), np.full((*size, 3), (255, 0, 0), np.uint8)
            at = tuple(generator.integers(40, 50, 2).tolist())
            cv2.circle(mask, at, 36, (0, 0, 128), -1)
            for picture, colour in ((rgb, (90, 70, 130 - 20 * label)), (mask, (0, 0, 255))):
                cv2.circle(picture, at, 8 if name.startswith("normal") else 26, colour, -1)
            stem = folder / name / f"{label}{i // 2:02}-9-{i:03}"
            Image.fromarray(rgb).save(f"{stem}.BMP")
            Image.fromarray(mask).save(f"{stem}-d.bmp")
    return folder


def run(out: Path, cells: Path, *more: str) -> int:
    return main(["finetune", "-c", "configs/finetune.yaml", f"--set.herlev={cells}", f"--out={out}", *SHORT, *more])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, int]]:
    """The command run once: its output folder, the set, and its status."""
    folder = tmp_path_factory.mktemp("finetune")
    cells = herlev(folder / "herlev")
    (cells / FOLDERS[0] / "000-9-009.BMP").write_bytes((cells / FOLDERS[0] / "000-9-000.BMP").read_bytes())
    yield folder / "out", cells, run(folder / "out", cells)
    wandb.teardown()


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "finetune.json").read_text())
    return found


def test_it_learns_and_both_kinds_of_folds_are_labelled(made: tuple[Path, Path, int]) -> None:
    out, _, status = made
    found = results(out)
    assert status == 1, "one cell has no mask"
    assert found["set"]["damaged"] == {"carcinoma_in_situ/000-9-009.BMP": "no mask"}
    assert not found["set"]["without_scale"]
    marks = {kind: (of["as_published"], of["honest"]) for kind, of in found["folds"].items()}
    assert marks == {"ungrouped": (True, False), "grouped": (False, True)}
    for of in found["folds"].values():
        figures = {name: value["mean"] for name, value in of["binary"]["figures"].items()}
        assert list(figures) == ["sensitivity", "specificity", "accuracy", "H-mean", "F", "AUC"]
        assert figures["AUC"] > 0.85
        assert [row["cells"] for row in of["binary"]["correct"]] == [8, 8, 8, 8]
        right = sum(row["correct"] for row in of["binary"]["correct"])
        assert right == pytest.approx(32 * figures["accuracy"]), "two folds of equal size"
        assert of["binary"]["accuracy_by_px"]["0"] == of["binary"]["figures"]["accuracy"]
        assert set(of["binary"]["accuracy_by_px"]) == {"0", "10"}
        confusion = np.array(of["classes"]["confusion"])
        assert of["classes"]["error"]["mean"] == pytest.approx(1 - np.trace(confusion) / 32)
        assert confusion.sum(axis=1).tolist() == [8] * 4
        assert {task: np.shape(losses) for task, losses in of["losses"].items()} == {
            "binary": (2, 8), "classes": (2, 8)
        }  # fmt: skip
    assert found["departures"]["epochs"] == [8, 30]
    assert found["published"]["figures"]["accuracy"] == 98.3


def test_grouped_folds_keep_pictures_apart(made: tuple[Path, Path, int]) -> None:
    """By the files of the finished folds: two cells of a picture are tested in one fold, or they need not be."""
    out, cells, _ = made
    names = [f.stem for name in FOLDERS for f in sorted((cells / name).glob("*.BMP")) if f.stem != "000-9-009"]
    for kind, apart in (("grouped", True), ("ungrouped", False)):
        pictures = []
        for fold in (1, 2):
            test = json.loads((out / "folds" / f"{kind}-binary-{fold}.json").read_text())["test"]
            pictures.append({names[i].partition("-")[0] for i in test})
        assert pictures[0].isdisjoint(pictures[1]) == apart


def test_a_run_that_was_killed_goes_on_to_the_same_figures(
    made: tuple[Path, Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folds that were finished are kept; one that was cut off starts anew."""
    out = tmp_path / "out"
    shutil.copytree(made[0] / "folds", out / "folds")
    for lost in ("ungrouped-classes-2", "grouped-binary-1"):
        (out / "folds" / f"{lost}.json").rename(out / "folds" / f".{lost}.json.part")
    kept = {file: file.stat().st_mtime_ns for file in (out / "folds").glob("*.json")}
    assert run(out, made[1]) == 1
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert capsys.readouterr().err.count("kept from an earlier start") == len(kept) == 6
    assert results(out) == results(made[0])
    assert not list((out / "folds").glob(".*"))
    wandb.teardown()


def test_folds_of_another_run_are_refused(made: tuple[Path, Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    before = (made[0] / "finetune.json").read_bytes()
    assert run(made[0], made[1], "--seed=1", "--protocol.lr=0.2") == 2
    error = capsys.readouterr().err
    assert "this fold was made with another protocol.lr, seed; give another --out" in error
    assert len(error.splitlines()) == 1
    assert (made[0] / "finetune.json").read_bytes() == before


def test_the_page_is_whole_by_itself_and_tells_what_it_shows(made: tuple[Path, Path, int]) -> None:
    page = (made[0] / "finetune.html").read_text()
    assert "https://" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for text in (
        "as published</span>", "honest</span>", "Not the published protocol in every number", "epochs 8 (published 30)",
        "The public set has 917 cells", "000-9-009.BMP", "98.2", "8 of 8", "random:test_vit", "Research use only",
    ):  # fmt: skip
        assert text in page, text
    assert "No scale" not in page
    assert str(made[1]) not in page, "a path of the user's machine"


def test_the_run_is_logged_and_its_configuration_runs_again(made: tuple[Path, Path, int], tmp_path: Path) -> None:
    out, cells, _ = made
    (files,) = out.glob("wandb/offline-run-*/files")
    tables = {file.name.partition("_")[0] for file in (files / "media" / "table").iterdir()}
    assert {"figures", "accuracy", "correct"} <= tables
    assert list((files / "media" / "images").glob("patches*.png"))
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["set"] == {"herlev": str(cells)}
    shutil.copytree(out / "folds", tmp_path / "out" / "folds")
    assert main(["finetune", "-c", str(out / "config.yaml"), f"--out={tmp_path / 'out'}"]) == 1
    assert results(tmp_path / "out") == results(out)
    wandb.teardown()


def test_a_copy_without_scale_and_without_pictures_says_so(tmp_path: Path) -> None:
    cells = herlev(tmp_path / "herlev", (FOLDERS[0], FOLDERS[3]), 4, resized=True)
    for i, file in enumerate(sorted(cells.rglob("*.BMP"))):
        file.with_name(f"{file.stem}-d.bmp").rename(file.with_name(f"cell{i}-d.bmp"))
        file.rename(file.with_name(f"cell{i}.BMP"))
    plan = DeepPap(("binary",), 2, 1, 16, 0.1, (1, 1), (1, 1), (1, 1), 1, ())
    assert finetune(tmp_path / "out", "random:test_vit", {"herlev": cells}, plan, input_px=32, device="cpu") == 0
    found = results(tmp_path / "out")
    assert found["set"]["without_scale"]
    assert list(found["folds"]) == ["ungrouped"]
    assert "classes" not in found["folds"]["ungrouped"]
    page = (tmp_path / "out" / "finetune.html").read_text()
    assert "No scale" in page
    assert "No folds by source picture" in page
    wandb.teardown()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set={}"], "--set: none given; give one set, --set.herlev=DIR"),
        (["--set.hurlev=x"], "--set: herlev, hurlev given; give one set"),
        (["--protocol.folds=1"], "--protocol.folds: 1: give at least 2"),
        (["--protocol.folds=9"], "'carcinoma in situ' has 8, 'light dysplastic' has 8"),
        (["--protocol.normal=[2,0]"], "--protocol.normal: 0: give at least 1"),
        (["--protocol.crops=11"], "--protocol.crops: 11: give 1 to 10"),
        (["--protocol.lr=0"], "--protocol.lr: 0.0: give more than 0"),
        (["--protocol.tasks=[]"], "--protocol.tasks: none given"),
        (["--protocol.displacements=[0,1]"], "--protocol.displacements: [0, 1]: give pixels from 1 on"),
        (["--encoder=nonsense"], "encoder 'nonsense': no such name"),
        (["--input_px=40"], "--input_px: random:test_vit cannot take 40 px; give a multiple of 16"),
        (["--encoder=random:resnet10t", "--input_px=8"], "--input_px: random:resnet10t cannot take 8 px"),
        (["no masks"], "Herlev: no cell has a mask that shows its nucleus (carcinoma_in_situ/000-9-000.BMP: no"),
        (["abnormal alone"], "Herlev: all cells are abnormal; give both"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    cells = herlev(tmp_path / "herlev", FOLDERS[:2] if options == ["abnormal alone"] else FOLDERS)
    for mask in cells.rglob("*-d.bmp") if options == ["no masks"] else ():
        mask.unlink()
    assert run(tmp_path / "out", cells, *(option for option in options if option.startswith("--"))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_real_cells_are_told_apart(shared_data: Path, tmp_path: Path) -> None:
    """A glimpse of docs/benchmarks.md: 12 light dysplastic and 12 superficial cells, real weights, two epochs."""
    for name in ("light_dysplastic", "normal_superficiel"):
        for part in ("images", "masks"):
            (tmp_path / "herlev" / part / name).mkdir(parents=True)
            for file in sorted((shared_data / "herlev" / part / name).iterdir())[:12]:
                shutil.copy(file, tmp_path / "herlev" / part / name)
    weights = shared_data / "weights" / "efficientnet_lite0_imagenet.safetensors"
    plan = DeepPap(("binary",), 2, 2, 8, 0.05, (4, 1), (4, 1), (2, 1), 1, ())
    assert finetune(tmp_path / "out", str(weights), {"herlev": tmp_path / "herlev"}, plan, 64, device="cpu") == 0
    found = results(tmp_path / "out")["folds"]["ungrouped"]["binary"]["figures"]
    assert found["AUC"]["mean"] > 0.9
    assert results(tmp_path / "out")["set"]["without_scale"]
    page = (tmp_path / "out" / "finetune.html").read_text()
    assert "efficientnet_lite0_imagenet, fine-tuned on 24 Herlev cells" in page
    assert str(weights.parent) not in page, "a path of the user's machine"
    wandb.teardown()
