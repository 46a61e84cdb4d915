"""Sets in class folders: the public archives as they unpack and as they are found in copies, and plain ones.

Herlev: `<class>/<name>.BMP` with the mask `<name>-d.bmp` beside it, or `images/<class>/<name>.jpg` with the masks in a
folder tree of their own. SIPaKMeD: `im_<class>/im_<class>/CROPPED/<name>.bmp` with the outlines `<name>_cyt.dat` and
`<name>_nuc.dat` beside it; the pictures one folder up are whole fields of view, not cells. Folders may lie deeper, and
their names may differ in capitals, spaces and spelling.
"""

from collections.abc import Mapping
from pathlib import Path

from papsmear.errors import UsageError
from papsmear.probes.classes import CellClass, PublicSet
from papsmear.probes.sources import SUFFIXES, Listed, MaskFile
from papsmear.tiling.phantom.outlines import Outlines

_MASK_TREES = ("mask", "masks")
_Key = tuple[str, ...]


def find_public(public: PublicSet, folder: Path) -> list[Listed]:
    """The cells of a public set below `folder`. UsageError where there are none, or a class has several folders."""
    masks: dict[_Key, MaskFile] = {**_masks_in(folder), **_outlines_in(folder, public.outlines)}
    found: list[Listed] = []
    for cell_class in public.classes:
        homes = [top for top in _class_folders(folder, cell_class) if _cells_in(top)]
        if len(homes) > 1:
            listed = ", ".join(home.relative_to(folder).as_posix() for home in homes)
            raise UsageError(
                f"{folder}: several folders for the class {cell_class.name!r} ({listed}); "
                "give the folder that holds the set once"
            )
        found += [
            Listed(path, cell_class.name, mask=masks.get(_key(path, folder)))
            for home in homes
            for path in _cells_in(home)
        ]
    if not found:
        wants = " or ".join(f"{c.name.replace(' ', '_')}/" for c in public.classes[:2])
        raise UsageError(f"{folder}: no images of {public.title} in it; it wants class folders such as {wants}")
    return found


def find_plain(folder: Path) -> list[Listed]:
    """The cells of plain class folders, `<class>/…/*.png`, each called by its class folder; masks in their own tree."""
    masks = _masks_in(folder, beside=False)
    found = [
        Listed(path, top.name, mask=masks.get(_key(path, folder)))
        for top in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower() not in _MASK_TREES)
        for path in sorted(top.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not found:
        raise UsageError(f"{folder}: no images in it; it wants a folder for each class, such as LSIL/ and NILM/")
    return found


def _class_folders(folder: Path, cell_class: CellClass) -> list[Path]:
    """The topmost folders below `folder` whose name is the class's, outside trees of masks."""
    tops: list[Path] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_dir()):
        inside = path.relative_to(folder).parts
        if any(part.lower() in _MASK_TREES for part in inside) or any(top in path.parents for top in tops):
            continue
        if cell_class.is_called(path.name):
            tops.append(path)
    return tops


def _cells_in(top: Path) -> list[Path]:
    """The cell pictures in a class folder: those in CROPPED where there is one, else in it or its namesake inside."""
    below = [p for p in top.rglob("*") if p.is_dir()]
    cropped = [p for p in below if p.name.lower() == "cropped"]
    homes = cropped or [top, *(p for p in below if p.name.lower() == top.name.lower())]
    files = {file for home in homes for file in home.iterdir() if file.suffix.lower() in SUFFIXES}
    return sorted(f for f in files if not f.stem.lower().endswith("-d") and not f.name.startswith("."))


def _masks_in(folder: Path, beside: bool = True) -> dict[_Key, Path]:
    """The masks below `folder`, by what they share with their images: in a tree of masks, or `<name>-d` beside them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        in_tree = any(part.lower() in _MASK_TREES for part in path.relative_to(folder).parts[:-1])
        if path.suffix.lower() in SUFFIXES and (in_tree or (beside and path.stem.lower().endswith("-d"))):
            found[_key(path, folder)] = path
    return found


def _outlines_in(folder: Path, endings: Mapping[str, str]) -> dict[_Key, Outlines]:
    """The outlines of cells below `folder`, by what they share with their images."""
    found: dict[str, dict[_Key, Path]] = {part: {} for part in endings}
    for path in sorted(folder.rglob("*")) if endings else ():
        for part, ending in endings.items():
            if path.name.lower().endswith(ending):
                found[part][_key(path.with_name(path.name[: -len(ending)] + path.suffix), folder)] = path
    return {key: Outlines(path, found["nucleus"].get(key)) for key, path in found.get("cell", {}).items()}


def _key(path: Path, folder: Path) -> _Key:
    """What an image and its mask have in common: their place, but for the trees they are in, and their name."""
    inside = [part.lower() for part in path.relative_to(folder).parts[:-1]]
    places = [part for part in inside if part not in (*_MASK_TREES, "image", "images")]
    return (*places, path.stem.lower().removesuffix("-d"))
