"""Features kept on the disk, so that an encoder embeds a set once, however often its figures are made anew.

A file is named by a checksum of all that its features depend on: the content of the images in their order, the
encoder's weights and how it takes images, and the version of the package.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from papsmear import __version__
from papsmear.files import whole
from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import Floats, Ints
from papsmear.probes.scale import Resize, at_encoder_scale, mpp_of
from papsmear.progress import track
from papsmear.ssl.card import EncoderCard
from papsmear.ssl.encoder import Encoder, embed_images


class Images(Protocol):
    """Pictures (H, W, 3) uint8 that can be gone through again: a tuple of them, or what makes them anew each time."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[NDArray[np.uint8]]: ...


def features_of(encoder: Encoder, name: str, cells: CellSet, folder: Path, resize: Resize = "whole") -> Floats:
    """Features (N, D) of the set's N cells: those in `folder`, else embedded now and kept there.

    `name` of the encoder is for the progress bar; `resize`: images are resized whole, or brought to its µm/px. Raises
    InputError where a feature is not finite.
    """
    path = folder / f"{cells.name}-{checksum(encoder.card, cells, resize)[:20]}.npy"
    images = cells.images if resize == "whole" else at_encoder_scale(cells, encoder.card)
    return _kept(path, encoder, f"{name}: {cells.title}", images, len(cells.images))


def features_of_images(encoder: Encoder, what: str, kind: str, images: Images, folder: Path) -> Floats:
    """The same for N images of any `kind`, a word for the file's name; `what` is for the progress bar."""
    return _kept(folder / f"{kind}-{_digest(encoder.card, images)[:20]}.npy", encoder, what, images, len(images))


def _kept(path: Path, encoder: Encoder, what: str, images: Iterable[NDArray[np.uint8]], count: int) -> Floats:
    """The features at `path`, or of `images`, which are then kept there."""
    kept = _read(path)
    if kept is not None and kept.shape == (count, encoder.width):
        return kept
    features = embed_images(encoder, track(images, what, count))
    memory = io.BytesIO()
    np.save(memory, features)  # into a file itself, NumPy does not say that the disk is full
    with whole(path) as part:
        part.write_bytes(memory.getvalue())
    return features


def checksum(card: EncoderCard, cells: CellSet, resize: Resize = "whole") -> str:
    """SHA-256 of what features depend on; not of names and labels."""
    return _digest(card, cells.images, *((mpp_of(card), cells.mpp) if resize == "mpp" else ()))


def _digest(card: EncoderCard, images: Images, *more: Any) -> str:
    made_by = (__version__, card.sha256, card.architecture, card.input_px, card.mean, card.std, *more)
    digest = hashlib.sha256(repr(made_by).encode())
    for image in images:
        digest.update(repr(image.shape).encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def set_checksum(cells: CellSet, pictures: Ints | None) -> str:
    """SHA-256 of the cells that a set has, their classes and their source pictures: what splits and tests depend on."""
    digest = hashlib.sha256(repr((tuple(c.name for c in cells.classes), cells.labels.tolist())).encode())
    digest.update(repr(None if pictures is None else pictures.tolist()).encode())
    for image in cells.images:
        digest.update(repr(image.shape).encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _read(path: Path) -> Floats | None:
    """Features that were kept; None where there are none, or the file is damaged."""
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    except (OSError, EOFError, ValueError):
        return None
