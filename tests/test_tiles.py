"""Labelled tiles: which they are, the loss of them, that it teaches what slides do not, and that training goes on."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from papsmear import seeds
from papsmear.cli import main
from papsmear.mil.bags import BagCard, read_bag, write_bag
from papsmear.mil.data import BagData
from papsmear.mil.heads import HEADS, build_head
from papsmear.mil.model import load_head
from papsmear.mil.tiles import NEGATIVES_A_SLIDE, LabelledTiles, annotated_tiles, tile_loss
from papsmear.tiling.cut import TileSettings

WIDTH, SIDE, N_TILES = 6, 100, 60
CARD = BagCard("random:test_vit", "ab" * 32, TileSettings(area="all", quality=75), float(SIDE))
CELLS = {"s0": [3], "s2": [7, 8], "s3": [5]}  # the tiles that hold an annotated abnormal cell, by slide


def features_of(slide_id: str) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Of tile n of slide s<i>: i and n first, then noise; tiles with a cell are shifted in the last."""
    features = seeds.rng(0, slide_id).normal(size=(N_TILES, WIDTH))
    features[:, 0], features[:, 1] = int(slide_id[1:]), np.arange(N_TILES)
    features[CELLS.get(slide_id, []), -1] += 6
    return features.astype(np.float16)


