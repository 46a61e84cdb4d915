"""The probe command: its protocol against plain formulas, its files, its W&B run, and what it refuses."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from papsmear.cli import main
from papsmear.errors import UsageError
from papsmear.probes import published
from papsmear.probes.classes import HERLEV, SIPAKMED
from papsmear.probes.datasets import CellSet, read_rgb
from papsmear.probes.names import name_encoders
from papsmear.probes.probe import probe
from papsmear.probes.protocol import Score, check_ks, knn_probe
from papsmear.probes.scores import Spread
from papsmear.probes.splits import split
from papsmear.ssl.encoder import embed_images, export_encoder, load_encoder

HERLEV_FOLDERS = ["carcinoma_in_situ", "light_dysplastic", "normal_columnar", "normal_superficiel"]


def cell_set(counts: list[int], classes: tuple[Any, ...] = SIPAKMED) -> CellSet:
    labels = np.repeat(np.arange(len(counts)), counts)
    image = np.zeros((4, 4, 3), np.uint8)
    return CellSet("sipakmed", classes, tuple(map(str, labels)), (image,) * len(labels), labels, {})


def features_for(labels: np.ndarray, spread: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(labels.max() + 1, 8))
    return (centres[labels] + spread * generator.normal(size=(len(labels), 8))).astype(np.float32)


def f1(true: list[bool], predicted: list[bool]) -> float:
    hit = sum(t and p for t, p in zip(true, predicted, strict=True))
    wrong = sum(t != p for t, p in zip(true, predicted, strict=True))
    return 2 * hit / (2 * hit + wrong) if hit + wrong else 0.0


def test_scores_are_the_formulas_on_a_k_nn_written_out() -> None:
    cells = cell_set([20, 16, 12, 24, 20])
    features = features_for(cells.labels, 1.6)
    score = knn_probe(features, cells, [3], runs=2, seed=5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for run in range(2):
        train, test = split(cells.labels, 5, run)
        truth, predicted = cells.labels[test].tolist(), []
        for i in test:
            near = cells.labels[sorted(train, key=lambda j: -float(unit[i] @ unit[j]))[:3]].tolist()
            predicted.append(max(near, key=lambda label: (near.count(label), -near.index(label))))
        per_class = [f1([t == c for t in truth], [p == c for p in predicted]) for c in range(5)]
        weighted = sum(f * truth.count(c) for c, f in enumerate(per_class)) / len(truth)
        assert score.weighted_f1.runs[run] == pytest.approx(weighted)
        assert [s.runs[run] for s in score.class_f1.values()] == pytest.approx(per_class)
        kept = [(t, p) for t, p in zip(truth, predicted, strict=True) if t != 2]
        for side, members in (("positives", (0, 1)), ("negatives", (3, 4))):
            expected = f1([t in members for t, _ in kept], [p in members for _, p in kept])
            assert score.side_f1[side].runs[run] == pytest.approx(expected)
        assert 0 < weighted < 1
    assert score.confusion.sum(axis=1).tolist() == [2 * n // 4 for n in (20, 16, 12, 24, 20)]
    assert np.trace(score.confusion) < score.confusion.sum()


def test_metaplastic_cells_do_not_touch_the_binary_score() -> None:
    """Every metaplastic cell looks like a positive one: weighted F1 suffers, positives and negatives are perfect."""
    cells = cell_set([40, 4, 4, 40, 4])
    features = np.eye(5, dtype=np.float32)[cells.labels]
    features[cells.labels == 2] = features[cells.labels == 0][:1]
    score = knn_probe(features, cells, [5], runs=2, seed=0)
    assert score.weighted_f1.mean < 1
    assert score.class_f1["M"].mean == 0
    assert {side: spread.mean for side, spread in score.side_f1.items()} == {"positives": 1, "negatives": 1}


def test_k_is_the_one_with_the_best_mean_and_the_spread_is_over_the_runs() -> None:
    cells = cell_set([20, 16, 12, 24, 20])
    score: Score = knn_probe(features_for(cells.labels, 1.6), cells, [20, 1, 5], runs=4, seed=0)
    assert list(score.by_k) == [1, 5, 20]
    assert score.by_k[score.k].mean == max(spread.mean for spread in score.by_k.values())
    assert score.weighted_f1 == score.by_k[score.k]
    assert len(score.weighted_f1.runs) == 4


def test_spread() -> None:
    assert Spread((0.2, 0.4)).mean == pytest.approx(0.3)
    assert Spread((0.2, 0.4)).sd == pytest.approx(0.1 * 2**0.5)
    assert Spread((0.2,)).sd == 0


def test_a_set_without_negatives_has_no_score_for_them() -> None:
    cells = cell_set([8, 8], HERLEV[:2])
    score = knn_probe(features_for(cells.labels, 0.1), cells, [1], runs=1, seed=0)
    assert list(score.side_f1) == ["positives"]


def test_k_beyond_the_training_part_is_refused() -> None:
    cells = cell_set([8, 8, 8, 8, 8])
    check_ks([1, 30], cells, 0)
    with pytest.raises(UsageError, match="k = 31 is more than the 30 training cells of SIPaKMeD"):
        check_ks([1, 31], cells, 0)


def test_encoders_get_short_names() -> None:
    assert name_encoders("random:resnet50") == {"random:resnet50": "random:resnet50"}
    assert list(name_encoders(["timm:a", "x/lite0.safetensors", "runs/vits16/encoder.safetensors"])) == [
        "timm:a", "lite0", "vits16",
    ]  # fmt: skip
    assert name_encoders({"mine": "random:resnet50"}) == {"mine": "random:resnet50"}
    with pytest.raises(UsageError, match="two of them would be called 'a'"):
        name_encoders(["x/a.safetensors", "y/a.safetensors"])


def test_the_published_figures_are_complete() -> None:
    """Weighted F1 and the sides by the reference's tables; every row of the table has its figure."""
    for name, classes in (("herlev", HERLEV), ("sipakmed", SIPAKMED)):
        assert published.WEIGHTED_F1[name].keys() == published.CLASS_F1[name].keys()
        for column in published.CLASS_F1[name].values():
            assert list(column) == [*(c.short for c in classes), "positives", "negatives"]
    assert published.WEIGHTED_F1["herlev"]["ViT-S/16 DINO"] == (62.6, 2.8)
    assert published.WEIGHTED_F1["sipakmed"]["ResNet50 ImageNet"] == (92.6, 0.4)


