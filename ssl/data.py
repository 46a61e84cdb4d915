"""Tiles for DINO: the shards of the training slides, each tile once an epoch, two views of each.

The order of an epoch is computed, not streamed: it follows from seed and epoch alone, and ranks and workers only take
their parts of it. So it is the same for any number of them, no worker can run dry and hang the others, and a run
that goes on goes on in the same order. Reading stays local all the same: runs of neighbouring tiles are
shuffled, and then the tiles within windows of many runs.

Shapes: B images of this rank, 2 views of each.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from papsmear import seeds
from papsmear.cohort import Slide, read_slides
from papsmear.errors import InputError, UsageError
from papsmear.ssl.augment import TwoViews
from papsmear.tiling.shards import END_OF_TAR, TILES_A_SHARD, read_slide_json, shard_name, slide_folders

RUN = 32  # neighbouring tiles that are shuffled as one
WINDOW = 64 * RUN  # tiles that are mixed with each other: 40 MB of shards, and the runs of 64 places

Position = tuple[int, int]  # epoch, and index of a tile among all


@dataclass(frozen=True)
class Shard:
    """A tar of `n_tiles` tiles."""

    path: Path
    n_tiles: int


class TileData(LightningDataModule):
    """Batches (B, 2, crop_px, crop_px, 3) uint8 of two views of each tile of the training slides."""

    def __init__(
        self,
        shards: Path,
        slides: Path,
        fold: int | None = None,
        batch_size: int = 64,
        workers: int = 4,
        crop_px: int = 224,
        crop_scale: tuple[float, float] = (0.14, 1.0),
        seed: int = 0,
    ) -> None:
        """Takes what decides the batches.

        Args:
            shards: The folder that `papsmear tile` wrote.
            slides: The slides.csv; all its slides must have been tiled.
            fold: The fold that is held out: its slides are not trained on. None trains on all slides.
            batch_size: Tiles a step, over all devices together.
            workers: Loading processes a device.
            crop_px: Side of a view; as the model's input_px.
            crop_scale: Smallest and largest share of a tile's area that a view shows.
            seed: Decides order and views.
        """
        super().__init__()
        self.shards, self.slides, self.fold = Path(shards), Path(slides), fold
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.views = TwoViews(crop_px=crop_px, scale=crop_scale)
        self.train_slides: tuple[str, ...] = ()
        self.mpp: float | None = None
        self._found: list[Shard] = []

    @property
    def n_tiles(self) -> int:
        """How many tiles the training slides have."""
        return sum(shard.n_tiles for shard in self._found)

    def setup(self, stage: str) -> None:
        """Finds the shards and checks all that can be checked before the first step."""
        chosen = training_slides(self.slides, self.fold)
        folders = {folder.name: folder for folder in slide_folders(self.shards)}
        if missing := [slide.slide_id for slide in chosen if slide.slide_id not in folders]:
            raise UsageError(
                f"{self.shards}: no shards of {len(missing)} slides of {self.slides}: {', '.join(missing)}; "
                "tile them (papsmear tile), or take them out of the list"
            )
        self.train_slides = tuple(slide.slide_id for slide in chosen)
        jsons = [(folders[name], read_slide_json(folders[name])) for name in self.train_slides]
        resolutions = {float(content["settings"]["mpp"]) for _, content in jsons}
        if len(resolutions) > 1:
            found = ", ".join(map(str, sorted(resolutions)))
            raise UsageError(f"{self.shards}: slides were tiled at different µm/px ({found}); tile them all at one")
        self.mpp = resolutions.pop()
        self._found = [shard for folder, content in jsons for shard in find_shards(folder, content)]
        world = self.trainer.world_size if self.trainer else 1
        if self.batch_size % world:
            raise UsageError(
                f"batch_size {self.batch_size} cannot be shared by {world} devices; give a multiple of {world}"
            )
        if self.n_tiles < self.batch_size:
            raise UsageError(
                f"{self.shards}: its training slides have {self.n_tiles} tiles, less than a batch ({self.batch_size}); "
                "give a smaller --data.batch_size, or more slides"
            )

    def train_dataloader(self) -> DataLoader[Tensor]:
        """The batches of this rank."""
        return self.loader(self.trainer.global_rank, self.trainer.world_size) if self.trainer else self.loader()

    def loader(self, rank: int = 0, world: int = 1) -> DataLoader[Tensor]:
        """The batches of one of `world` ranks; its sampler's `set_epoch` chooses the epoch."""
        order = TileOrder(self.n_tiles, self.batch_size, self.seed, rank, world)
        return DataLoader(
            Tiles(self._found, self.views, self.seed),
            sampler=order,
            batch_size=None,  # the sampler gives whole batches
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
        )


