"""From a shard of JPEG tiles to two views of each, on one core: images/s, against the official pipeline.

    OMP_NUM_THREADS=1 python benchmarks/loading.py --shards shards --slides slides.csv

The official pipeline is that of the DINO repository (Caron et al. 2021): Pillow decodes, torchvision's transforms and
Pillow make two views, as normalised float tensors. Ours is what a loading process of `lightning fit` does, to uint8
views. Both read the same tiles of the same shards. The limit is decoding the JPEG files alone. Each figure is the
median over rounds, with all in turn, of the time that the process was on the core, so that a busy machine favours none.
"""

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from papsmear.ssl.data import TileData
from papsmear.ssl.tiles import Tiles, read_index

TILES, ROUNDS = 200, 5


class OfficialViews:
    """DataAugmentationDINO of the official repository with two global crops at scale 0.14 to 1, no local ones."""

    def __init__(self) -> None:
        start = [
            T.RandomResizedCrop(224, scale=(0.14, 1.0), interpolation=InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(p=0.5),
            T.RandomApply([T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
        ]
        end = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        self.first = T.Compose([*start, *end])
        self.second = T.Compose([*start, *end])
        self.first.transforms.insert(4, lambda image: self.blur(image, 1.0))
        self.second.transforms.insert(4, lambda image: self.blur(image, 0.1))
        self.second.transforms.insert(5, lambda image: ImageOps.solarize(image) if random.random() < 0.2 else image)

    @staticmethod
    def blur(image: Image.Image, p: float) -> Image.Image:
        """The repository's GaussianBlur."""
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0))) if random.random() <= p else image

    def __call__(self, jpeg: bytes) -> list[torch.Tensor]:
        """Two views (3, 224, 224) of a tile."""
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        return [self.first(image), self.second(image)]


def read_jpegs(tiles: Tiles, count: int) -> list[bytes]:
    """The first JPEG files of the shards."""
    jpegs: list[bytes] = []
    for shard in tiles.shards:
        content = shard.path.read_bytes()
        jpegs += [content[start : start + size] for start, size in read_index(shard)[: count - len(jpegs)]]
        if len(jpegs) == count:
            break
    return jpegs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--slides", type=Path, required=True)
    asked = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    data = TileData(asked.shards, asked.slides, batch_size=1)
    data.setup("fit")
    tiles, official = data.tiles(), OfficialViews()
    count = min(TILES, data.n_tiles)
    jpegs = read_jpegs(tiles, count)

    ways: dict[str, Callable[[int, int], object]] = {
        "official, Pillow": lambda _, index: official(jpegs[index]),
        "papsmear": lambda number, index: tiles.views_of(number, index),
        "the limit: decoding": lambda _, index: simplejpeg.decode_jpeg(jpegs[index]),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name, way in ways.items():
            began = time.process_time()
            for index in range(count):
                way(number, index)
            rates[name].append(count / (time.process_time() - began))
    for name, found in rates.items():
        ratios = np.divide(found, rates["official, Pillow"])
        print(f"{name:<22}{statistics.median(found):7.0f} images/s  {np.median(ratios):5.1f} x official")


if __name__ == "__main__":
    main()
