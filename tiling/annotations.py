"""Annotations as QuPath exports them: GeoJSON in level-0 pixels, read into classified boxes around cells.

QuPath writes a FeatureCollection, a list of Features or a single one, plain or zipped. A cell is a point, a rectangle
or an outline (ellipses come as outlines). Each point of a MultiPoint and each part of a MultiPolygon is a cell of its
own: QuPath makes these when it merges annotations of one class. Whatever cannot be a cell is a Problem, never an
exception, so that one slip of the mouse does not cost a file.
"""

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]  # left, top, right, bottom

_KIND_AS_ID = re.compile(r"Path\w+Object|TMACoreObject")  # QuPath 0.2 wrote what an object is where its id belongs
_FARTHEST_PX = 1e9
_LEAST_AREA_PX = 1e-3


@dataclass(frozen=True)
class Shape:
    """What one cell was annotated with.

    `feature` names it: QuPath's id, or `#n`, its place in the file. `classification` holds the parts of its class,
    `("Tumor", "Positive")` for `Tumor: Positive`. The box of a point has no size.
    """

    feature: str
    classification: tuple[str, ...]
    box_level0: Box


@dataclass(frozen=True)
class Problem:
    """Why an annotation is no cell: what `kind` of trouble, one of a few, and the `detail` of this one.

    `feature` is empty where the trouble is the whole file's.
    """

    feature: str
    kind: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """Kind and detail as one phrase."""
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


def read_annotations(file: Path) -> tuple[list[Shape], list[Problem]]:
    """The annotated cells in QuPath's GeoJSON, in the order of the file, and what is none."""
    try:
        features = _features(json.loads(_unpacked(file.read_bytes())))
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        return [], [Problem("", "unreadable annotation file", why)]
    found = [item for number, feature in enumerate(features, 1) for item in _read(feature, number)]
    return [item for item in found if isinstance(item, Shape)], [item for item in found if isinstance(item, Problem)]


def _unpacked(data: bytes) -> str:
    """The text of a file that may be compressed, by QuPath (zip) or by others (gzip)."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read(next(iter(archive.namelist()), ""))
    elif data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    return data.decode("utf-8-sig")


def _features(content: Any) -> list[Any]:
    kind = content.get("type") if isinstance(content, dict) else None
    features = content.get("features") if kind == "FeatureCollection" else [content] if kind == "Feature" else content
    if not isinstance(features, list):
        raise ValueError("no GeoJSON features in it; export the objects from QuPath again")
    return features


def _read(feature: Any, number: int) -> Iterator[Shape | Problem]:
    """The cells of one feature; several for a MultiPoint or a MultiPolygon."""
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        yield Problem(f"#{number}", "not a feature")
        return
    own_id = str(feature.get("id") or "")
    name = own_id if own_id and not _KIND_AS_ID.fullmatch(own_id) else f"#{number}"
    classification = _classification(feature.get("properties"))
    if not classification:
        yield Problem(name, "no class")
        return
    geometry = feature.get("geometry")
    kind, coordinates = (geometry.get("type"), geometry.get("coordinates")) if isinstance(geometry, dict) else ("", [])
    if kind not in ("Point", "MultiPoint", "Polygon", "MultiPolygon"):
        yield Problem(name, "unsupported shape", str(kind or "no geometry"))
        return
    parts = coordinates if kind.startswith("Multi") and isinstance(coordinates, list) else [coordinates]
    noun, box_of = ("point", _box_of_point) if kind.endswith("Point") else ("polygon", _box_of_polygon)
    for part in parts:
        box = box_of(part)
        yield Problem(name, f"broken {noun}", box) if isinstance(box, str) else Shape(name, classification, box)


def _classification(properties: Any) -> tuple[str, ...]:
    """The parts of a class: QuPath has written `{"name": "Tumor: Positive"}`, `{"names": [...]}` and plain text."""
    found = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(found, dict):
        found = found.get("names") or found.get("name")
    parts = found if isinstance(found, list) else str(found or "").split(":")
    return tuple(part for part in (str(part).strip() for part in parts) if part)


def _box_of_point(point: Any) -> Box | str:
    """The box of no size at a point, or what is wrong with the point."""
    xy_level0 = _positions([point])
    return xy_level0 if isinstance(xy_level0, str) else _around(xy_level0)


def _box_of_polygon(rings: Any) -> Box | str:
    """The box around a polygon's outer ring, or what is wrong with the ring. Holes do not matter."""
    xy_level0 = _positions(rings[0] if isinstance(rings, list) and rings else None)
    if isinstance(xy_level0, str):
        return xy_level0
    ring = xy_level0[(xy_level0 != np.roll(xy_level0, 1, axis=0)).any(axis=1)]  # without what closes it
    if len(np.unique(ring, axis=0)) < 3:
        return "fewer than 3 points"
    if _crosses_itself(ring):
        return "crosses itself"
    x, y = (ring - ring[0]).T
    if abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 < _LEAST_AREA_PX:
        return "no area"
    return _around(ring)


