"""Nothing that names a patient gets out of the tiler: names are put wherever a slide has room for one, then looked for.

The slide is an Aperio file whose every tag, JPEG stream, label and macro image carries them, and its folder is called
by the patient; others are so themselves and fail in ways that make the tiler speak of them. The name of a slide's file
is kept in its slide.json.
"""

import itertools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from numpy.typing import NDArray

from papsmear.cli import main
from papsmear.cohort import read_slides
from papsmear.tiling.failed import without_names
from papsmear.tiling.shards import read_slide_json

PATIENT, USER, HOST, BARCODE, DATE = "Amina Nkeng", "dr_mwangi", "scanner-kisumu", "CYT00012345", "1970:03:14 09:26:53"
WORDS = ("amina", "nkeng", "mwangi", "kisumu", "cyt00012345", "1970:03:14", "14/03/70")
FIELDS = (
    "ScanScope ID", "Filename", "Title", "User", "Barcode", "ImageID", "Name", "Patient", "Date", "Time", "Operator",
    "Left", "Copyright", "Slide", "Rack", "Comment",
)  # fmt: skip
TEXT_TAGS = {
    "DocumentName": 269, "Make": 271, "Model": 272, "PageName": 285, "Artist": 315, "HostComputer": 316,
    "Copyright": 33432, "ImageHistory": 37395, "CameraOwnerName": 42032, "BodySerialNumber": 42033,
}  # fmt: skip
MAGENTA = (255, 0, 255)
ALLOWED = {0xC0, 0xC4, 0xDB, 0xDD, 0xE0}  # a baseline JPEG's frame, tables, restart interval, and the JFIF header


def everything() -> str:
    return f"{PATIENT}, {USER}@{HOST}, {BARCODE}, {DATE}, 14/03/70"


