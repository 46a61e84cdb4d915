"""What a view of a tile costs, global or local, and each choice for cytology on top: milliseconds of one core a view.

    python benchmarks/views.py --shards shards --slides slides.csv

JPEG decoding is not counted. Each figure is the least of several rounds over the same tiles, the choices in turn, so
that a busy machine does not favour one of them.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import cv2

from papsmear import seeds
from papsmear.ssl.augment import Views
from papsmear.ssl.data import TileData

CHOICES: dict[str, dict[str, Any]] = {
    "turns": {"turns": True},
    "stain_jitter": {"stain_jitter": 0.05},
    "hsv_jitter": {"hsv_jitter": (0.05, 0.1, 0.1)},
    "sharpen_p": {"sharpen_p": 0.5},
    "nucleus_scale": {"nucleus_scale": (0.8, 1.25)},
}
CHOICES["all"] = {key: value for choice in CHOICES.values() for key, value in choice.items()}
VIEWS = {"official": Views(), "local": Views().local(8)} | {name: Views(**choice) for name, choice in CHOICES.items()}
TILES, ROUNDS = 100, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--slides", type=Path, required=True)
    asked = parser.parse_args()
    cv2.setNumThreads(0)
    data = TileData(asked.shards, asked.slides, batch_size=1)
    data.setup("fit")
    tiles = data.tiles()
    pictures = [tiles.picture(index) for index in range(min(TILES, data.n_tiles))]
    least = dict.fromkeys(VIEWS, float("inf"))
    for number in range(ROUNDS):
        for name, views in VIEWS.items():
            began = time.process_time()
            for index, picture in enumerate(pictures):
                views(picture, seeds.rng(0, number, index))
            least[name] = min(least[name], (time.process_time() - began) / len(pictures) / len(views.blur_p) * 1000)
    for name, milliseconds in least.items():
        print(f"{name:<14}{milliseconds:.2f} ms a view  {milliseconds - least['official']:+.2f}")


if __name__ == "__main__":
    main()
