"""The report of `make demo`: one page on what each stage made, and what came of it.

`python -m papsmear.mil.demo DEMO` reads what the stages left in DEMO and writes DEMO/report.html. It computes nothing
that a stage should have said itself, except one check that only phantoms allow: how many of the top tiles
hold an abnormal cell that was really put there.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import simplejpeg
from rich.console import Console
from rich.table import Column, Table

from papsmear import __version__
from papsmear.cohort import Slide, read_slides
from papsmear.errors import InputError, PapsmearError
from papsmear.files import write_text
from papsmear.mil.curves import bar_figure, loss_figure
from papsmear.mil.truth import hold_a_cell, read_cells
from papsmear.page import figure_uri, jpeg_uri, picture_uri, render
from papsmear.probes.classes import TITLES
from papsmear.tiling.shards import read_slide_json, read_tiles, slide_folders

SLIDES_SHOWN, TILES_SHOWN, TOP_SHOWN = 8, 32, 5
PICTURE_PX = 560
SMALL = (2.3, 1.9)  # inches, of the figures in the row on top


def main(words: Sequence[str] | None = None) -> int:
    """Writes the report and prints where to look; returns the exit status."""
    parser = argparse.ArgumentParser(prog="papsmear.mil.demo", description="The report of `make demo`.")
    parser.add_argument("demo", type=Path, help="The folder that the demo filled.")
    demo = parser.parse_args(words).demo
    try:
        values = gather(demo)
        write_text(demo / "report.html", render("mil/demo.html", **values))
    except PapsmearError as error:
        sys.stderr.write(f"papsmear.mil.demo: error: {' '.join(str(error).split())}\n")
        return error.exit_status
    Console().print(_where_to_look(demo, values))
    return 0


def gather(demo: Path) -> dict[str, Any]:
    """What the page shows, from the files of each stage; InputError names one that is missing, and the stage to run."""
    slides = read_slides(_need(demo / "cohort" / "slides.csv", "papsmear phantom"), need_files=False)
    folders = slide_folders(_need(demo / "shards", "papsmear tile"))
    counts = {folder.name: int(read_slide_json(folder)["counts"]["tiles"]) for folder in folders}
    encoder = _read_json(demo / "features" / "encoder.json", "papsmear embed")
    return {
        "version": __version__,
        "slides": _slides(demo, slides, counts),
        "n_slides": len(slides),
        "n_positive": sum(slide.label == 1 for slide in slides),
        "n_tiles": sum(counts.values()),
        "tiles": _sample_tiles(folders),
        "tile_settings": read_slide_json(folders[0])["settings"],
        "encoder": encoder,
        "dino_curve": figure_uri(loss_figure(_need(demo / "ssl", "lightning fit -c configs/ssl/tiny.yaml"))),
        "dino_small": figure_uri(loss_figure(demo / "ssl", SMALL)),
        "mil_curve": figure_uri(loss_figure(_need(demo / "mil", "lightning fit -c configs/mil.yaml"))),
        "probes": _probes(_read_json(demo / "probe" / "results.json", "papsmear probe"), encoder["sha256"]),
        "test": _read_json(demo / "mil" / "test.json", "lightning test -c configs/mil.yaml"),
        "diagnosis": _diagnosis(demo, slides),
        "diagnoses": _diagnoses(demo, slides),
        "times": _times(demo / "timings.csv"),
    }


def _need(path: Path, command: str) -> Path:
    if not path.exists():
        raise InputError(f"{path} is missing; {command} makes it: run make demo again, it goes on from there")
    return path


def _read_json(path: Path, command: str) -> dict[str, Any]:
    try:
        content = json.loads(_need(path, command).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run {command} again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not what {command} writes; delete it and run that again")
    return content


def _slides(demo: Path, slides: Sequence[Slide], counts: dict[str, int]) -> list[dict[str, Any]]:
    """The first slides that were tiled, with what is true of them."""
    shown = [slide for slide in slides if slide.slide_id in counts][:SLIDES_SHOWN]
    return [
        {
            "id": slide.slide_id,
            "label": slide.label,
            "site": slide.site,
            "tiles": counts[slide.slide_id],
            "picture": _picture(_need(demo / "shards" / slide.slide_id / "overview.jpg", "papsmear tile")),
        }
        for slide in shown
    ]


def _picture(file: Path) -> str:
    """A picture file, shrunk to what the page shows."""
    rgb = simplejpeg.decode_jpeg(file.read_bytes())
    scale = min(1.0, PICTURE_PX / max(rgb.shape))
    return picture_uri(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def _sample_tiles(folders: Sequence[Path]) -> list[str]:
    """Tiles from the middle of the first slides' first shards, as many of each."""
    chosen = folders[:SLIDES_SHOWN]
    each = -(-TILES_SHOWN // len(chosen))
    tiles = []
    for folder in chosen:
        middle = max(0, int(read_slide_json(folder)["counts"]["tiles"]) // 2 - each // 2)
        tiles += [jpeg_uri(jpeg) for _, jpeg in islice(read_tiles(folder), middle, middle + each)]
    return tiles[:TILES_SHOWN]


def _probes(results: dict[str, Any], sha256: str) -> list[dict[str, Any]]:
    """For each set its classes, and for each encoder k and the F1 scores; the encoder of the demo comes first."""
    own = {name for name, card in results["encoders"].items() if card["sha256"] == sha256}
    tables = []
    for name, facts in results["sets"].items():
        rows = [score for score in results["scores"] if score["set"] == name]
        rows.sort(key=lambda row: row["encoder"] not in own)
        weighted = {row["encoder"]: row["weighted_f1"]["mean"] for row in rows}
        bars = figure_uri(bar_figure(weighted, "weighted F1, %", SMALL))
        tables.append({"title": TITLES[name], **facts, "rows": rows, "bars": bars})
    return tables


def _diagnosis(demo: Path, slides: Sequence[Slide]) -> dict[str, Any]:
    """The diagnosis of the first positive slide that could be judged, whatever it says, checked against the truth."""
    for slide in slides:
        file = demo / "diagnosis" / f"{slide.slide_id}.json"
        if slide.label == 1 and file.is_file():
            record = _read_json(file, "papsmear diagnose")
            if record["probability"] is not None:
                break
    else:
        raise InputError(f"{demo / 'diagnosis'}: no positive slide; papsmear diagnose makes it: run make demo again")
    heat = _need(file.with_name(f"{slide.slide_id}-heatmap.jpg"), "papsmear diagnose")
    cells = read_cells(demo / "cohort" / "annotations" / f"{slide.slide_id}.geojson")  # (A, 2)
    top = record["top_tiles"]
    hits = hold_a_cell([tile["xy_level0"] for tile in top], record["tiles"]["size_level0"], cells)  # (10,)
    metas = [meta for meta, _ in read_tiles(demo / "shards" / slide.slide_id)]
    corners = [(meta["x_level0"], meta["y_level0"]) for meta in metas]
    base_rate = float(hold_a_cell(corners, record["tiles"]["size_level0"], cells).mean())
    pictures = _tile_pictures(demo / "shards" / slide.slide_id, top[:TOP_SHOWN])
    return {
        "record": record,
        "heat": _picture(heat),
        "hits": int(hits.sum()),
        "n_abnormal": len(cells),
        "expected_hits": len(top) * base_rate,
        "tiles": [
            tile | {"picture": pictures[tuple(tile["xy_level0"])], "abnormal": bool(hit)}
            for tile, hit in zip(top[:TOP_SHOWN], hits, strict=False)
        ],
    }


def _tile_pictures(folder: Path, tiles: Sequence[dict[str, Any]]) -> dict[tuple[int, ...], str]:
    """The pictures of some tiles by their corner, from the slide's shards."""
    wanted = {tuple(tile["xy_level0"]) for tile in tiles}
    found = {(meta["x_level0"], meta["y_level0"]): jpeg for meta, jpeg in read_tiles(folder)}
    if missing := wanted - found.keys():
        raise InputError(f"{folder}: no tile at {min(missing)}, but the diagnosis names it; diagnose the slide again")
    return {corner: jpeg_uri(found[corner]) for corner in wanted}


def _diagnoses(demo: Path, slides: Sequence[Slide]) -> list[dict[str, Any]]:
    """Every slide that was diagnosed, in the order of slides.csv, with its true label."""
    rows = []
    for slide in slides:
        file = demo / "diagnosis" / f"{slide.slide_id}.json"
        if file.is_file():
            record = _read_json(file, "papsmear diagnose")
            rows.append({**record, "label": slide.label, "fold": slide.fold})
    return rows


def _times(file: Path) -> list[tuple[str, float]]:
    """Seconds of each stage, where the demo wrote them down."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return [(row["stage"], float(row["seconds"])) for row in csv.DictReader(stream)]


def _where_to_look(demo: Path, values: dict[str, Any]) -> Table:
    made = values["diagnosis"]["record"]["slide_id"]
    table = Table("stage", "made", Column("look at", overflow="fold"), title=f"Made in {demo}/", title_justify="left")
    f1 = ", ".join(f"{p['title']} {100 * p['rows'][0]['weighted_f1']['mean']:.1f} %" for p in values["probes"])
    test = values["test"]
    table.add_row("phantom", f"{values['n_slides']} slides, {values['n_positive']} positive", "cohort/slides.csv")
    table.add_row("tile", f"{values['n_tiles']} tiles", "shards")
    table.add_row("pretrain", f"encoder {values['encoder']['architecture']}", "ssl/encoder.safetensors")
    table.add_row("probe", f"weighted F1: {f1}", "probe/report.html")
    table.add_row("MIL", f"AUC {test['auc']:.2f} on {test['slides']} test slides", "mil/test.json")
    table.add_row("diagnose", f"{len(values['diagnoses'])} slides", f"diagnosis/{made}.html")
    table.add_row("[bold]all of it[/bold]", "", "[bold]report.html[/bold]")
    return table


if __name__ == "__main__":
    sys.exit(main())