def jpeg(rgb: NDArray[np.uint8]) -> bytes:
    """JPEG bytes with names in a comment, an Exif and an ICC segment, and behind the end."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), 85, colorsubsampling="420")
    segments = ((0xFE, b""), (0xE1, b"Exif\0\0"), (0xE2, b"ICC_PROFILE\0\1\1"), (0xED, b"Photoshop 3.0\0"))
    extra = b""
    for marker, head in segments:
        body = head + everything().encode()
        extra += bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body
    first = 4 + int.from_bytes(data[4:6], "big")  # after the JFIF header
    return data[:first] + extra + data[first:] + everything().encode()


def tiles(rgb: NDArray[np.uint8]) -> Iterator[bytes]:
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -height % 256), (0, -width % 256), (0, 0)), mode="edge")
    for y, x in itertools.product(range(0, height, 256), range(0, width, 256)):
        yield jpeg(padded[y : y + 256, x : x + 256])


def write_named_svs(path: Path, rgb: NDArray[np.uint8]) -> None:
    height, width = rgb.shape[:2]
    fields = "".join(f"|{field} = {everything()}" for field in FIELDS)
    head = f"Aperio Image Library v12 {USER}\n{width}x{height} (256x256) JPEG/YCC Q=85|AppMag = 20|MPP = 0.5{fields}"
    tags: list[Any] = [(code, "s", 0, everything(), False) for code in TEXT_TAGS.values()]
    tags.append((700, 1, len(everything()), everything().encode(), False))
    tag = np.full((200, 200, 3), MAGENTA, np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for picture, description, is_tiled, subfile in (
            (rgb, head, True, 0),
            (rgb[::10, ::10], head.replace("Q=85", "Q=85 - thumbnail"), False, 0),
            (rgb[::4, ::4], head, True, 0),
            (tag, f"Aperio Image Library v12 {PATIENT}\nlabel 200x200", False, 1),
            (tag, f"Aperio Image Library v12 {PATIENT}\nmacro 200x200", False, 9),
        ):
            tiff.write(
                tiles(picture) if is_tiled else iter([jpeg(picture)]),
                shape=picture.shape, dtype=np.uint8, photometric="rgb", compression="jpeg", subsampling=(2, 2),
                tile=(256, 256) if is_tiled else None, rowsperstrip=None if is_tiled else picture.shape[0],
                description=description, subfiletype=subfile, software=everything(), datetime=DATE, metadata=None,
                extratags=tags, iccprofile=everything().encode(),
            )  # fmt: skip


def leaks(folder: Path) -> list[str]:
    """Every file that holds one of the words, in its name or its bytes, as text of one or two bytes a letter."""
    found = []
    for file in folder.rglob("*"):
        data = file.read_bytes().lower() if file.is_file() else b""
        for word in WORDS:
            for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
                if word.encode(encoding) in data or word in str(file.relative_to(folder)).lower():
                    found.append(f"{file.relative_to(folder)}: {word}")
    return found


def jpegs(out: Path) -> Iterator[bytes]:
    yield from (file.read_bytes() for file in out.rglob("*.jpg"))
    for file in out.rglob("*.tar"):
        with tarfile.open(file) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield content.read()


def markers(data: bytes) -> set[int]:
    """The segments of a JPEG before its picture."""
    found, at = set(), 2
    while data[at + 1] != 0xDA:
        found.add(data[at + 1])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return found


@pytest.fixture(scope="module")
def named(small_slide: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slides.csv of slides that are called by their patient, and carry the name wherever there is room."""
    folder = tmp_path_factory.mktemp("named") / "Nkeng, Amina"
    folder.mkdir()
    write_named_svs(folder / "case_1970.svs", small_slide.rgb)
    write_named_svs(folder / "Amina_Nkeng_blank.svs", np.full((1000, 1000, 3), 240, np.uint8))
    (folder / "Amina_Nkeng_text.svs").write_text(everything())
    (folder / "Amina_Nkeng_empty.svs").touch()
    whole = (folder / "case_1970.svs").read_bytes()
    (folder / "Amina_Nkeng_cut.svs").write_bytes(whole[: len(whole) // 2])
    rows = ["1970,case_1970.svs", *(f"{name},Amina_Nkeng_{name}.svs" for name in ("blank", "text", "empty", "cut"))]
    rows = [f"{row},{PATIENT},{USER},{HOST}," for row in rows]
    rows.append(f"planes,case_1970.svs,{PATIENT},{USER},{HOST},Amina_Nkeng_z{{z:+d}}_{{z}}.svs")
    (folder / "slides.csv").write_text("\n".join(["slide_id,path,patient_id,site,scanner,z_planes", *rows]) + "\n")
    return folder / "slides.csv"


def test_the_slide_is_full_of_names(named: Path) -> None:
    """Else the test below could not fail."""
    with openslide.OpenSlide(named.parent / "case_1970.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        assert all(PATIENT in slide.properties[f"aperio.{field}"] for field in FIELDS)
        assert PATIENT in slide.properties["tiff.Artist"]
        label = np.asarray(slide.associated_images["label"].convert("RGB")).reshape(-1, 3)
        assert np.abs(label.mean(axis=0) - MAGENTA).max() < 10
    assert len(leaks(named.parent)) > 10
    assert markers(jpeg(np.zeros((16, 16, 3), np.uint8))) & {0xFE, 0xE1, 0xE2, 0xED} == {0xFE, 0xE1, 0xE2, 0xED}


@pytest.mark.parametrize("reader", ["openslide", "auto"])
def test_no_name_gets_out(named: Path, tmp_path: Path, reader: str) -> None:
    out = tmp_path / "o"
    words = ["tile", f"--slides={named}", f"--out={out}", "--workers=1", f"--reader={reader}"]
    assert main([*words, "--size_px=160"]) == 1
    slide = read_slide_json(out / "1970")
    assert slide["counts"]["tiles"] > 50
    assert slide["reader"] == {"openslide": "openslide", "auto": "jpeg"}[reader]
    assert {file.stem for file in (out / "failed").iterdir()} == {"blank", "text", "empty", "cut", "planes"}
    found = list(jpegs(out))
    (out / "1970" / "1970-000000.tar").write_bytes(b"damaged")
    assert main(["verify", str(out)]) == 1
    assert leaks(out) == []
    assert main(["tile", *words[1:3], "--workers=1", "--size_px=160", f"--reader={reader}"]) == 1
    assert leaks(out) == []
    assert len(found) > 50
    for data in found:
        assert markers(data) <= ALLOWED
        assert data.endswith(b"\xff\xd9")
        rgb = simplejpeg.decode_jpeg(data).astype(int)
        assert (np.abs(rgb - MAGENTA).sum(axis=2) > 90).all()
    paths = re.compile(rf"{re.escape(str(named.parent))}|{re.escape(str(tmp_path))}")
    for file in (*out.rglob("*.json"), *out.glob("summary.*")):
        assert not paths.search(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("{path}: cut short", "cut short"),
        ("{path}: cannot read: Couldn't open {parent}/Amina_2.svs: no", "cannot read: Couldn't open s1: no"),
        ("{path}: slide Amina_Nkeng_1970/Data0001.dat is 1 µm/px", "slide s1/Data0001.dat is 1 µm/px"),
        ("{path}: give the column mpp of slides.csv", "give the column mpp of slides.csv"),
    ],
)
def test_reasons_keep_what_is_no_name(tmp_path: Path, reason: str, kept: str) -> None:
    for name in ("Amina_Nkeng_1970.svs", "Amina_2.svs", "is.svs"):
        (tmp_path / name).touch()
    (tmp_path / "slides.csv").write_text("slide_id,path\ns1,Amina_Nkeng_1970.svs\n")
    (slide,) = read_slides(tmp_path / "slides.csv")
    assert without_names(reason.format(path=slide.path, parent=slide.path.parent), slide) == kept
