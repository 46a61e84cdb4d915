"""Features kept on the disk, so that an encoder embeds a set once, however often its figures are made anew.

A file is named by a checksum of all that its features depend on: the content of the images in their order, the
encoder's weights and how it takes images, and the version of the package.
"""

import hashlib
import io
from pathlib import Path

import numpy as np

from papsmear import __version__
from papsmear.files import whole
from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import Floats
from papsmear.probes.scale import Resize, at_encoder_scale, mpp_of
from papsmear.progress import track
from papsmear.ssl.card import EncoderCard
from papsmear.ssl.encoder import Encoder, embed_images


def features_of(encoder: Encoder, name: str, cells: CellSet, folder: Path, resize: Resize = "whole") -> Floats:
    """Features (N, D) of the set's N cells: those in `folder`, else embedded now and kept there.

    `name` of the encoder is for the progress bar; `resize`: images are resized whole, or brought to its µm/px. Raises
    InputError where a feature is not finite.
    """
    path = folder / f"{cells.name}-{checksum(encoder.card, cells, resize)[:20]}.npy"
    kept = _read(path)
    if kept is not None and kept.shape == (len(cells.labels), encoder.width):
        return kept
    images = cells.images if resize == "whole" else at_encoder_scale(cells, encoder.card)
    features = embed_images(encoder, track(images, f"{name}: {cells.title}", len(cells.images)))
    memory = io.BytesIO()
    np.save(memory, features)  # into a file itself, NumPy does not say that the disk is full
    with whole(path) as part:
        part.write_bytes(memory.getvalue())
    return features


def checksum(card: EncoderCard, cells: CellSet, resize: Resize = "whole") -> str:
    """SHA-256 of what features depend on; not of names and labels."""
    digest = hashlib.sha256(
        repr((__version__, card.sha256, card.architecture, card.input_px, card.mean, card.std)).encode()
    )
    if resize == "mpp":
        digest.update(repr((mpp_of(card), cells.mpp)).encode())
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
