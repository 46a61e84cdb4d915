"""Negative tiles for the labelled sets: drawn fold by fold, copied byte for byte, damage told."""

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def shape(kind: str, coordinates: Any, name: str = "HSIL") -> dict[str, Any]:
    return {"geometry": {"type": kind, "coordinates": coordinates}, "properties": {"classification": {"name": name}}}


def box(left: float, top: float, width: float, height: float, name: str = "HSIL") -> dict[str, Any]:
    right, bottom = left + width, top + height
    return shape("Polygon", [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]], name)


def annotate_many(bench: Any, n: int, *lines: str) -> None:
    bench.annotate(*(box(100 + 21 * i, 900, 20, 20) for i in range(n)))
    bench.name(f"s1,{bench.slide.path},1,0,s1.geojson", *lines)


def test_negative_tiles_are_spread_over_the_slides_and_shards_of_the_fold(bench: Any) -> None:
    bench.write_shards("n2", 1500)
    bench.write_shards("n3", 3)
    bench.write_shards("other", 50)
    bench.write_shards("unknown", 50)
    lines = ["n1,gone.svs,0,0,", "n2,gone.svs,0,0,", "n3,gone.svs,0,0,", "other,gone.svs,0,1,", "unknown,gone.svs,,0,"]
    annotate_many(bench, 83, *lines, "untiled,gone.svs,0,0,")
    assert bench.run() == 0
    negatives = bench.tiles("0")
    assert Counter(row["slide_id"] for row in negatives) == {"n1": 40, "n2": 40, "n3": 3}
    places = [int(row["x_level0"]) // 320 for row in negatives if row["slide_id"] == "n2"]
    assert len(set(places)) == 40
    assert places == sorted(places)
    assert min(places) < 300
    assert max(places) >= 1200
    for row in negatives:
        assert (bench.out / row["file"]).read_bytes() == b"%d" % (int(row["x_level0"]) // 320)


def test_a_fold_that_lacks_negative_tiles_is_filled_as_far_as_it_goes(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.annotate(*(box(100 + 21 * i, 900, 20, 20) for i in range(50)))
    lines = [f"s{fold or 'x'},{bench.slide.path},1,{fold},s1.geojson" for fold in ("0", "1", "")]
    bench.name(*lines, "n1,gone.svs,0,0,")
    assert bench.run() == 0
    error = capsys.readouterr().err
    assert "fold 0: 40 negative tiles for 50 positive ones" in error
    assert "fold 1: 0 negative tiles for 50 positive ones" in error
    assert "fold none: 0 negative tiles for 50 positive ones" in error
    assert Counter(row["fold"] for row in bench.tiles()) == {"0": 50, "1": 50, "": 50}
    assert {row["fold"] for row in bench.tiles("0")} == {"0"}


def test_shards_of_other_tiles_are_refused(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write_shards("n2", 3, size_px=256, quality=80)
    annotate_many(bench, 1, "n1,gone.svs,0,0,", "n2,gone.svs,0,0,")
    assert bench.run() == 2
    error = capsys.readouterr().err
    assert f"{bench.shards}/n2: tiled with size_px 256 instead of 320, quality 80 instead of 90;" in error
    assert not bench.out.exists()


def damage_end(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[: 512 * 30])


def damage_pair(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes().replace(b"_y0.json", b"_y9.json"))


def damage_meta(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes().replace(b'{"slide_id"', b'["slide_id"'))


def damage_pictures(path: Path) -> None:
    with tarfile.open(path) as tar:
        places = [member.offset_data for member in tar if member.name.endswith(".jpg")]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, damage_end, damage_pair, damage_meta, damage_pictures])
def test_a_damaged_shard_is_named(
    bench: Any, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    bench.write_shards("n2", 1500)
    annotate_many(bench, 30, "n1,gone.svs,0,0,", "n2,gone.svs,0,0,")
    damage(bench.shards / "n2" / "n2-000001.tar")
    assert bench.run() == 1
    error = capsys.readouterr().err
    assert f"slide n2 failed: {bench.shards}/n2/n2-000001.tar: " in error
    assert "run papsmear tile again" in error
    assert {row["slide_id"] for row in bench.tiles("0")} == {"n1"}
    assert len(list((bench.out / "tiles" / "negative").iterdir())) == len(bench.tiles("0")) == 15
