"""The C3P command: its ablation against tiles pasted one by one, its files, its leak guard, and what it refuses."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
import wandb
from numpy.typing import NDArray
from PIL import Image

from papsmear.cli import main
from papsmear.cohort import read_slides
from papsmear.probes.ablation import NO_PASTING, PROBABILITIES, VARIANTS, Fold, Variant, ablate, decide
from papsmear.probes.binary import AUC, F1, binary_scores
from papsmear.probes.canvases import draw_canvases, of_fold, read_labelled_tiles
from papsmear.probes.datasets import read_cells
from papsmear.probes.labelled import labelled_cells
from papsmear.probes.pasted import PastedTiles
from papsmear.probes.pasting import METHODS, Pasting
from papsmear.ssl.card import EncoderCard
from papsmear.ssl.encoder import embed_images, export_encoder, load_encoder

KINDS = {"carcinoma_in_situ": (90, 50, 120), "normal_superficiel": (200, 150, 90)}  # positive, negative: their colours
N_CANVASES = 12


def tile(rng: np.random.Generator, kind: str | None) -> NDArray[np.uint8]:
    """Glass with noise, 64 px, and on it a cell of a kind."""
    rgb = np.full((64, 64, 3), 225, np.uint8)
    if kind:
        cv2.circle(rgb, tuple(int(v) for v in rng.integers(16, 48, 2)), 12, KINDS[kind], -1)
    return np.clip(rgb + rng.normal(0, 4, rgb.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """Four slides a fold, two folds: cells in the archive's layout, shards of glass, tiles to test on."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for kind, colour in KINDS.items():
        (folder / "herlev" / kind).mkdir(parents=True)
        for number in range(6):
            image = np.full((60 + number, 64, 3), 215, np.uint8)
            mask = np.full_like(image, (255, 0, 0))
            cv2.circle(image, (32, 30), 26, colour, -1)
            cv2.circle(mask, (32, 30), 26, (0, 0, 128), -1)
            noisy = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "herlev" / kind / f"{number}-1-001.BMP")
            Image.fromarray(mask).save(folder / "herlev" / kind / f"{number}-1-001-d.bmp")
    rows = []
    (folder / "sets").mkdir()
    lines = ["slide_id,path,label,fold"]
    for number in range(8):
        slide_id, label, fold = f"s{number}", number % 2, number // 4
        lines.append(f"{slide_id},gone.svs,{label},{fold}")
        write_shards(folder / "shards", slide_id, [tile(rng, None) for _ in range(10)])
        for i in range(4):
            name = f"{slide_id}_{i}.jpg"
            kind = "carcinoma_in_situ" if label else rng.choice(["normal_superficiel", ""])
            jpeg = simplejpeg.encode_jpeg(tile(rng, str(kind)), quality=90)
            (folder / "sets" / name).write_bytes(jpeg)
            rows.append({"file": name, "slide_id": slide_id, "fold": fold, "class": kind, "label": label, "mpp": 0.5})
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    with (folder / "sets" / "tiles.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def run(cohort: Path, out: Path, *options: str, encoders: str = "random:test_vit") -> int:
    return main([
        "c3p", "-c", "configs/c3p.yaml", f"--encoders={encoders}", f"--cells.herlev={cohort / 'herlev'}",
        f"--shards={cohort / 'shards'}", f"--slides={cohort / 'slides.csv'}",
        f"--tiles={cohort / 'sets' / 'tiles.csv'}", f"--canvases={N_CANVASES}", "--device=cpu", f"--out={out}",
        *options,
    ])  # fmt: skip


def test_the_ablation_is_a_classifier_fitted_on_tiles_pasted_one_by_one(cohort: Path, tmp_path: Path) -> None:
    """Every variant against the plain way: paste with its method and probability, embed, fit, decide, score."""
    slides = {slide.slide_id: slide for slide in read_slides(cohort / "slides.csv", need_files=False)}
    canvases = draw_canvases(cohort / "shards", [s for s in slides.values() if s.fold == 1], N_CANVASES, seed=5)
    tested = of_fold(read_labelled_tiles(cohort / "sets" / "tiles.csv")[0], slides, 0)
    cells = read_cells("herlev", cohort / "herlev")
    pasteable = labelled_cells(cells, 0.5, masked=True).cells
    encoder = load_encoder("random:test_vit", "cpu")
    folds = [Fold(0, canvases, tested)]
    found = ablate(encoder, "e", [cells], pasteable, folds, 7, tmp_path)
    assert list(found) == list(VARIANTS)
    queries = embed_images(encoder, tested.tiles)
    for method in METHODS:
        for probability in PROBABILITIES:
            online = PastedTiles(canvases.tiles, canvases.labels.tolist(), Pasting(pasteable, method, probability), 7)
            features = embed_images(encoder, (online.tile(0, i) for i in range(len(online))))
            c, decisions = decide(features, canvases.labels, canvases.groups(), queries, 7)
            expected = binary_scores(tested.labels, decisions, np.ones((1, len(decisions))))
            outcome = found[Variant(method, probability)]
            assert outcome.picks == (c,)
            assert {name: spread.mean for name, spread in outcome.scores.items()} == pytest.approx(
                {name: values[0] for name, values in expected.items()}
            )
            assert outcome.gain is not None
            assert outcome.gain[0] == pytest.approx(outcome.scores[F1].mean - found[NO_PASTING].scores[F1].mean)
            assert outcome.intervals[F1][0] <= outcome.scores[F1].mean <= outcome.intervals[F1][1]
            assert outcome.gain[1][0] <= outcome.gain[0] <= outcome.gain[1][1]
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 1 + 1 + 1 + len(METHODS), "cells, tiles, bare canvases, and those of each method"
    again = ablate(encoder, "renamed", [cells], pasteable, folds, 7, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files, "embedded once"
    assert again == found


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The command run once, over both folds, with an encoder that cannot be read beside a good one."""
    out = tmp_path_factory.mktemp("made")
    (out / "broken.safetensors").write_bytes(b"cut short")
    status = run(cohort, out, encoders=f"[random:test_vit, {out / 'broken.safetensors'}]")
    assert status == 1
    yield out
    wandb.teardown()


def rows_of(out: Path) -> dict[tuple[str | None, float | None], dict[str, Any]]:
    found = json.loads((out / "c3p.json").read_text())["outcomes"]
    return {(row["method"], row["probability"]): row for row in found}


def test_the_files_hold_the_figures_and_what_they_are_from(made: Path, cohort: Path) -> None:
    found = json.loads((made / "c3p.json").read_text())
    assert found["cells"]["positive"] == found["cells"]["negative"] == 6
    assert list(found["failed"]) == ["broken"]
    for number, fold in enumerate(found["folds"]):
        own = {f"s{i}" for i in range(4 * number, 4 * number + 4)}
        assert set(fold["tiles"]["slides"]) == own
        assert not own & set(fold["canvases"]["slides"]), "canvases of slides outside the tested fold"
        assert fold["canvases"]["positive"] == fold["canvases"]["negative"] == N_CANVASES
        assert fold["tiles"]["positive"] == fold["tiles"]["negative"] == 8
    rows = rows_of(made)
    assert set(rows) == {(None, None), *((m, p) for m in METHODS for p in PROBABILITIES)}
    for row in rows.values():
        assert len(row["c"]) == 2
        for score in row["scores"].values():
            assert score["mean"] == pytest.approx(np.mean(score["runs"]))
            assert score["interval_95"][0] <= score["mean"] <= score["interval_95"][1]
    assert rows["paste", 0.5]["scores"][AUC]["mean"] > 0.7, "colours this far apart are learnt from pasted cells"
    assert rows[None, None]["gain"] is None
    page = (made / "c3p.html").read_text()
    assert "https://" not in page
    assert str(cohort) not in page, "a path of the user's machine"
    for text in ("(secondary)", "65 to 83", "broken</b> is left out", "poisson, p = 0.5", "Research use only"):
        assert text in page, text
    assert "LEAK" not in page
    sheet = np.array(Image.open(made / "c3p.png"))
    assert sheet.shape == (6 * (64 + 22), 5 * (64 + 4), 3)


def test_the_offline_run_holds_table_and_picture(made: Path) -> None:
    (media,) = made.glob("wandb/offline-run-*/files/media")
    (file,) = media.glob("table/c3p_*.json")
    table = json.loads(file.read_text())
    lines = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
    assert len(lines) == len(VARIANTS)
    rows = rows_of(made)
    for line in lines:
        method = None if line["method"] == "no pasting" else line["method"]
        assert line[f"{F1}, mean"] == pytest.approx(rows[method, line["probability"]]["scores"][F1]["mean"])
    assert len(list(media.glob("images/pasted tiles_*.png"))) == 1
    assert len(list(media.glob("images/f1_by_probability/*.png"))) == 1


def test_a_second_run_and_one_fold_alone_give_the_same_figures(made: Path, cohort: Path, tmp_path: Path) -> None:
    assert run(cohort, tmp_path, "--fold=1", f"--cache={made / 'features'}") == 0
    for key, row in rows_of(tmp_path).items():
        both = rows_of(made)[key]
        assert {n: s["runs"] for n, s in row["scores"].items()} == {n: s["runs"][1:] for n, s in both["scores"].items()}
    wandb.teardown()


def test_an_encoder_that_has_seen_the_tested_slides_is_refused_or_marked(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = load_encoder("random:test_vit", "cpu")
    seen = ("s0", "s1", "s2", "s3")
    card = EncoderCard("e", "test_vit", network.card.input_px, (0.5,) * 3, (0.5,) * 3, 0.5, seen, fold=1)
    file = tmp_path / "dino.safetensors"
    export_encoder(file, network.network, card)
    assert run(cohort, tmp_path / "out", encoders=str(file)) == 2
    assert "was trained on 4 of the slides to test on: s0, s1, s2, s3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(cohort, tmp_path / "one", "--fold=1", encoders=str(file)) == 0
    assert "LEAK" not in (tmp_path / "one" / "c3p.html").read_text()
    assert run(cohort, tmp_path / "out", "--allow_leak=true", encoders=str(file)) == 0
    assert json.loads((tmp_path / "out" / "c3p.json").read_text())["leaking"] == ["dino"]
    assert "LEAK: dino was trained on slides that are tested here" in (tmp_path / "out" / "c3p.html").read_text()
    assert "LEAK" in capsys.readouterr().out
    wandb.teardown()


def test_cells_of_slides_to_test_on_are_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["file,slide_id,fold,class,label,mpp"]
    for kind, slide_id, label in (("carcinoma_in_situ", "s1", 1), ("normal_superficiel", "s6", 0)):
        for number in range(6):
            rows.append(f"{cohort}/herlev/{kind}/{number}-1-001.BMP,{slide_id},0,{kind},{label},0.2")
    (tmp_path / "cells.csv").write_text("\n".join(rows) + "\n")
    cells = f"--cells={{mine: {tmp_path / 'cells.csv'}}}"
    assert run(cohort, tmp_path / "out", cells, "--fold=0") == 2
    assert (
        "--cells: cells of 1 of the slides to test on: s1; give --fold, and only cells of the"
        in capsys.readouterr().err
    )
    assert run(cohort, tmp_path / "out", cells) == 2
    assert "2 of the slides to test on: s1, s6" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_gives_nan_is_named(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = load_encoder("random:test_vit", "cpu")
    with torch.no_grad():
        next(network.network.parameters()).fill_(float("nan"))
    export_encoder(tmp_path / "nan.safetensors", network.network, network.card)
    assert run(cohort, tmp_path / "out", encoders=str(tmp_path / "nan.safetensors")) == 1
    assert "no encoder gave features: nan: encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--canvases=0", "--canvases=0: give at least 1"),
        ("--fold=7", "fold 7 and others are wanted, it has folds 0, 1; papsmear split adds them"),
        ("--cells.hervel=x", "--cells: no set is called 'hervel'; give herlev, hmchh, sipakmed, or your own with its"),
        ("--tiles=gone.csv", "gone.csv: cannot read the tiles: No such file or directory; papsmear crop makes them"),
        ("--encoders=no-such", "encoder 'no-such': no such name"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert run(cohort, tmp_path / "out", option) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("slides.csv", ",1\n", ",0\n", "two or more folds are wanted, it has fold 0"),
        ("slides.csv", "s7,", "other,", "tiles of slides that"),
        ("sets/tiles.csv", ",0.5", ",0.25", "tiles at 0.25 µm/px, but canvases of"),
    ],
)
def test_lists_that_do_not_fit_together_are_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, message: str
) -> None:
    changed, text = tmp_path / Path(file).name, (cohort / file).read_text()
    assert old in text
    changed.write_text(text.replace(old, new))
    for jpeg in (cohort / "sets").glob("*.jpg"):
        (tmp_path / jpeg.name).symlink_to(jpeg)
    assert run(cohort, tmp_path / "out", f"--{changed.stem}={changed}") == 2
    assert message in capsys.readouterr().err
