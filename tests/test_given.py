"""Folders of slides against a folder that is one slide."""

import shutil
from pathlib import Path

import pytest

from papsmear.errors import UsageError
from papsmear.mil.given import find_slides


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def _found(*paths: Path) -> dict[str, Path]:
    return {slide.slide_id: slide.path for slide in find_slides(paths)}


def test_a_folder_holds_the_slides_in_it_and_below_it(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "b.SVS",
        "a 1.ndpi",
        "deep/er/c.tiff",
        "notes.txt",
        ".hidden.svs",
        "m.mrxs",
        "m/Slidedat.ini",
        "m/1.dat",
    )
    assert _found(tmp_path) == {
        "a_1": tmp_path / "a 1.ndpi",
        "b": tmp_path / "b.SVS",
        "m": tmp_path / "m.mrxs",
        "c": tmp_path / "deep/er/c.tiff",
    }
    assert list(_found(tmp_path)) == ["a_1", "b", "m", "c"]


def test_a_file_is_a_slide_whatever_its_ending(tmp_path: Path) -> None:
    _touch(tmp_path, "x.bin")
    assert _found(tmp_path / "x.bin") == {"x": tmp_path / "x.bin"}


def test_a_slide_named_twice_is_one(tmp_path: Path) -> None:
    _touch(tmp_path, "a.svs")
    assert _found(tmp_path, tmp_path / "a.svs") == {"a": tmp_path / "a.svs"}


def test_all_that_is_wrong_is_listed(tmp_path: Path) -> None:
    _touch(tmp_path, "one/a.svs", "two/a.svs", "none/a.txt")
    with pytest.raises(UsageError) as caught:
        find_slides([tmp_path / "one", tmp_path / "two", tmp_path / "none", tmp_path / "gone"])
    for words in ("would both be slide 'a'", "none: no slide in the folder", "gone: no such file"):
        assert words in str(caught.value)


def test_a_dicom_folder_is_one_slide_and_lies_among_others(shared_data: Path, tmp_path: Path) -> None:
    dicom = shared_data / "slides" / "CMU-1-Small-Region-dicom"
    assert _found(dicom) == {"CMU-1-Small-Region-dicom": dicom}
    (file, *_) = sorted(dicom.iterdir())
    assert list(_found(file).values()) == [file]
    _touch(tmp_path, "a.svs", "first/DICOMDIR.txt")
    for instance in dicom.iterdir():
        shutil.copyfile(instance, tmp_path / "first" / instance.name)
    assert _found(tmp_path) == {"a": tmp_path / "a.svs", "first": tmp_path / "first"}


def test_series_of_dicom_that_lie_together_are_as_many_slides(shared_data: Path, tmp_path: Path) -> None:
    from pydicom import dcmread

    for file in sorted((shared_data / "slides" / "CMU-1-Small-Region-dicom").iterdir()):
        shutil.copyfile(file, tmp_path / f"one_{file.name}")
        other = dcmread(file)
        other.SeriesInstanceUID = "1.2.3.4"
        other.save_as(tmp_path / f"two_{file.name}")
    paths = list(_found(tmp_path).values())
    assert [path.name.partition("_")[0] for path in paths] == ["one", "two"]
