"""Cells pasted on the most suspicious tiles: which tiles these are, what becomes of them, and that training goes on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from papsmear.cli import main
from papsmear.errors import UsageError
from papsmear.mil.bags import read_bag
from papsmear.mil.data import BagData
from papsmear.mil.head import Standardised
from papsmear.mil.heads import build_head
from papsmear.mil.suspicious import TOP, Canvases
from papsmear.probes.canvases import JpegTiles
from papsmear.probes.sources import SetSource
from papsmear.tiling.shards import read_tiles

N_TILES, SIDE, SEED = 14, 48, 3
Cohort = Callable[..., BagData]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """Tiled and embedded slides s0 to s11, every second positive, in 3 folds; and dark and bright single cells."""
    folder = tmp_path_factory.mktemp("cohort")
    random = np.random.default_rng(0)
    lines = ["slide_id,path,label,fold"]
    for i in range(12):
        tiles = [random.integers(100, 200, (SIDE, SIDE, 3)).astype(np.uint8) for _ in range(N_TILES)]
        write_shards(folder / "shards", f"s{i}", tiles)
        lines.append(f"s{i},s{i}.svs,{i % 2},{i // 4}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    for name, level in (("HSIL", 20), ("NILM", 240)):
        (folder / "cells" / name).mkdir(parents=True)
        for i in range(2):
            cell = random.integers(level - 15, level + 15, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(cell).save(folder / "cells" / name / f"{i}.png")
    words = ("--shards", str(folder / "shards"), "--encoder", "random:test_vit", "--out", str(folder / "features"))
    assert main(["embed", *words]) == 0
    return folder


def cells_of(folder: Path) -> dict[str, SetSource | Path]:
    return {"own": SetSource(folder / "cells", classes={"HSIL": "positive", "NILM": "negative"}, mpp=0.5)}


def bags_of(folder: Path, shards: Path | None, cells: dict[str, SetSource | Path] | None) -> BagData:
    """Trains on s8 to s11."""
    bags = BagData(folder / "features", folder / "slides.csv", fold=0, cells=cells, shards=shards)
    bags.setup("fit")
    return bags


@pytest.fixture(scope="module")
def canvases(folder: Path) -> Canvases:
    found = Canvases.of(bags_of(folder, folder / "shards", cells_of(folder)), SEED)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def head(canvases: Canvases) -> Standardised:
    torch.manual_seed(0)
    return build_head("gated_attention", canvases.encoder.width, {})


def decoded(folder: Path, slide_id: str) -> list[NDArray[np.uint8]]:
    return list(JpegTiles([jpeg for _, jpeg in read_tiles(folder / "shards" / slide_id)]))


def test_the_tiles_of_highest_score_of_each_training_slide_are_collected(
    folder: Path, canvases: Canvases, head: Standardised
) -> None:
    chosen = canvases.collect(head.train())
    assert head.training
    assert list(chosen) == ["s8", "s9", "s10", "s11"]
    for slide_id, rows in chosen.items():
        with torch.no_grad():
            _, score = head.eval()(torch.from_numpy(read_bag(folder / "features" / f"{slide_id}.h5").features))
        assert rows == np.sort(np.argsort(-score.numpy())[:TOP]).tolist()


def test_positive_canvases_get_a_positive_cell_and_negative_ones_a_negative_or_none(
    folder: Path, canvases: Canvases, head: Standardised
) -> None:
    chosen = canvases.collect(head)
    before = {slide_id: decoded(folder, slide_id) for slide_id in chosen}
    places = [(slide_id, row) for slide_id, rows in chosen.items() for row in rows]
    changed = {}
    for (slide_id, row), tile in zip(places, canvases.tiles(chosen, epoch=0), strict=True):
        differs = np.argwhere((tile != before[slide_id][row]).any(axis=2))
        changed[slide_id, row] = len(differs)
        if len(differs):
            assert (np.ptp(differs, axis=0) < 12).all()  # within the cell's square
    assert all(changed[place] for place in places if place[0] in ("s9", "s11"))
    negative = [bool(changed[place]) for place in places if place[0] in ("s8", "s10")]
    assert 0.2 < np.mean(negative) < 0.8
    assert canvases.paste(chosen, 0).labels.tolist() == [int(slide_id in ("s9", "s11")) for slide_id, _ in places]


def test_canvases_are_embedded_as_the_bags_were(folder: Path, canvases: Canvases, head: Standardised) -> None:
    chosen = canvases.collect(head)
    pasted = canvases.paste(chosen, 0).features.numpy()
    places = [(slide_id, row) for slide_id, rows in chosen.items() for row in rows]
    same = 0
    for (slide_id, row), tile, features in zip(places, canvases.tiles(chosen, 0), pasted, strict=True):
        wanted = read_bag(folder / "features" / f"{slide_id}.h5").features[row]
        if np.array_equal(tile, decoded(folder, slide_id)[row]):
            np.testing.assert_allclose(features, wanted, atol=2e-3)
            same += 1
        else:
            assert not np.allclose(features, wanted, atol=2e-3)
    assert same


def test_the_same_epoch_pastes_the_same_cells_and_another_one_others(canvases: Canvases, head: Standardised) -> None:
    chosen = canvases.collect(head)
    first, again, other = (np.stack(list(canvases.tiles(chosen, epoch))) for epoch in (0, 0, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_run_that_was_stopped_between_two_renewals_ends_with_the_same_weights(
    folder: Path, root: Path, tmp_path: Path
) -> None:
    cells = f"{{own: {{path: {folder / 'cells'}, classes: {{HSIL: positive, NILM: negative}}, mpp: 0.5}}}}"

    def fit(run: str, epochs: int) -> dict[str, torch.Tensor]:
        words = [f"-c={root / 'configs' / 'mil.yaml'}", "--trainer.accelerator=cpu", "--trainer.logger=false"]
        words += [f"--data.features={folder / 'features'}", f"--data.slides={folder / 'slides.csv'}"]
        words += [f"--data.cells={cells}", f"--data.shards={folder / 'shards'}", "--model.renew_every=2"]
        words += [f"--trainer.default_root_dir={tmp_path / run}", f"--trainer.max_epochs={epochs}"]
        assert main(["fit", *words, "--model.tile_loss=1.0", "--model.lr=1e-2", "--model.head=mean"]) == 0
        state = torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return dict(state)

    once = fit("once", 4)
    fit("run", 1)
    fit("run", 3)
    resumed = fit("run", 4)
    assert all(torch.equal(value, resumed[key]) for key, value in once.items())


def test_cells_and_shards_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, write_shards: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match=r"data\.shards"):
        Canvases.of(bags_of(folder, None, cells_of(folder)), SEED)
    with pytest.raises(UsageError, match="no shards of this slide"):
        Canvases.of(bags_of(folder, tmp_path, cells_of(folder)), SEED)
    for i in range(8, 12):
        write_shards(tmp_path / "other", f"s{i}", [np.zeros((SIDE, SIDE, 3), np.uint8)])
    with pytest.raises(UsageError, match="not the tiles"):
        Canvases.of(bags_of(folder, tmp_path / "other", cells_of(folder)), SEED)
    listed = folder / "cells" / "cells.csv"
    listed.write_text("file,class,label,slide_id,mpp\n" + "".join(
        f"{name}/{i}.png,{name},{int(name == 'HSIL')},s{i},0.5\n" for name in ("HSIL", "NILM") for i in range(2)
    ))  # fmt: skip
    with pytest.raises(UsageError, match="cells of 2 slides that are not trained on: s0, s1"):
        Canvases.of(bags_of(folder, folder / "shards", {"own": listed}), SEED)
    assert Canvases.of(bags_of(folder, folder / "shards", None), SEED) is None