def cell(tile: int, name: str, corner: int = 40) -> dict[str, Any]:
    """A cell of 20 px in a tile; tiles lie in a row."""
    x = tile * SIDE + corner
    ring = [[x, 40], [x + 20, 40], [x + 20, 60], [x, 60], [x, 40]]
    properties = {"classification": {"name": name}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Slides s0 to s15, every second one positive, in folds of four; annotations of some of the first four."""
    lines = ["slide_id,path,label,fold,annotations"]
    for i in range(16):
        slide_id, label = f"s{i}", int(i % 4 in (0, 2))
        xy = np.stack((SIDE * np.arange(N_TILES), np.zeros(N_TILES)), axis=1).astype(np.int32)
        write_bag(tmp_path / "features" / f"{slide_id}.h5", features_of(slide_id), xy, CARD)
        named = ""
        if slide_id in CELLS:
            named = f"{slide_id}.geojson"
            cells = [cell(tile, "HSIL") for tile in CELLS[slide_id]]
            normal = [cell(20, "NILM"), cell(-3, "HSIL")]  # a normal cell, and one that lies in no tile
            (tmp_path / named).write_text(json.dumps({"type": "FeatureCollection", "features": [*cells, *normal]}))
        lines.append(f"{slide_id},{slide_id}.svs,{label},{i // 4},{named}")
    (tmp_path / "slides.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def bags_of(cohort: Path, fold: int = 2) -> BagData:
    """Training on the folds 0 and 1, s0 to s7, where 2 is tested."""
    bags = BagData(cohort / "features", cohort / "slides.csv", fold=fold)
    bags.setup("fit")
    return bags


def told(tiles: LabelledTiles, label: int) -> list[tuple[int, int]]:
    """Slide and tile of those of one label."""
    return [(int(f[0]), int(f[1])) for f, y in zip(tiles.features, tiles.labels, strict=True) if y == label]


def test_annotated_tiles_of_positive_training_slides_are_positive_and_those_of_negative_ones_negative(
    cohort: Path,
) -> None:
    tiles = annotated_tiles(bags_of(cohort), seed=0)
    assert tiles is not None
    assert told(tiles, 1) == [(0, 3), (2, 7), (2, 8)]
    negative = told(tiles, 0)
    for slide in (1, 3, 5, 7):  # s3 has a cell annotated, and yet is negative
        of_slide = [tile for of, tile in negative if of == slide]
        assert len(set(of_slide)) == len(of_slide) == NEGATIVES_A_SLIDE
    assert {slide for slide, _ in negative} == {1, 3, 5, 7}
    again, other = (annotated_tiles(bags_of(cohort), seed) for seed in (0, 1))
    assert again is not None
    assert other is not None
    assert torch.equal(again.features, tiles.features)
    assert told(other, 0) != negative


def test_where_nothing_is_annotated_on_the_training_slides_no_tile_is_labelled(cohort: Path) -> None:
    assert annotated_tiles(bags_of(cohort, fold=0), seed=0) is None  # trains on the folds 2 and 3


def test_draws_are_of_both_classes_alike_and_of_their_own_label() -> None:
    tiles = LabelledTiles(torch.arange(20.0)[:, None], torch.tensor([1.0] * 2 + [0.0] * 18))
    drawn = tiles.draw(400, np.random.default_rng(0))
    assert drawn.labels.tolist() == [1.0] * 200 + [0.0] * 200
    assert set(drawn.features[:200, 0].tolist()) == {0, 1}
    assert set(drawn.features[200:, 0].tolist()) == set(range(2, 20))


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return -(labels * torch.log(torch.sigmoid(logits)) + (1 - labels) * torch.log(torch.sigmoid(-logits)))


@pytest.mark.parametrize("top_k", [None, 8])
def test_the_loss_is_the_mean_cross_entropy_of_the_tiles_own_logits(top_k: int | None) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(7, WIDTH), torch.tensor([1.0, 1, 1, 0, 0, 0, 0])
    heads = {name: build_head(name, WIDTH, {}, top_k).eval() for name in ("mean", "gated_attention", "dsmil")}
    for name in ("mean", "gated_attention"):
        logits = torch.stack([heads[name](tile[None])[0] for tile in x])
        torch.testing.assert_close(tile_loss(heads[name], LabelledTiles(x, y)), cross_entropies(logits, y).mean())
    weights = {k.rpartition("head.")[2]: v for k, v in heads["dsmil"].state_dict().items()}
    highest = x @ weights["classify_tile.weight"][0] + weights["classify_tile.bias"]
    value = x @ weights["value.weight"].T + weights["value.bias"]
    pooled = value @ weights["classify.weight"][0] + weights["classify.bias"]
    wanted = (cross_entropies(highest, y).mean() + cross_entropies(pooled, y).mean()) / 2
    torch.testing.assert_close(tile_loss(heads["dsmil"], LabelledTiles(x, y)), wanted)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_from_tiles(name: str) -> None:
    torch.manual_seed(0)
    settings = {"embedding": 32, "heads": 4, "landmarks": 9} if name.startswith("transmil") else {}
    head = build_head(name, WIDTH, settings)
    tile_loss(head, LabelledTiles(torch.randn(4, WIDTH), torch.tensor([1.0, 1, 0, 0]))).backward()
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)


# What tiles teach that slides do not


def toy_auc(tile_weight: float, seed: int) -> float:
    """AUC of the mean of 8 tiles, trained on 24 slides; two of the 150 tiles of a positive one are shifted a little."""
    slides = []
    random = torch.Generator().manual_seed(seed)
    for i in range(84):
        bag = torch.randn(150, 16, generator=random)
        bag[5:7, 3] += 4.0 * (i % 2)
        slides.append((bag, float(i % 2)))
    train, test = slides[:24], slides[24:]
    positive, negative = ([bag for bag, label in train if label == wanted] for wanted in (1, 0))
    features = torch.cat([bag[5:7] for bag in positive] + [bag[:50] for bag in negative])
    tiles = LabelledTiles(features, (torch.arange(len(features)) < 2 * len(positive)).float())
    torch.manual_seed(seed)
    head = build_head("mean", 16, {}, top_k=8)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for epoch in range(20):
        for first in range(0, 24, 8):
            losses = [head.loss(bag, int(y), partial(slide_loss, y)) for bag, y in train[first : first + 8]]
            loss = torch.stack(losses).mean()
            if tile_weight:
                drawn = tiles.draw(32, np.random.default_rng((seed, epoch, first)))
                loss = loss + tile_weight * tile_loss(head, drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        logits = [float(head(bag)[0]) for bag, _ in test]
    return float(roc_auc_score([label for _, label in test], logits))


def slide_loss(label: float, logit: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logit, torch.full_like(logit, label))


@pytest.mark.parametrize("seed", [0, 1])
def test_labelled_tiles_teach_what_slides_alone_do_not(seed: int) -> None:
    assert toy_auc(1.0, seed) >= 0.8
    assert toy_auc(0.0, seed) <= 0.65


# By the command line


@pytest.fixture
def fit(cohort: Path, root: Path) -> Callable[..., int]:
    """Trains on the cohort with the shipped configuration, fold 2 held out."""
    return partial(command, "fit", cohort, root, "--data.fold=2", f"--trainer.default_root_dir={cohort / 'run'}")


def command(name: str, cohort: Path, root: Path, *words: str) -> int:
    shipped = [f"-c={root / 'configs' / 'mil.yaml'}", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    return main(
        [name, *shipped, f"--data.features={cohort / 'features'}", f"--data.slides={cohort / 'slides.csv'}", *words]
    )


BOTH = ("--model.tile_loss=0.5", "--model.top_k=8")


def test_a_run_that_was_stopped_ends_with_the_same_weights(cohort: Path, fit: Callable[..., int]) -> None:
    assert fit(*BOTH, "--trainer.max_epochs=3", f"--trainer.default_root_dir={cohort / 'once'}") == 0
    assert fit(*BOTH, "--trainer.max_epochs=1") == 0
    assert fit(*BOTH, "--trainer.max_epochs=3") == 0
    a, b = (torch.load(cohort / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("once", "run"))
    assert all(torch.equal(value, b["state_dict"][key]) for key, value in a["state_dict"].items())
    assert (cohort / "once" / "head.safetensors").read_bytes() == (cohort / "run" / "head.safetensors").read_bytes()


def test_the_head_is_kept_with_its_selection_and_scores_every_tile(cohort: Path, fit: Callable[..., int]) -> None:
    assert fit(*BOTH, "--trainer.max_epochs=1", "--model.head=mean") == 0
    trained, features = load_head(cohort / "run"), read_bag(cohort / "features" / "s8.h5").features
    assert trained.card.top_k == 8
    probability, score = trained.judge(features)
    best = np.sort(np.argsort(-score, kind="stable")[:8])
    assert score.shape == (N_TILES,)
    assert trained.judge(features[best])[0] == pytest.approx(probability, abs=1e-6)
    with torch.no_grad():
        logit = score[best].mean() / trained.card.temperature + trained.card.prior_log_odds
    assert probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_the_tiles_loss_moves_the_weights_by_its_share(cohort: Path, fit: Callable[..., int]) -> None:
    weights = []
    for name, word in (("none", "0"), ("some", "0.5"), ("much", "1.0")):
        folder = cohort / name
        words = ("--model.head=mean", f"--model.tile_loss={word}", "--trainer.max_epochs=1")
        assert fit(*words, f"--trainer.default_root_dir={folder}") == 0
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        weights.append(state["head.head.classify.weight"])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_cross_validation_compares_both_changes(cohort: Path, root: Path) -> None:
    variants = "{plain: {head: mean}, both: {head: mean, top_k: 8, tile_loss: 0.5}}"
    out = cohort / "crossval"
    words = (f"--heads={variants}", "--folds=[2]", f"--out={out}", "--trainer.max_epochs=1")
    assert command("crossval", cohort, root, *words) == 0
    plain, both = (load_head(out / f"{name}-fold2") for name in ("plain", "both"))
    assert (plain.card.top_k, both.card.top_k) == (None, 8)
    assert [row["head"] for row in json.loads((out / "crossval.json").read_text())["systems"]] == ["plain", "both"]


def drop_annotations(cohort: Path) -> None:
    for file in cohort.glob("*.geojson"):
        file.unlink()


def move_annotations(cohort: Path) -> None:
    for file in cohort.glob("*.geojson"):
        file.write_text(json.dumps({"type": "FeatureCollection", "features": [cell(-3, "HSIL")]}))


def forget_the_tiles_size(cohort: Path) -> None:
    for file in (cohort / "features").glob("*.h5"):
        with h5py.File(file, "r+") as h5:
            for name in list(h5.attrs):
                del h5.attrs[name]


def name_no_annotations(cohort: Path) -> None:
    lines = (cohort / "slides.csv").read_text().splitlines()
    (cohort / "slides.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (name_no_annotations, "no tile has a label"),
        (move_annotations, "no abnormal cell annotated on the 2 positive training slides lies in one of their tiles"),
        (forget_the_tiles_size, "does not say how large its tiles are"),
        (drop_annotations, "s0.geojson"),
    ],
)
def test_tiles_that_cannot_be_labelled_are_told_in_one_line(
    spoil: Callable[[Path], None],
    said: str,
    cohort: Path,
    fit: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(cohort)
    assert fit("--model.tile_loss=0.5", "--trainer.max_epochs=1") in (1, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert said in last
    assert last.startswith("papsmear fit: error: ")