def training_slides(slides: Path, fold: int | None) -> list[Slide]:
    """The slides to train on: all, or those outside the held-out fold. UsageError where that is none."""
    all_slides = read_slides(slides, need_files=False)
    if fold is None:
        return all_slides
    folds = sorted({slide.fold for slide in all_slides if slide.fold is not None})
    if fold not in folds:
        has = f"it has folds {', '.join(map(str, folds))}" if folds else "it has none: papsmear split adds them"
        raise UsageError(f"{slides}: there is no fold {fold} to hold out; {has}")
    chosen = [slide for slide in all_slides if slide.fold != fold]
    if not chosen:
        raise UsageError(
            f"{slides}: all slides are in fold {fold}, which leaves none to train on; split into more folds"
        )
    return chosen


def find_shards(folder: Path, slide_json: dict[str, object]) -> list[Shard]:
    """A slide's shards. InputError naming the tar where one is missing or cut short."""
    counts = slide_json["counts"]
    assert isinstance(counts, dict)
    found, left = [], int(counts["tiles"])
    for index in range(int(counts["shards"])):
        path = folder / shard_name(str(slide_json["slide_id"]), index)
        try:
            with path.open("rb") as file:
                file.seek(-min(len(END_OF_TAR), path.stat().st_size), 2)
                ends_well = file.read() == END_OF_TAR
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; {_remedy(folder)}") from error
        if not ends_well:
            raise InputError(f"{path}: the shard is cut short; {_remedy(folder)}")
        found.append(Shard(path, min(left, TILES_A_SHARD)))
        left -= found[-1].n_tiles
    return found


class TileOrder(DistributedSampler[list[Position]]):
    """The batches of an epoch, for one rank: every tile once over all ranks, but for an incomplete last batch.

    A batch is the same tiles for any number of ranks. It is a DistributedSampler, so that lightning leaves it as it is
    and tells it the epoch.
    """

    def __init__(self, n_tiles: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.n_tiles, self.batch_size, self.rank, self.world = n_tiles, batch_size, rank, world
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return self.n_tiles // self.batch_size

    def __iter__(self) -> Iterator[list[Position]]:
        order = epoch_order(self.n_tiles, self.seed, self.epoch)
        share = self.batch_size // self.world
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            mine = order[start + self.rank * share : start + (self.rank + 1) * share]
            yield [(self.epoch, int(index)) for index in mine]


def epoch_order(n_tiles: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation (n_tiles,): runs of neighbouring tiles shuffled, then the tiles within windows."""
    rng = seeds.rng(seed, "order", epoch)
    runs = rng.permutation(-(-n_tiles // RUN))
    order = (runs[:, None] * RUN + np.arange(RUN)).reshape(-1)
    order = order[order < n_tiles]
    for start in range(0, n_tiles, WINDOW):
        rng.shuffle(order[start : start + WINDOW])
    return order


class Tiles(Dataset[Tensor]):
    """Batches by the positions of their tiles; a shard's index is read when its first tile is wanted."""

    def __init__(self, shards: list[Shard], views: TwoViews, seed: int) -> None:
        self.shards, self.views, self.seed = shards, views, seed
        self.ends = np.cumsum([shard.n_tiles for shard in shards])
        self._members: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, positions: list[Position]) -> Tensor:
        """Two views of each tile, (B, 2, crop_px, crop_px, 3) uint8."""
        return torch.from_numpy(np.stack([self._views(epoch, index) for epoch, index in positions]))

    def _views(self, epoch: int, index: int) -> NDArray[np.uint8]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        path, within = self.shards[number].path, index - int(self.ends[number])  # counted from the end: negative
        if number not in self._members:
            self._members[number] = read_index(self.shards[number])
        offset, size = self._members[number][within]
        with path.open("rb") as file:
            file.seek(offset)
            jpeg = file.read(size)
        try:
            picture = simplejpeg.decode_jpeg(jpeg)
        except ValueError as error:
            raise InputError(
                f"{path}: the tile at byte {offset} is no JPEG ({error}); {_remedy(path.parent)}"
            ) from error
        return self.views(picture, seeds.rng(self.seed, "views", epoch, index))


def read_index(shard: Shard) -> NDArray[np.int64]:
    """Offset and size in bytes (n_tiles, 2) of the JPEG members of a tar."""
    try:
        with tarfile.open(shard.path, mode="r:") as tar:
            members = [(member.offset_data, member.size) for member in tar if member.name.endswith(".jpg")]
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard.path}: the shard is damaged ({error}); {_remedy(shard.path.parent)}") from error
    if len(members) != shard.n_tiles:
        raise InputError(f"{shard.path}: holds {len(members)} tiles, not {shard.n_tiles}; {_remedy(shard.path.parent)}")
    return np.array(members, np.int64).reshape(-1, 2)


def _start_worker(number: int) -> None:
    cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's own threads would only fight over the cores


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and run papsmear tile again"
