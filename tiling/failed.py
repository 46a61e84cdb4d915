"""What is kept of a slide that failed: OUT/failed/<slide_id>.json says why, and a picture shows it where there is one.

Reasons name the slide's file, since that is what the user has to look for; what is kept and may be shown to others
does not, for a file may be called by the patient.
"""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from papsmear.cohort import Slide
from papsmear.errors import InputError, UsageError
from papsmear.files import remove, whole, write_text
from papsmear.tiling.deposit import DepositError

FOLDER = "failed"
QUALITY = 85
DOUBT_RGB = (200, 30, 30)
FROM_LETTERS = 4  # a shorter name of a file, without its ending, would be found in words that are no name


def check_ids(slides: list[Slide]) -> None:
    """UsageError where a slide has the name of the folder for those that failed."""
    if any(slide.slide_id == FOLDER for slide in slides):
        raise UsageError(f"slide_id {FOLDER!r} is the name of the folder for slides that failed; call it otherwise")


def files_of(slide_id: str) -> tuple[str, ...]:
    """All that a failure, or a run killed while it wrote one, leaves in the folder `failed`."""
    return tuple(f"{before}{slide_id}{end}" for before, end in (
        ("", ".json"), ("", ".jpg"), (".", ".json.part"), (".", ".jpg.part"),
    ))  # fmt: skip


def forget(out: Path, slide_id: str) -> None:
    """Removes what a slide's failure has left."""
    for name in files_of(slide_id):
        remove(out / FOLDER / name)


def leave(out: Path, slide: Slide, reason: str, seen: DepositError | None) -> None:
    """Keeps why a slide failed, and a picture of what was seen on it where that is why."""
    forget(out, slide.slide_id)
    folder = out / FOLDER
    if seen is not None:
        with whole(folder / f"{slide.slide_id}.jpg") as part:
            part.write_bytes(simplejpeg.encode_jpeg(_picture(seen), QUALITY))
    content = {"slide_id": slide.slide_id, "reason": without_names(reason, slide)}
    write_text(folder / f"{slide.slide_id}.json", json.dumps(content, indent=1) + "\n")


def _picture(seen: DepositError) -> NDArray[np.uint8]:
    """The overview (H, W, 3) with the outlines of what was found and not believed."""
    outlines = [np.rint(outline / seen.level0_px_per_px).astype(np.int32) for outline in seen.outlines_xy_level0]
    picture, thickness = seen.overview.copy(), max(2, max(seen.overview.shape) // 400)
    cv2.polylines(picture, outlines, isClosed=True, color=DOUBT_RGB, thickness=thickness, lineType=cv2.LINE_AA)
    return picture


def read_reason(out: Path, slide_id: str) -> str | None:
    """Why a slide failed; None where it did not."""
    file = out / FOLDER / f"{slide_id}.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["reason"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged ({error}); delete it") from error


def without_names(reason: str, slide: Slide) -> str:
    """`reason` with the names of the slide's files and folder taken out."""
    path = slide.path
    beside = path.parent.glob(f"*{path.suffix}") if path.suffix else ()  # a slide may be of several files
    names = {path.name, path.stem, *(name for file in beside for name in (file.name, file.stem) if name in reason)}
    text = reason.replace(slide.z_planes or str(path), slide.slide_id).replace(str(path), slide.slide_id)
    text = text.replace(f"{path.parent}/", "")
    for name in sorted(names, key=len, reverse=True):
        if len(name) >= FROM_LETTERS or "." in name:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", slide.slide_id, text)
    return text.removeprefix(f"{slide.slide_id}: ")