# --- the command ------------------------------------------------------------------------------------------------


def herlev(folder: Path, per_class: int = 8) -> Path:
    """A small set in the archive's layout, whose classes differ in colour."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(HERLEV_FOLDERS):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            rgb = generator.integers(0, 90, (20 + i, 24, 3)) + 40 * np.array([label, 3 - label, label % 2])
            Image.fromarray(rgb.astype(np.uint8)).save(folder / name / f"148-{i}.BMP")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, int]]:
    """The command run once: its output folder, the set, and its status."""
    folder = tmp_path_factory.mktemp("probe")
    cells, out = herlev(folder / "herlev"), folder / "out"
    run = folder / "pretrained-fold1"
    encoder = load_encoder("random:test_vit", "cpu")
    export_encoder(run / "encoder.safetensors", encoder.network, encoder.card)
    (run / "wandb" / "offline-run-20260101_120000-pre1").mkdir(parents=True)
    (cells / HERLEV_FOLDERS[0] / "148-9.BMP").write_bytes(b"damaged")
    broken = folder / "broken.safetensors"
    broken.write_bytes(b"cut short")
    status = main([
        "probe", "-c", "configs/probes.yaml", "--report=true",
        "--encoders", f"{{'random:test_vit': 'random:test_vit', broken: {broken}, "
        f"dino: '{folder}/pretrained-fold{{fold}}/encoder.safetensors'}}",
        f"--sets.herlev={cells}", f"--out={out}", "--ks=[1,3]", "--runs=2", "--device=cpu",
    ])  # fmt: skip
    yield out, cells, status
    wandb.teardown()


def test_what_cannot_be_used_is_left_out_and_the_status_says_so(made: tuple[Path, Path, int]) -> None:
    out, _, status = made
    found = json.loads((out / "results.json").read_text())
    assert status == 1
    assert list(found["sets"]["herlev"]["damaged"]) == ["carcinoma_in_situ/148-9.BMP"]
    assert list(found["failed"]) == ["broken"]


def test_results_json_holds_the_figures(made: tuple[Path, Path, int]) -> None:
    found = json.loads((made[0] / "results.json").read_text())
    assert found["sets"]["herlev"]["images"] == 32
    assert [c["short"] for c in found["sets"]["herlev"]["classes"]] == ["CIS", "LD", "NC", "NS"]
    assert found["encoders"]["random:test_vit"]["architecture"] == "test_vit"
    row, same = found["scores"]
    assert (row["set"], row["encoder"]) == ("herlev", "random:test_vit")
    assert {**row, "encoder": "dino fold 1"} == same, "the same weights, from a file"
    assert {r["encoder"]: r["of"] for r in found["folds"]} == {"dino": ["dino fold 1"]}
    assert found["pretraining"] == {"dino fold 1": {"id": "pre1"}}
    assert row["k"] in (1, 3)
    assert row["weighted_f1"]["mean"] == pytest.approx(np.mean(row["weighted_f1"]["runs"]))
    assert row["weighted_f1"]["mean"] > 0.5, "colours this far apart are told apart even by random weights"
    assert set(row["side_f1"]) == {"positives", "negatives"}
    assert np.sum(row["confusion"]) == 2 * 8


def test_results_json_marks_what_is_published_and_what_is_honest(tmp_path: Path) -> None:
    """Two encoders on cells whose names tell the picture: the published row is that of `scores`; all pairs differ."""
    folder = herlev(tmp_path / "herlev", per_class=16)
    for file in folder.rglob("*.BMP"):
        i = int(file.stem.split("-")[1])
        file.rename(file.with_name(f"{HERLEV_FOLDERS.index(file.parent.name)}{i // 2:02}-9-{i % 2:03}.BMP"))
    encoders = {"a": "random:test_vit", "b": "random:resnet10t"}
    assert probe(tmp_path / "out", encoders, {"herlev": folder}, ks=[1, 3], runs=2, device="cpu") == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    for score in found["scores"]:
        rows = [row for row in found["protocols"] if row["encoder"] == score["encoder"]]
        (published_row,) = (row for row in rows if row["as_published"])
        for key in ("weighted_f1", "class_f1", "side_f1"):
            spreads = published_row[key] if "mean" not in published_row[key] else {"": published_row[key]}
            theirs = score[key] if "mean" not in score[key] else {"": score[key]}
            assert spreads.keys() == theirs.keys()
            for row, spread in theirs.items():
                assert spreads[row] == {**spread, "interval_95": spreads[row]["interval_95"]}
        honest = {(row["splits"], row["probe"], row["chosen"]) for row in rows if row["honest"]}
        assert {splits for splits, _, _ in honest} == {"grouped"}
        assert {chosen for _, _, chosen in honest} == {"inside the training part", "nothing to choose"}
        assert len(honest) == 4
        for row in rows:
            low, high = row["weighted_f1"]["interval_95"]
            assert low <= row["weighted_f1"]["mean"] <= high
    assert len(found["differences"]) == 12
    by = {(r["encoder"], r["splits"], r["probe"], r["chosen"]): r["weighted_f1"]["mean"] for r in found["protocols"]}
    for d in found["differences"]:
        how = (d["splits"], d["probe"], d["chosen"])
        assert d["mean"] == pytest.approx(by["a", *how] - by["b", *how])
    assert found["published"]["weighted_f1"]["herlev"]["ViT-S/16 DINO"] == [62.6, 2.8]
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("as published</span>", "honest</span>", "pictures on both sides", "few-shot curves", "a − b"):
        assert text in page, text
    assert "No grouped splits" not in page
    wandb.teardown()


def test_the_page_is_whole_by_itself_and_tells_what_it_shows(made: tuple[Path, Path, int]) -> None:
    page = (made[0] / "report.html").read_text()
    assert "The public set has 917 cells" in page, "these are not the published cells"
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for text in (
        "k chosen on the test part, as published",
        "No grouped splits",
        "Published figures, not measured here",
        "62.6 ± 2.8",
        "random:test_vit",
        "carcinoma_in_situ/148-9.BMP",
        "broken</b> is left out",
        "pre1",
        "1 folds' encoders",
        "nearest neighbours by dino fold 1",
        "map of the features of dino fold 1",
        "Research use only",
    ):
        assert text in page, text
    assert str(made[1]) not in page, "a path of the user's machine"


def test_the_resolved_configuration_runs_again_to_the_same_figures(
    made: tuple[Path, Path, int], tmp_path: Path
) -> None:
    out, cells, _ = made
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["sets"] == {"herlev": str(cells)}
    assert config["encoders"].pop("dino").endswith("pretrained-fold{fold}/encoder.safetensors")
    config["encoders"].pop("broken")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config))
    assert main(["probe", "-c", str(tmp_path / "again.yaml"), f"--out={tmp_path / 'out'}"]) == 1
    first, second = (json.loads((f / "results.json").read_text())["scores"] for f in (out, tmp_path / "out"))
    assert first[:1] == second


def records(folder: Path) -> Iterator[Record]:
    """The records of the one offline run below `folder`: LevelDB's log format after a header of 7 bytes.

    Blocks of 32 KiB hold chunks: checksum (4), length (2), type (1: whole, 2: first, 3: middle, 4: last), data.
    """
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def test_the_offline_run_reads_back(made: tuple[Path, Path, int]) -> None:
    out = made[0]
    found = list(records(out))
    assert {"run", "history", "summary", "artifact", "exit"} <= {r.WhichOneof("record_type") for r in found}
    run = next(r.run for r in found if r.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.job_type, run.project, config["runs"], config["ks"]) == ("probe", "papsmear", 2, [1, 3])
    logged: dict[str, dict[str, Any]] = {}  # key → field → value
    for item in (item for r in found for item in r.history.item if len(item.nested_key) == 2):
        logged.setdefault(item.nested_key[0], {})[item.nested_key[1]] = json.loads(item.value_json)
    tables = {name for name, value in logged.items() if value["_type"] == "table-file"}
    assert tables == {
        "weighted_f1", "class_f1", "published_weighted_f1", "protocols", "differences", "few_shot", "folds"
    }  # fmt: skip
    (media,) = out.glob("wandb/offline-run-*/files")
    row = json.loads((media / logged["weighted_f1"]["path"]).read_text())
    score = json.loads((out / "results.json").read_text())["scores"][0]
    assert row["columns"] == ["set", "encoder", "k", "mean", "sd"]
    assert row["data"][0][:3] == ["herlev", "random:test_vit", score["k"]]
    assert row["data"][0][3] == pytest.approx(score["weighted_f1"]["mean"])
    pictures = {name: value for name, value in logged.items() if value["_type"] == "image-file"}
    assert set(pictures) == {"herlev/weighted_f1", "herlev/f1_by_k", "herlev/few_shot"} | {
        kind + name
        for kind in ("herlev/confusion/", "herlev/neighbours/", "map/")
        for name in ("random:test_vit", "dino fold 1")
    }
    protocols = json.loads((media / logged["protocols"]["path"]).read_text())
    rows = (dict(zip(protocols["columns"], line, strict=True)) for line in protocols["data"] if line[5])
    published_row = next(rows)
    assert protocols["columns"][5] == "as_published"
    assert published_row["mean"] == pytest.approx(score["weighted_f1"]["mean"])
    assert published_row["low"] <= published_row["mean"] <= published_row["high"]
    assert all((media / picture["path"]).is_file() for picture in pictures.values())
    (report,) = (r.artifact for r in found if r.artifact.type == "report")
    kept = {entry.path: Path(entry.local_path) for entry in report.manifest.contents}
    assert set(kept) == {"report.html", "results.json", "bootstrap.npy"}
    assert all(file.read_bytes() == (out / name).read_bytes() for name, file in kept.items())
    (features,) = (r.artifact for r in found if r.artifact.type == "features")
    kept = {entry.path: Path(entry.local_path) for entry in features.manifest.contents}
    assert set(kept) == {"random_test_vit.npz", "dino_fold_1.npz"}
    with np.load(kept["random_test_vit.npz"]) as arrays:
        (cached, *_) = (out / "features").glob("herlev-*.npy")
        np.testing.assert_array_equal(arrays["herlev"], np.load(cached))
        assert arrays["herlev_labels"].tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
    assert config["pretraining"] == {"dino fold 1": {"id": "pre1"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sets={}"], "--sets: none given; give --sets.herlev=DIR or --sets.sipakmed=DIR"),
        (["--sets.hurlev=x"], "no set is called 'hurlev'"),
        (["--ks=[]"], "--ks: []: give whole numbers"),
        (["--ks=[0,1]"], "--ks: [0, 1]: give whole numbers"),
        (["--ks=[1,25]"], "k = 25 is more than the 24 training cells of Herlev (32 in all)"),
        (["--runs=0"], "--runs: 0: give at least 1"),
        (["--encoders=[]"], "--encoders: none given"),
        (["--encoders=nonsense", "--ks=[1]"], "encoder 'nonsense': no such name"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    sets = [] if options[0].startswith("--sets") else [f"--sets.herlev={herlev(tmp_path / 'herlev')}"]
    command = ["probe", "--encoders=random:test_vit", f"--out={tmp_path / 'out'}", *sets, *options]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_misspelt_encoder_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papsmear.probes.probe.features_of", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(UsageError, match="encoder 'nonsense': no such name"):
        probe(tmp_path / "out", ["random:test_vit", "nonsense"], {"herlev": herlev(tmp_path / "herlev")}, ks=[1])


def test_the_shipped_configuration_names_only_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["probe", "-c", "configs/probes.yaml", "--sets.herlev=x", "--out=y", "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["sets"] == {"herlev": "x"}
    assert shown["runs"] == 4


def test_real_weights_tell_real_cells_apart(shared_data: Path) -> None:
    """A glimpse of the figures in docs/benchmarks.md: light dysplastic against normal superficial cells, 16 of each."""
    folder = shared_data / "herlev" / "images"
    files = [sorted((folder / name).iterdir())[:16] for name in ("light_dysplastic", "normal_superficiel")]
    images = tuple(read_rgb(file) for part in files for file in part)
    labels = np.repeat(np.arange(2), 16)
    encoder = load_encoder(str(shared_data / "weights" / "efficientnet_lite0_imagenet.safetensors"), "cpu")
    cells = CellSet("herlev", (HERLEV[1], HERLEV[6]), tuple(map(str, range(32))), images, labels, {})
    assert knn_probe(embed_images(encoder, images), cells, [3], runs=4, seed=0).weighted_f1.mean > 0.85