def _positions(points: Any) -> NDArray[np.float64] | str:
    """(P, 2) level-0 pixels, or why these are none."""
    try:
        xy_level0 = np.array(points, np.float64)
    except (TypeError, ValueError):
        return "coordinates that are no numbers"
    if xy_level0.ndim != 2 or xy_level0.shape[1] < 2:
        return "coordinates that are no list of x and y"
    if not (np.abs(xy_level0[:, :2]) < _FARTHEST_PX).all():
        return "coordinates that are not finite"
    return np.asarray(xy_level0[:, :2])


def _around(xy_level0: NDArray[np.float64]) -> Box:
    (left, top), (right, bottom) = xy_level0.min(axis=0).tolist(), xy_level0.max(axis=0).tolist()
    return left, top, right, bottom


def _crosses_itself(ring: NDArray[np.float64]) -> bool:
    """Whether two sides of a ring (P, 2) cross. Sides that only touch do no harm to the box."""
    start, end = ring, np.roll(ring, -1, axis=0)
    order = np.argsort(np.minimum(start, end)[:, 0], kind="stable")
    start, end = start[order], end[order]
    # By their left ends in order, a side can only cross those of the next ones that begin before its right end.
    until = np.searchsorted(np.minimum(start, end)[:, 0], np.maximum(start, end)[:, 0], "right")
    for i, stop in enumerate(until.tolist()):
        others = slice(i + 1, stop)
        a, b, c, d = start[i], end[i], start[others], end[others]
        apart = (_turn(a, b, c) * _turn(a, b, d) < 0) & (_turn(c, d, a) * _turn(c, d, b) < 0)
        if apart.any():
            return True
    return False


def _turn(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """Which way the path a, b, c turns: the sign of -1, 0 or 1."""
    ab, ac = b - a, c - a
    return np.asarray(np.sign(ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0]))


def class_of(classification: Sequence[str], classes: Iterable[str]) -> str | None:
    """Which of `classes` a classification is: the one of its full name, else the one of its first parts.

    `HSIL: Positive` is `HSIL` where there is no `HSIL: Positive`. Capitals do not matter, nor what words are joined
    with: `moderate_dysplastic` is `Moderate dysplastic`.
    """
    known = plain_names(classes)
    for n in range(len(classification), 0, -1):
        if (name := known.get(_plain(":".join(classification[:n])))) is not None:
            return name
    return None


def plain_names(classes: Iterable[str]) -> Mapping[str, str]:
    """The names by what `class_of` takes them for; of several that are the same to it, the last."""
    return {_plain(name): name for name in classes}


def _plain(name: str) -> str:
    # Only between letters: "p16+" and "p16-" are two classes.
    return ":".join(re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", part.strip().casefold()) for part in name.split(":"))
