"""The bags of a folder, each read once and kept in memory as far as they fit, so that loading never holds up training.

CLAM and TRIDENT store every tile as a chunk of its own: such a bag takes longer to read than a head to learn from it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from papsmear.errors import UsageError
from papsmear.mil.bags import read_features

GIB = 2**30


class Shelf:
    """The features of slides by their ids; `gib` GiB of them are kept, what is beyond is read each time.

    `folder` is one of bags, or CLAM's folder of features, whose bags lie in `h5_files`.
    """

    def __init__(self, folder: Path, gib: float) -> None:
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no folder of bags; make it with papsmear embed")
        within = folder / "h5_files"
        self.folder = within if within.is_dir() else folder
        if any(self.folder.glob("*.pt")) and not any(self.folder.glob("*.h5")):
            raise UsageError(
                f"{self.folder}: holds .pt files, which do not tell where the tiles lie; give the folder of .h5 files "
                "that CLAM (h5_files) and TRIDENT write"
            )
        self._room = gib * GIB
        self._kept: dict[str, NDArray[np.float16]] = {}

    def file(self, slide_id: str) -> Path:
        """The bag's file, whether it is there or not."""
        return self.folder / f"{slide_id}.h5"

    def features(self, slide_id: str) -> NDArray[np.float16]:
        """Features (N, D), not to be changed; InputError where the bag is broken."""
        if slide_id in self._kept:
            return self._kept[slide_id]
        features = read_features(self.file(slide_id))
        if features.nbytes <= self._room:
            self._room -= features.nbytes
            self._kept[slide_id] = features
        return features
