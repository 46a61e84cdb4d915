"""What DINO is fed: each tile once an epoch, whatever ranks, workers and shards; the wanted fold; damaged input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from papsmear.errors import InputError, UsageError
from papsmear.ssl.data import TileData

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
SIDE = 16


def picture_of(number: int) -> NDArray[np.uint8]:
    """A flat picture whose colour says its number, and survives JPEG."""
    colour = (8 * (number % 30), 8 * (number // 30 % 30), 0)
    return np.broadcast_to(np.array(colour, np.uint8), (SIDE, SIDE, 3)).copy()


def numbers_in(batch: list[torch.Tensor]) -> list[int]:
    """The numbers of the pictures of a batch [(B, 2, SIDE, SIDE, 3)]."""
    red, green = (batch[0][:, 0, ..., channel].float().mean((1, 2)).div(8).round().int() for channel in (0, 1))
    return (red + 30 * green).tolist()


def unchanged(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """In the place of the augmentation."""
    return np.stack([picture, picture])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """Five slides of 10, 20, ... 50 tiles, their pictures numbered through; folds 0, 1, 0, 1, none."""
    folder = tmp_path_factory.mktemp("cohort")
    lines, number = ["slide_id,path,fold"], 0
    for slide, fold in enumerate(("0", "1", "0", "1", "")):
        n_tiles = 10 * (slide + 1)
        write_shards(folder / "shards", f"s{slide}", [picture_of(number + i) for i in range(n_tiles)])
        number += n_tiles
        lines.append(f"s{slide},s{slide}.svs,{fold}")
    (folder / "slides.csv").write_text("\n".join(lines))
    return folder


def tile_data(cohort: Path, **changes: object) -> TileData:
    values = {
        "shards": cohort / "shards",
        "slides": cohort / "slides.csv",
        "batch_size": 12,
        "workers": 0,
        "crop_px": SIDE,
    }
    data = TileData(**{**values, **changes})
    data.setup("fit")
    return data


def epoch_of(data: TileData, rank: int = 0, world: int = 1, epoch: int = 0) -> list[list[int]]:
    loader = data.loader(rank, world)
    loader.sampler.set_epoch(epoch)
    return [numbers_in(batch) for batch in loader]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_tile_once_over_ranks_and_workers(cohort: Path, workers: int, world: int) -> None:
    data = tile_data(cohort, workers=workers)
    data.views = unchanged
    of_ranks = [epoch_of(data, rank, world) for rank in range(world)]
    seen = [number for batches in of_ranks for batch in batches for number in batch]
    assert len(seen) == len(set(seen)) == 150 // 12 * 12
    assert {len(batches) for batches in of_ranks} == {150 // 12}

    alone = epoch_of(tile_data_unchanged(cohort))
    together = [[number for share in shares for number in share] for shares in zip(*of_ranks, strict=True)]
    assert together == alone


@pytest.mark.parametrize(("batch_size", "world"), [(10, 1), (8, 2), (3, 3)])
def test_fewer_shards_and_batches_than_workers(cohort: Path, tmp_path: Path, batch_size: int, world: int) -> None:
    """One slide of ten tiles in one shard, read by three workers a rank: one to three batches."""
    (tmp_path / "slides.csv").write_text("slide_id,path\ns0,a\n")
    data = tile_data(cohort, slides=tmp_path / "slides.csv", batch_size=batch_size, workers=3)
    data.views = unchanged
    of_ranks = [epoch_of(data, rank, world) for rank in range(world)]
    seen = [number for batches in of_ranks for batch in batches for number in batch]
    assert len(seen) == len(set(seen)) == 10 // batch_size * batch_size
    assert {len(batches) for batches in of_ranks} == {10 // batch_size}
    assert set(seen) <= set(range(10))


def tile_data_unchanged(cohort: Path) -> TileData:
    data = tile_data(cohort)
    data.views = unchanged
    return data


def test_order_follows_from_seed_and_epoch(cohort: Path) -> None:
    data = tile_data_unchanged(cohort)
    first, second = epoch_of(data, epoch=0), epoch_of(data, epoch=1)
    assert first == epoch_of(tile_data_unchanged(cohort), epoch=0)
    assert first != second
    other = tile_data(cohort, seed=1)
    other.views = unchanged
    assert epoch_of(other) != first


def test_order_does_not_follow_from_the_rows_of_the_list(cohort: Path, tmp_path: Path) -> None:
    header, *rows = (cohort / "slides.csv").read_text().splitlines()
    (tmp_path / "slides.csv").write_text("\n".join([header, *reversed(rows)]))
    data = tile_data(cohort, slides=tmp_path / "slides.csv")
    data.views = unchanged
    assert epoch_of(data) == epoch_of(tile_data_unchanged(cohort))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_within_an_epoch_without_loading_what_it_has_had(cohort: Path, workers: int) -> None:
    data = tile_data(cohort, workers=workers)
    data.views = unchanged
    before = data.train_dataloader()
    before.sampler.set_epoch(1)
    whole = []
    for batch in before:
        whole.append(numbers_in(batch))
        if len(whole) == 5:
            had = data.state_dict()
    assert (had["epoch"], had["batches"]) == (1, 5), "not what workers have loaded ahead"

    after = tile_data(cohort)
    read = []
    after.views = lambda picture, rng: read.append(picture) or unchanged(picture, rng)
    after.load_state_dict(had)
    loader = after.train_dataloader()
    loader.sampler.set_epoch(1)
    assert [numbers_in(batch) for batch in loader] == whole[5:]
    assert (len(read), len(loader)) == (7 * 12, 12)
    assert after.state_dict() == {**had, "batches": 12}
    loader.sampler.set_epoch(2)
    assert len(list(loader)) == 12, "the next epoch is whole"


def test_views_are_the_same_with_any_number_of_workers(cohort: Path) -> None:
    batches = [torch.stack([views for (views,) in tile_data(cohort, workers=workers).loader()]) for workers in (0, 2)]
    assert batches[0].shape == (12, 12, 2, SIDE, SIDE, 3)
    assert batches[0].dtype == torch.uint8
    torch.testing.assert_close(batches[0], batches[1], rtol=0, atol=0)


def test_local_views_come_beside_the_same_global_ones(cohort: Path) -> None:
    alone, beside = (next(iter(tile_data(cohort, **more).loader())) for more in ({}, {"local_crops": 3}))
    assert [views.shape for views in beside] == [(12, 2, SIDE, SIDE, 3), (12, 3, 96, 96, 3)]
    assert {views.dtype for views in beside} == {torch.uint8}
    torch.testing.assert_close(beside[0], alone[0], rtol=0, atol=0)
    local = tile_data(cohort, local_crops=3, local_crop_px=8, local_crop_scale=(0.1, 0.2), turns=True).local_views[0]
    assert (local.crop_px, local.scale, local.turns, len(local.blur_p)) == (8, (0.1, 0.2), True, 3)


@pytest.mark.parametrize(("fold", "wanted"), [(None, "s0 s1 s2 s3 s4"), (0, "s1 s3 s4"), (1, "s0 s2 s4")])
def test_slides_of_the_held_out_fold_are_never_read(cohort: Path, fold: int | None, wanted: str) -> None:
    data = tile_data(cohort, fold=fold)
    data.views = unchanged
    assert " ".join(data.train_slides) == wanted
    starts = {"s0": 0, "s1": 10, "s2": 30, "s3": 60, "s4": 100, "end": 150}
    allowed = {
        n
        for name in data.train_slides
        for n in range(starts[name], starts[f"s{int(name[1]) + 1}"] if name != "s4" else 150)
    }
    assert data.n_tiles == len(allowed)
    assert {number for batch in epoch_of(data) for number in batch} <= allowed


@pytest.mark.parametrize(
    ("csv", "changes", "message"),
    [
        ("s0,a,0\ns1,a,0", {"fold": 0}, "all slides are in fold 0"),
        ("s0,a,0\ns1,a,1", {"fold": 7}, "no fold 7 to hold out; it has folds 0, 1"),
        ("s0,a,\ns1,a,", {"fold": 0}, "papsmear split adds them"),
        ("s0,a,\nx1,a,\nx2,a,", {}, "no shards of 2 slides of .*: x1, x2"),
        ("s0,a,\ns1,a,", {"batch_size": 31}, "30 tiles, less than a batch"),
    ],
)
def test_what_cannot_be_trained_on_is_said(
    cohort: Path, tmp_path: Path, csv: str, changes: dict[str, object], message: str
) -> None:
    (tmp_path / "slides.csv").write_text(f"slide_id,path,fold\n{csv}\n")
    with pytest.raises(UsageError, match=message):
        tile_data(cohort, slides=tmp_path / "slides.csv", **changes)


def test_slides_of_different_resolution_are_refused(tmp_path: Path, write_shards: Callable[..., Path]) -> None:
    for slide_id, mpp in (("a", 0.5), ("b", 0.25)):
        write_shards(tmp_path / "shards", slide_id, [picture_of(0)] * 9, mpp)
    (tmp_path / "slides.csv").write_text("slide_id,path\na,a\nb,b\n")
    with pytest.raises(UsageError, match=r"0\.25, 0\.5"):
        tile_data(tmp_path)


@pytest.fixture
def one_slide(tmp_path: Path, write_shards: Callable[..., Path]) -> Path:
    """A cohort of one slide of 1,030 tiles: two shards, the second of 6."""
    write_shards(tmp_path / "shards", "a", [picture_of(number % 900) for number in range(1030)])
    (tmp_path / "slides.csv").write_text("slide_id,path\na,a\n")
    return tmp_path


def test_several_shards_of_a_slide(one_slide: Path) -> None:
    data = tile_data(one_slide, batch_size=103)
    data.views = unchanged
    seen = sorted(number for batch in epoch_of(data) for number in batch)
    assert seen == sorted(number % 900 for number in range(1030))


def test_a_shard_cut_short_is_named_before_training(one_slide: Path) -> None:
    tar = one_slide / "shards" / "a" / "a-000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a-000001\.tar: the shard is cut short; delete"):
        tile_data(one_slide)
    tar.unlink()
    with pytest.raises(InputError, match=r"a-000001\.tar: No such file"):
        tile_data(one_slide)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_named_when_it_is_read(one_slide: Path, workers: int) -> None:
    tar = one_slide / "shards" / "a" / "a-000001.tar"
    content = bytearray(tar.read_bytes())
    content[0:512] = bytes(range(256)) * 2
    tar.write_bytes(content)
    with pytest.raises(InputError, match=r"a-000001\.tar: "):
        list(tile_data(one_slide, workers=workers).loader())


def test_a_damaged_tile_is_named(one_slide: Path) -> None:
    tar = one_slide / "shards" / "a" / "a-000001.tar"
    content = bytearray(tar.read_bytes())
    content[512:600] = bytes(88)
    tar.write_bytes(content)
    with pytest.raises(InputError, match=r"a-000001\.tar: the tile at byte 512 is no JPEG"):
        list(tile_data(one_slide).loader())
