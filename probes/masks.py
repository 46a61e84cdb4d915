"""The mask of a cell, whatever its set draws it as: a picture in Herlev's colours, or outlines as SIPaKMeD's."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from papsmear.errors import InputError
from papsmear.probes.datasets import read_rgb
from papsmear.probes.sources import MaskFile
from papsmear.tiling.phantom.masks import Parts, parts_of
from papsmear.tiling.phantom.outlines import Outlines


def read_parts(mask: MaskFile, size: tuple[int, ...]) -> Parts:
    """The parts of a cell in its picture of `size` (H, W).

    Raises InputError, which begins with the file's name, where the mask cannot be read, is of another size than the
    picture, or marks no cell. The nucleus may be empty.
    """
    height, width = size
    if isinstance(mask, Outlines):
        return mask.parts((height, width))
    try:
        rgb = read_rgb(mask)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise InputError(f"{mask.name} cannot be read: {reason}") from error
    if rgb.shape[:2] != size:
        raise InputError(f"{mask.name} is {rgb.shape[1]} x {rgb.shape[0]} px, its picture {width} x {height}")
    parts = parts_of(rgb)
    if not parts.cell.any():
        raise InputError(f"{mask.name} marks no cell")
    return parts


def read_parts_and_nucleus(mask: MaskFile, size: tuple[int, ...]) -> Parts:
    """The same, where there must be a nucleus."""
    parts = read_parts(mask, size)
    if not parts.nucleus.any():
        if isinstance(mask, Path):
            raise InputError(f"{mask.name} shows no nucleus")
        if mask.nucleus is None:
            raise InputError(f"{mask.cell.name} has no outline of the nucleus beside it")
        raise InputError(f"{mask.nucleus.name} lies outside the cell")
    return parts
