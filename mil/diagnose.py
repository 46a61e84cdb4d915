"""`papsmear diagnose`: from slide files, or folders of them, to diagnoses; the tiles never touch the disk.

A slide's JSON is written last and says what it was made from, so a run started again keeps the slides that the same
model has judged.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from papsmear import __version__
from papsmear.cohort import Slide
from papsmear.errors import PapsmearError
from papsmear.mil.diagnoser import Diagnoser, load_diagnoser
from papsmear.mil.given import find_slides
from papsmear.mil.slide_files import files_of, forget, read_record, write_diagnosis
from papsmear.mil.worklist import Entry, write_worklist
from papsmear.progress import say, track
from papsmear.tiling.deposit import Area
from papsmear.tiling.dicom import instances
from papsmear.tiling.failed import without_names
from papsmear.tiling.folder import files_of_slide, source_of
from papsmear.tiling.planes import Planes, open_planes
from papsmear.tiling.reader import check_given_mpp

READ_BYTES = 1 << 22


def diagnose(
    slides: list[Path],
    model: Path,
    out: Path = Path("diagnosis"),
    encoder: str | None = None,
    area: Area | None = None,
    mpp: float | None = None,
    min_tiles: int | None = None,
) -> int:
    """Diagnoses slides with a trained MIL model.

    For each slide writes to the output folder: <slide_id>.html, the page to read, with the ten tiles of the
    highest score at 40x and the heat map; <slide_id>.json; <slide_id>.geojson, the tiles for QuPath; and
    <slide_id>-heatmap.jpg. The slide_id is the file's name without its ending. Of several slides worklist.html and
    worklist.csv, the highest probability first. A slide that cannot be judged is called not assessable, with the
    reason. Slides that the same model has diagnosed before are kept. Research use only.

    Args:
        slides: Slide files, folders of them, or for DICOM the folder of a slide.
        model: The run folder that `lightning fit -c configs/mil.yaml` made.
        out: Folder for the results.
        encoder: Where the encoder is now, if it is no longer where it was when the model was trained.
        area: What to read: the round cell deposit of a liquid-based preparation, all tissue, or all of the slide. Not
            given, it is what the model was trained on; all else of the tiles always is.
        mpp: µm per pixel of level 0, for slides whose files do not say.
        min_tiles: The fewest tiles that a slide is judged by; a tenth of what the training slides have if not given.

    Returns:
        0, or 1 where a slide failed; the others are done nonetheless.
    """
    check_given_mpp(mpp)
    found = find_slides(slides, mpp)
    diagnoser = load_diagnoser(model, encoder, area, min_tiles)
    entries, failures = [], []
    for slide in track(found, "diagnose"):
        try:
            entry = Entry(slide.slide_id, _diagnose(slide, diagnoser, out))
        except PapsmearError as error:
            forget(out, slide.slide_id)
            failures.append(f"{slide.slide_id}: {error}")
            entry = Entry(slide.slide_id, None, without_names(" ".join(str(error).split()), slide))
        else:
            say(f"{slide.slide_id}: {_result(entry)}: {files_of(out, slide.slide_id)[0]}")
        entries.append(entry)
    for failure in failures:
        say(f"failed: {failure}")
    if len(found) > 1 or found[0].path not in slides:
        say(f"all of them, the highest probability first: {write_worklist(out, entries)}")
    return 1 if failures else 0


def _result(entry: Entry) -> str:
    if entry.probability is None:
        return f"{entry.decision}: {entry.reason}"
    return f"{entry.probability:.3f}, {entry.decision}"


def _diagnose(slide: Slide, diagnoser: Diagnoser, out: Path) -> dict[str, Any]:
    """What the slide's JSON says, which is written unless it is there; InputError where the slide cannot be read."""
    with open_planes(slide.path, None, slide.mpp, diagnoser.tiles.reader) as planes:
        source = {key: value for key, value in source_of(slide.path).items() if key != "name"}
        record = read_record(out, slide.slide_id)
        if record is not None and _is_current(record, diagnoser, planes, source):
            return record
        files = instances(slide.path) or files_of_slide(slide.path)
        with ThreadPoolExecutor(1) as aside:  # reading a slide's file once more takes no time of those who wait
            checksum = aside.submit(_sha256, files)
            diagnosis = diagnoser.diagnose(slide.slide_id, planes)
            diagnosis = replace(diagnosis, source={**source, "sha256": checksum.result()})
        write_diagnosis(out, diagnosis, planes.middle)
    return diagnosis.record()


def _is_current(record: dict[str, Any], diagnoser: Diagnoser, planes: Planes, source: dict[str, Any]) -> bool:
    """Whether a record is of this slide, by this model with these settings."""
    now = {
        "papsmear_version": __version__,
        "model": diagnoser.model,
        "tile_settings": asdict(diagnoser.tiles),
        "limits": asdict(diagnoser.limits),
    }
    slide = {**source, "mpp": planes.middle.mpp}
    told = record.get("slide", {})
    return now == {key: record.get(key) for key in now} and slide == {key: told.get(key) for key in slide}


def _sha256(files: Iterable[Path]) -> str:
    """SHA-256 of a slide's files, one after the other."""
    checksum = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while data := file.read(READ_BYTES):
                checksum.update(data)
    return checksum.hexdigest()
