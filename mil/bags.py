"""Feature bags: one HDF5 file a slide, in the layout that CLAM and TRIDENT write and read.

Datasets `features` (N, D) float16 and `coords` (N, 2) int32, the tiles' top-left corners in level-0 pixels (x, y).
Bags of CLAM and TRIDENT are read as they are: float32, a leading axis of 1, other attributes. Beside our own bags lies
`encoder.json`, the card of the encoder that made them, which the leak guard needs.
"""

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from papsmear.errors import InputError, UsageError
from papsmear.files import whole, write_text
from papsmear.ssl.card import EncoderCard
from papsmear.tiling.cut import TileSettings


@dataclass(frozen=True)
class BagCard:
    """Where a bag's features come from: the encoder, how the slide was tiled, and the tiles' side in level-0 pixels."""

    encoder: str
    encoder_sha256: str
    tiles: TileSettings
    size_level0: float

    def attributes(self) -> dict[str, Any]:
        """The card as HDF5 attributes, those of the tiles among them by their own names."""
        own = {"encoder": self.encoder, "encoder_sha256": self.encoder_sha256, "size_level0": self.size_level0}
        return own | dataclasses.asdict(self.tiles)


@dataclass(frozen=True)
class Bag:
    """The tiles of a slide: `features` (N, D) float16 and `xy_level0` (N, 2) int32, N at least 1."""

    slide_id: str
    features: NDArray[np.float16]
    xy_level0: NDArray[np.int32]


def write_bag(
    file: Path, features: NDArray[np.float16], xy_level0: NDArray[np.int32], card: BagCard, **attributes: str
) -> None:
    """Writes a whole bag with its card, and any more `attributes`, as HDF5 attributes.

    It is put together in memory: where the disk is full, HDF5 itself can neither write nor let go of a file.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w") as h5:
        h5["features"] = features
        h5["coords"] = xy_level0
        h5.attrs.update(card.attributes() | attributes)
    with whole(file) as part:
        part.write_bytes(memory.getvalue())  # Python 3.12.1 crashes on a getbuffer() whose writing failed


def read_bag(file: Path) -> Bag:
    """Reads a bag of ours, of CLAM or of TRIDENT; InputError where it is broken, empty or not finite."""
    features = read_features(file)
    with _open(file) as h5:
        return Bag(file.stem, features, np.asarray(h5["coords"]).reshape(-1, 2).astype(np.int32))


def read_features(file: Path) -> NDArray[np.float16]:
    """The features (N, D) of a bag alone; errors as in `read_bag`."""
    with _open(file) as h5:
        n, width = _shape(file, h5)
        features = _values(h5["features"]).reshape(n, width)  # TRIDENT may have (1, N, D)
        have = h5["coords"].size // 2 if "coords" in h5 else "none"
    # By torch, as NumPy takes twenty times as long; and what is not finite is told by its bits, ten times as fast
    half = features if features.dtype == np.float16 else torch.from_numpy(features).half().numpy()
    if ((half.view(np.uint16) & 0x7C00) == 0x7C00).any():
        if not np.isfinite(features).all():
            raise InputError(f"{file}: slide {file.stem} has features that are not finite (NaN or inf); embed it again")
        raise InputError(f"{file}: slide {file.stem} has features beyond float16 (65,504); scale the encoder's output")
    if have != n:
        raise InputError(f"{file}: slide {file.stem} has {n} features but {have} coords; embed it again")
    return half


def _values(dataset: h5py.Dataset) -> NDArray[Any]:
    """All values of a dataset, as HDF5 reads them.

    CLAM and TRIDENT make every tile a chunk of its own, which HDF5 takes two to three times as long to collect as it
    takes to ask it where they lie and to pick them from the file.
    """
    *_, n, width = dataset.shape
    plain = dataset.id.get_create_plist().get_nfilters() == 0 and dataset.file.userblock_size == 0
    if not plain or dataset.chunks is None or dataset.chunks[-2:] != (1, width) or dataset.id.get_num_chunks() != n:
        return np.asarray(dataset)
    begins = np.zeros(n, np.int64)

    def note(chunk: Any) -> None:
        begins[chunk.chunk_offset[-2]] = chunk.byte_offset

    dataset.id.chunk_iter(note)
    stored = np.fromfile(dataset.file.filename, np.uint8)
    rows = np.lib.stride_tricks.sliding_window_view(stored, width * dataset.dtype.itemsize)  # one from every byte on
    return rows[begins].view(dataset.dtype)


def bag_shape(file: Path) -> tuple[int, int]:
    """(N, D) of a bag without reading its features; InputError as in `read_bag` where it is broken."""
    with _open(file) as h5:
        return _shape(file, h5)


def _shape(file: Path, h5: h5py.File) -> tuple[int, int]:
    shape = h5["features"].shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise InputError(f"{file}: features have the shape {shape}, not (tiles, width); embed it again")
    if shape[-2] == 0:
        raise InputError(
            f"{file}: slide {file.stem} has an empty bag, no tile; tile and embed it again, or drop its row"
        )
    return int(shape[-2]), int(shape[-1])


def read_card(file: Path) -> BagCard | None:
    """The card of a bag, None for bags of others."""
    with _open(file) as h5:
        attributes = {name: v.item() if isinstance(v, np.generic) else v for name, v in h5.attrs.items()}
    try:
        return BagCard(
            encoder=str(attributes["encoder"]),
            encoder_sha256=str(attributes["encoder_sha256"]),
            tiles=TileSettings.from_json(attributes),
            size_level0=float(attributes["size_level0"]),
        )
    except KeyError:
        return None


def read_size_level0(file: Path) -> float | None:
    """The tiles' side in level-0 pixels, by our card or TRIDENT's; None where the bag does not tell (CLAM)."""
    with _open(file) as h5:
        side = h5.attrs.get("size_level0", h5["coords"].attrs.get("patch_size_level0") if "coords" in h5 else None)
        return None if side is None else float(side)


def read_attribute(file: Path, name: str) -> str | None:
    """One text attribute of a bag, None where it has none."""
    with _open(file) as h5:
        return str(h5.attrs[name]) if name in h5.attrs else None


def _open(file: Path) -> h5py.File:
    try:
        h5 = h5py.File(file, "r")
    except FileNotFoundError as error:
        raise UsageError(f"{file}: there is no such bag; make it with papsmear embed") from error
    except OSError as error:
        raise InputError(f"{file}: not a whole HDF5 file ({error}); delete it and embed again") from error
    if "features" not in h5:
        names = ", ".join(h5) or "nothing"
        h5.close()
        raise InputError(f"{file}: holds {names}, not the dataset `features`; embed it again")
    return h5


def write_encoder_card(folder: Path, card: EncoderCard) -> None:
    """Writes `encoder.json` into a folder of bags."""
    write_text(folder / "encoder.json", card.to_json() + "\n")


def read_encoder_card(folder: Path) -> EncoderCard | None:
    """The card of the encoder that made a folder of bags, None where it holds none (bags of CLAM, TRIDENT)."""
    file = folder / "encoder.json"
    if not file.is_file():
        return None
    try:
        return EncoderCard.from_json(file.read_text(encoding="utf-8"))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not the card of an encoder ({error}); embed again into a new folder") from error
