"""slides.csv: every fault in one error, and folds that never split a patient."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from papsmear.cli import main
from papsmear.cohort import folds_of, read_slides, split, write_rows
from papsmear.errors import UsageError
from papsmear.mil.data import BagData
from papsmear.ssl.data import training_slides


def _write(folder: Path, text: str) -> Path:
    (folder / "a.svs").touch()
    file = folder / "slides.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_column_is_read(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        "\ufeffslide_id, path ,label,patient_id,fold,site,scanner,mpp,remark\n"
        'a-1,a.svs,1,p1,2,north,AT2,0.25,"kept, too"\n'
        f"b_2,{tmp_path / 'a.svs'},,,,,,,\n",
    )
    one, two = read_slides(file)
    assert (one.slide_id, one.label, one.patient_id, one.fold, one.site, one.mpp) == ("a-1", 1, "p1", 2, "north", 0.25)
    assert one.path == two.path == tmp_path / "a.svs"
    assert one.row["remark"] == "kept, too"
    assert (two.label, two.fold, two.mpp, two.site) == (None, None, None, "")
    assert two.patient_id == "b_2"  # a slide without a patient is its own


def test_one_error_lists_all_faults_with_their_lines(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        "slide_id,path,label,fold,mpp\n"
        "a,a.svs,0,0,\n"
        "a,a.svs,1,0,\n"
        "b.c d,missing.svs,2,x,9\n"
        ",,,-1,wide\n"
        "e,a.svs,1,0,0.5\n",
    )
    with pytest.raises(UsageError) as caught:
        read_slides(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    for fault in (
        r"line 3: slide_id 'a' is already in line 2",
        r"line 4: slide_id 'b\.c d' .* use 'b_c_d'",
        r"line 4: path 'missing\.svs'",
        r"line 4: label '2'",
        r"line 4: fold 'x'",
        r"line 4: mpp '9'",
        r"line 5: slide_id ''",
        r"line 5: path is empty",
        r"line 5: fold '-1'",
        r"line 5: mpp 'wide'",
    ):
        assert re.search(fault, message), fault
    assert "line 2:" not in message
    assert "line 6:" not in message


def test_a_duplicate_id_is_reported_even_in_a_row_with_another_fault(tmp_path: Path) -> None:
    file = _write(tmp_path, "slide_id,path,label\na,a.svs,7\na,a.svs,1\nb,a.svs,1\nb,a.svs,8\n")
    with pytest.raises(UsageError, match=r"line 3: slide_id 'a' is already in line 2.*line 5: .*already in line 4"):
        read_slides(file)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), max_size=12))
def test_the_id_that_the_error_proposes_is_accepted(tmp_path_factory: pytest.TempPathFactory, slide_id: str) -> None:
    folder = tmp_path_factory.mktemp("ids")
    file = folder / "slides.csv"
    write_rows(file, [{"slide_id": slide_id, "path": "a.svs"}])
    if re.fullmatch(r"[A-Za-z0-9_-]+", slide_id.strip()):
        assert read_slides(file, need_files=False)[0].slide_id == slide_id.strip()
        return
    with pytest.raises(UsageError) as caught:
        read_slides(file, need_files=False)
    proposed = re.search(r"use '([A-Za-z0-9_-]+)'", str(caught.value))
    assert proposed, caught.value
    write_rows(file, [{"slide_id": proposed[1], "path": "a.svs"}])
    assert read_slides(file, need_files=False)[0].slide_id == proposed[1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "column 'slide_id' is missing; column 'path' is missing"),
        ("slide_id,file\na,a.svs\n", "column 'path' is missing.*slide_id, file"),
        ("slide_id,path\n", "no slides"),
        ('slide_id,path\n"a,a.svs\n', "not a csv file"),
        ("slide_id,path,slide_id\na,a.svs,b\n", "column 'slide_id' is there 2 times"),
        ("slide_id,path\na,a.svs,1\n", "line 2: '1' stands beyond the header"),
        ("slide_id,path\na\n", "line 2: path is empty"),
    ],
)
def test_a_file_that_is_no_slide_list(text: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=fault):
        read_slides(_write(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"slides\.csv: cannot read"):
        read_slides(tmp_path / "slides.csv")
    (tmp_path / "slides.csv").write_bytes(b"slide_id,path\n\xff\xfe,a\n")
    with pytest.raises(UsageError, match="UTF-8"):
        read_slides(tmp_path / "slides.csv")


cohorts = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3)), min_size=8, max_size=40).filter(
    lambda patients: all(n >= 4 for n in (sum(p[0] for p in patients), sum(1 - p[0] for p in patients)))
)


@given(cohorts, st.integers(2, 4), st.integers(0, 3))
def test_folds_keep_patients_whole_and_hold_both_labels(
    tmp_path_factory: pytest.TempPathFactory, patients: list[tuple[int, int]], folds: int, seed: int
) -> None:
    file = tmp_path_factory.mktemp("split") / "slides.csv"
    rows = [
        {"slide_id": f"s{i}_{j}", "path": f"{i}.svs", "label": str(label), "patient_id": f"p{i}", "remark": "kept"}
        for i, (label, n_slides) in enumerate(patients)
        for j in range(n_slides)
    ]
    write_rows(file, rows)
    split(file, folds, seed)
    slides = read_slides(file, need_files=False)
    assert [{**row, "fold": slide.row["fold"]} for row, slide in zip(rows, slides, strict=True)] == [
        slide.row for slide in slides
    ]
    folds_of: dict[str, set[int | None]] = {}
    for slide in slides:
        folds_of.setdefault(slide.patient_id, set()).add(slide.fold)
    assert all(len(found) == 1 for found in folds_of.values())
    assert Counter((slide.fold, slide.label) for slide in slides).keys() == {
        (fold, label) for fold in range(folds) for label in (0, 1)
    }
    first = file.read_bytes()
    split(file, folds, seed)
    assert file.read_bytes() == first


def test_patients_with_both_labels_and_slides_without_one(tmp_path: Path) -> None:
    rows = [
        {"slide_id": f"s{i}", "path": "x", "label": label, "patient_id": f"p{i // 2}"}
        for i, label in enumerate(["0", "1"] * 8 + ["", "0"])
    ]
    write_rows(tmp_path / "slides.csv", rows)
    split(tmp_path / "slides.csv", folds=4)
    slides = read_slides(tmp_path / "slides.csv", need_files=False)
    assert all(one.fold == two.fold for one, two in zip(slides[::2], slides[1::2], strict=True))
    assert {slide.fold for slide in slides} == {0, 1, 2, 3}


@pytest.mark.parametrize("folds", ["1", "4"])
def test_more_folds_than_patients_is_refused_and_the_file_stays(
    folds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _write(tmp_path, "slide_id,path,label,patient_id\na,x,0,p\nb,x,0,q\nc,x,0,r\nd,x,1,s\ne,x,1,s\nf,x,1,t\n")
    before = file.read_bytes()
    assert main(["split", str(file), f"--folds={folds}"]) == 2
    said = capsys.readouterr().err
    assert f"--folds={folds}" in said
    assert said.count("\n") == 1
    assert file.read_bytes() == before


def test_a_patient_with_slides_in_two_folds_is_refused_until_split_mends_it(tmp_path: Path) -> None:
    rows = ["a,a.svs,1,p,0", "b,a.svs,0,q,1", "c,a.svs,1,p,1", "d,a.svs,0,r,0", "e,a.svs,1,s,1", "f,a.svs,1,p,"]
    file = _write(tmp_path, "\n".join(["slide_id,path,label,patient_id,fold", *rows]))
    with pytest.raises(UsageError, match=r"slides\.csv: 1 patients .* patient_id 'p' in 0, 1, .*papsmear split"):
        folds_of(file, read_slides(file))
    assert folds_of(file, read_slides(file)[1:3]) == [1]
    split(file, folds=2)
    assert folds_of(file, read_slides(file)) == [0, 1]


def test_trainings_refuse_folds_that_part_a_patient(tmp_path: Path) -> None:
    rows = [f"s{i},a.svs,{i % 2},p{i // 2 if i < 2 else i},{i % 4}" for i in range(12)]
    file = _write(tmp_path, "\n".join(["slide_id,path,label,patient_id,fold", *rows]))
    with pytest.raises(UsageError, match="patient_id 'p0' in 0, 1"):
        training_slides(file, 0)
    with pytest.raises(UsageError, match="patient_id 'p0' in 0, 1"):
        BagData(tmp_path, file, fold=0).setup("fit")


def test_rows_keep_commas_and_quotes(tmp_path: Path) -> None:
    rows = [{"slide_id": "a", "path": 'odd, "name".svs'}]
    write_rows(tmp_path / "slides.csv", rows)
    with (tmp_path / "slides.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == rows
