"""Tiles for DINO: the shards of the training slides, each tile once an epoch, two views of each or more.

The order of an epoch is computed, not streamed (`papsmear.ssl.order`).

Shapes: B images of this rank, 2 views of each.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from papsmear.cohort import Slide, folds_of, read_slides
from papsmear.errors import UsageError
from papsmear.signals import heed_parent_only
from papsmear.ssl.augment import Views
from papsmear.ssl.order import TileOrder
from papsmear.ssl.remote import fetch, is_url, local_folder
from papsmear.ssl.tiles import Shard, Tiles, find_shards
from papsmear.tiling.shards import read_slide_json, slide_folders


class TileData(LightningDataModule):
    """Batches of views of the training slides' tiles: a list with one uint8 tensor for each size of views.

    That is [(B, 2, crop_px, crop_px, 3)], and with n local crops (B, n, local_crop_px, local_crop_px, 3) after it.
    """

    def __init__(
        self,
        shards: str | Path,
        slides: Path,
        fold: int | None = None,
        cache: Path | None = None,
        batch_size: int = 64,
        workers: int = 4,
        crop_px: int = 224,
        crop_scale: tuple[float, float] = (0.14, 1.0),
        local_crops: int = 0,
        local_crop_px: int = 96,
        local_crop_scale: tuple[float, float] = (0.05, 0.4),
        turns: bool = False,
        stain_jitter: float = 0.0,
        hsv_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0),
        sharpen_p: float = 0.0,
        nucleus_scale: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        """Takes what decides the batches.

        Args:
            shards: The folder that `papsmear tile` wrote, or its URL (http, s3, …).
            slides: The slides.csv; all its slides must have been tiled.
            fold: The fold that is held out: its slides are not trained on. None trains on all slides.
            cache: The folder that keeps the shards of a URL; a local disk with room for those of the training slides.
            batch_size: Tiles a step, over all devices together.
            workers: Loading processes a device.
            crop_px: Side of a view; as the model's input_px.
            crop_scale: Smallest and largest share of a tile's area that a view shows; 0.4 to 1 with local crops.
            local_crops: Small views of each tile that only the student sees; the official default is 8.
            local_crop_px: Their side.
            local_crop_scale: As crop_scale, for them.
            turns: Whether views are turned by multiples of 90° and flipped both ways.
            stain_jitter: Largest change of each stain; 0.05 is light.
            hsv_jitter: Largest change of hue (1 is the whole circle), saturation and value.
            sharpen_p: How often a view is sharpened.
            nucleus_scale: In place of crop_scale: smallest and largest size of a nucleus in a view; 1 as in the tile.
            seed: Decides order and views.
        """
        super().__init__()
        self.shards, self.slides, self.fold, self.cache = shards, Path(slides), fold, cache
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.views = Views(
            crop_px=crop_px,
            scale=crop_scale,
            turns=turns,
            stain_jitter=stain_jitter,
            hsv_jitter=hsv_jitter,
            sharpen_p=sharpen_p,
            nucleus_scale=nucleus_scale,
        )
        self.local_views = [self.views.local(local_crops, local_crop_px, local_crop_scale)] if local_crops else []
        self.train_slides: tuple[str, ...] = ()
        self.mpp: float | None = None
        self._found: list[list[Shard]] = []  # by slide
        self._done = {"epoch": 0, "batches": 0}
        self._loader: TimedLoader | None = None

    @property
    def n_tiles(self) -> int:
        """How many tiles the training slides have."""
        return sum(self._of_slides)

    @property
    def _of_slides(self) -> list[int]:
        return [sum(shard.n_tiles for shard in shards) for shards in self._found]

    def prepare_data(self) -> None:
        """Fetches the shards of the training slides, where they lie at a URL; one process a node does so."""
        if is_url(self.shards):
            slide_ids = [slide.slide_id for slide in training_slides(self.slides, self.fold)]
            fetch(str(self.shards), local_folder(self.shards, self.cache), slide_ids)

    def setup(self, stage: str) -> None:
        """Finds the shards and checks all that can be checked before the first step."""
        chosen = training_slides(self.slides, self.fold)
        folders = {folder.name: folder for folder in slide_folders(local_folder(self.shards, self.cache))}
        if missing := [slide.slide_id for slide in chosen if slide.slide_id not in folders]:
            raise UsageError(
                f"{self.shards}: no shards of {len(missing)} slides of {self.slides}: {', '.join(missing)}; "
                "tile them (papsmear tile), or take them out of the list"
            )
        self.train_slides = tuple(sorted(slide.slide_id for slide in chosen))  # the order of rows decides nothing
        jsons = [(folders[name], read_slide_json(folders[name])) for name in self.train_slides]
        resolutions = {float(content["settings"]["mpp"]) for _, content in jsons}
        if len(resolutions) > 1:
            found = ", ".join(map(str, sorted(resolutions)))
            raise UsageError(f"{self.shards}: slides were tiled at different µm/px ({found}); tile them all at one")
        self.mpp = resolutions.pop()
        self._found = [find_shards(folder, content) for folder, content in jsons]
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

    def state_dict(self) -> dict[str, Any]:
        """What the leak guard asks for, and where the loader is; each checkpoint has it as the entry `TileData`.

        The loader's own state is here too, since lightning gives that back only where no module counts its steps.
        """
        told = {"train_slides": list(self.train_slides), "fold": self.fold, "mpp": self.mpp}
        return told | (self._loader.state_dict() if self._loader else self._done)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to go on with other slides than the checkpoint has seen: its list would no longer be true."""
        before, now = set(state_dict["train_slides"]), set(self.train_slides)
        changes = {"gone": before - now, "new": now - before}
        if told := [f"{what}: {', '.join(sorted(ids))}" for what, ids in changes.items() if ids]:
            raise UsageError(
                f"{self.slides}: the run to go on with was trained on other slides ({'; '.join(told)}); give the list "
                "as it was, or start in another --trainer.default_root_dir"
            )
        self._done = {key: state_dict[key] for key in self._done}

    def train_dataloader(self) -> "TimedLoader":
        """The batches of this rank; a run that goes on within an epoch starts it where it was."""
        world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else ()
        self._loader = self.loader(*world)
        self._loader.load_state_dict(self._done)
        return self._loader

    def tiles(self) -> Tiles:
        """The tiles, by their index."""
        return Tiles([shard for shards in self._found for shard in shards], [self.views, *self.local_views], self.seed)

    def order(self, rank: int = 0, world: int = 1) -> TileOrder:
        """The order in which one of `world` ranks sees them."""
        return TileOrder(self._of_slides, self.batch_size, self.seed, rank, world)

    def loader(self, rank: int = 0, world: int = 1) -> "TimedLoader":
        """The batches of one of `world` ranks; its sampler's `set_epoch` chooses the epoch."""
        return TimedLoader(
            self.tiles(),
            sampler=self.order(rank, world),
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
    folds = folds_of(slides, all_slides)
    if fold not in folds:
        has = f"it has folds {', '.join(map(str, folds))}" if folds else "it has none: papsmear split adds them"
        raise UsageError(f"{slides}: there is no fold {fold} to hold out; {has}")
    chosen = [slide for slide in all_slides if slide.fold != fold]
    if not chosen:
        raise UsageError(
            f"{slides}: all slides are in fold {fold}, which leaves none to train on; split into more folds"
        )
    return chosen


class TimedLoader(DataLoader[list[Tensor]]):
    """A DataLoader that knows how long it has let others wait, and where a run that was stopped goes on."""

    sampler: TileOrder
    waited_seconds = 0.0
    given = 0  # batches of this epoch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches the run has had."""
        return {"epoch": self.sampler.epoch, "batches": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Starts that epoch after those batches, which are not loaded again."""
        self.sampler.done = state_dict["epoch"], state_dict["batches"]

    def __iter__(self) -> Iterator[list[Tensor]]:  # type: ignore[override]  # all that is asked of it is to be iterated
        batches = super().__iter__()
        self.given = self.sampler.first
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_seconds += time.monotonic() - began
            self.given += 1
            yield batch


def _start_worker(number: int) -> None:
    cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's own threads would only fight over the cores
    heed_parent_only()
