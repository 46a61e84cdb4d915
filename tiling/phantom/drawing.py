"""The drawn things of a phantom slide: everything that placing them on a slide needs."""

from papsmear.tiling.phantom.cells import draw_cell
from papsmear.tiling.phantom.others import OTHER_KINDS, draw_other
from papsmear.tiling.phantom.stain import Stain, draw_stain

__all__ = ["OTHER_KINDS", "Stain", "draw_cell", "draw_other", "draw_stain"]
