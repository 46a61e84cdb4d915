"""Shards: what is written comes back, any WebDataset reader reads it, and damage is told from an end."""

import gc
import io
import json
import tarfile
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from papsmear.errors import InputError, UsageError
from papsmear.tiling.shards import ShardWriter, Tile, read_slide_json, read_tiles, slide_folders

JPEG = bytes(range(256)) * 3


def make_tiles(n: int) -> list[Tile]:
    return [
        Tile((640 * (i % 50), 640 * (i // 50)), 640.5, 320, 0.5, 0.0, i / 8, 0.25, JPEG + bytes([i % 251]))
        for i in range(n)
    ]


def write(folder: Path, n: int, slide_id: str = "s-1") -> Path:
    folder.mkdir()
    with ShardWriter(folder, slide_id) as writer:
        for tile in make_tiles(n):
            writer.write(tile)
    counts = {"tiles": writer.n_tiles, "shards": writer.n_shards}
    (folder / "slide.json").write_text(json.dumps({"slide_id": slide_id, "settings": {}, "counts": counts}))
    return folder


@pytest.mark.parametrize(("n", "shards"), [(0, 0), (1, 1), (1024, 1), (1025, 2)])
def test_what_is_written_comes_back_in_order(tmp_path: Path, n: int, shards: int) -> None:
    folder = write(tmp_path / "s-1", n)
    names = [f"s-1-{i:06d}.tar" for i in range(shards)]
    assert sorted(file.name for file in folder.glob("*.tar")) == names
    assert list(read_tiles(folder)) == [(tile.meta("s-1"), tile.jpeg) for tile in make_tiles(n)]


def test_names_and_values_are_those_of_the_contract(tmp_path: Path) -> None:
    folder = write(tmp_path / "s-1", 2)
    with tarfile.open(folder / "s-1-000000.tar") as tar:
        members = tar.getmembers()
        content = tar.extractfile(members[3])
        assert content is not None
        meta = json.loads(content.read())
    assert [m.name for m in members] == ["s-1_x0_y0.jpg", "s-1_x0_y0.json", "s-1_x640_y0.jpg", "s-1_x640_y0.json"]
    assert meta == {
        "slide_id": "s-1", "x_level0": 640, "y_level0": 0, "size_level0": 640.5, "size_px": 320, "mpp": 0.5,
        "z": 0.0, "focus": 0.125, "content": 0.25, "crc32": zlib.crc32(make_tiles(2)[1].jpeg),
    }  # fmt: skip
    assert all((m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644) for m in members)
    assert (folder / "s-1-000000.tar").read_bytes()[257:265] == b"ustar\x0000"


def test_the_same_tiles_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, 30) / "s-1-000000.tar" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("slide_id", ["s-1", "a" * 200])  # 200 letters do not fit into the plain header
def test_a_tar_is_what_tarfile_would_write(tmp_path: Path, slide_id: str) -> None:
    tiles = [*make_tiles(3), replace(make_tiles(1)[0], jpeg=b"", z_index=2), replace(make_tiles(1)[0], jpeg=bytes(512))]
    tmp_path.joinpath("s").mkdir()
    with ShardWriter(tmp_path / "s", slide_id) as writer:
        for tile in tiles:
            writer.write(tile)
    with tarfile.open(tmp_path / "oracle.tar", "w", format=tarfile.PAX_FORMAT) as oracle:
        for tile in tiles:
            for kind, data in (("jpg", tile.jpeg), ("json", json.dumps(tile.meta(slide_id)).encode())):
                member = tarfile.TarInfo(f"{tile.key(slide_id)}.{kind}")
                member.size = len(data)
                oracle.addfile(member, io.BytesIO(data))
    made, wanted = (tmp_path / "s" / f"{slide_id}-000000.tar").read_bytes(), (tmp_path / "oracle.tar").read_bytes()
    assert made == wanted
    name = f"{slide_id}-000000.tar"
    assert writer.shards == [{"name": name, "tiles": 5, "bytes": len(made), "crc32": zlib.crc32(made)}]


def test_planes_of_one_place_have_keys_of_their_own() -> None:
    tile = make_tiles(2)[1]
    planes = [replace(tile, z=float(z), z_index=i) for i, z in enumerate((-2, 0, 2))]
    assert [plane.key("s") for plane in planes] == [f"s_x640_y0_z{i}" for i in range(3)]
    assert [(plane.meta("s")["z"], plane.meta("s")["z_index"]) for plane in planes] == [(-2, 0), (0, 1), (2, 2)]
    assert "z_index" not in tile.meta("s")


def test_shards_without_checksums_and_content_can_be_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "s-1", 2)
    tar = folder / "s-1-000000.tar"
    data = tar.read_bytes()
    for key in (b'"content"', b'"crc32"'):
        data = data.replace(key, key[:-2] + b'_"')
    tar.write_bytes(data)
    assert [jpeg for _, jpeg in read_tiles(folder)] == [tile.jpeg for tile in make_tiles(2)]


def test_a_changed_picture_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "s-1", 3)
    tar = folder / "s-1-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(make_tiles(2)[1].jpeg, b"#" + make_tiles(2)[1].jpeg[1:], 1))
    with pytest.raises(InputError, match=r"s-1-000000\.tar: s-1_x640_y0\.jpg is damaged \(its CRC differs\)"):
        list(read_tiles(folder))


def test_webdataset_reads_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "s-1", 1030)
    urls = [str(file) for file in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # WebDataset leaves its files to the garbage collector
        samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
        gc.collect()
    assert [(s["__key__"], s["jpg"], json.loads(s["json"])) for s in samples] == [
        (tile.key("s-1"), tile.jpeg, tile.meta("s-1")) for tile in make_tiles(1030)
    ]


def test_a_shard_cut_anywhere_is_named(tmp_path: Path) -> None:
    tar = write(tmp_path / "s-1", 4) / "s-1-000000.tar"
    whole = tar.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in (0, 1, 511, 512, 700, 1500, 2048, end - 1, end, end + 511, *range(512, end, 512)):
        tar.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"s-1-000000\.tar: the shard is cut short; delete the folder"):
            list(read_tiles(tar.parent))


def test_damage_inside_a_shard_is_named(tmp_path: Path) -> None:
    tar = write(tmp_path / "s-1", 4) / "s-1-000000.tar"
    whole = tar.read_bytes()
    headers = [i for i in range(0, len(whole), 512) if whole[i : i + 3] == b"s-1"]
    for at in headers:
        tar.write_bytes(whole[: at + 10] + b"#" + whole[at + 11 :])
        with pytest.raises(InputError, match=r"s-1-000000\.tar: "):
            list(read_tiles(tar.parent))
    tar.write_bytes(whole.replace(b'{"slide_id"', b'["slide_id"', 1))
    with pytest.raises(InputError, match=r"s-1-000000\.tar: s-1_x0_y0\.json is damaged"):
        list(read_tiles(tar.parent))
    tar.write_bytes(whole.replace(b'"focus"', b'"fucus"', 1))
    with pytest.raises(InputError, match=r"s-1_x0_y0\.json lacks some of .*focus"):
        list(read_tiles(tar.parent))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.jpg"], "a.jpg has no .json"),
        (["a.json"], "a.json has no pair"),
        (["a.jpg", "b.json"], "b.json has no pair"),
    ],
)
def test_a_sample_without_its_pair_is_named(tmp_path: Path, names: list[str], reason: str) -> None:
    tar = write(tmp_path / "s-1", 1) / "s-1-000000.tar"
    with tarfile.open(tar, "w") as file:
        for name in names:
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(InputError, match=rf"s-1-000000\.tar: {reason}"):
        list(read_tiles(tar.parent))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "s-1", 1025)
    (folder / "s-1-000001.tar").unlink()
    with pytest.raises(InputError, match=r"s-1-000001\.tar: No such file"):
        list(read_tiles(folder))
    (folder / "slide.json").write_text('{"slide_id": ')
    with pytest.raises(InputError, match=r"slide\.json: damaged"):
        read_slide_json(folder)
    (folder / "slide.json").write_text("[]")
    with pytest.raises(InputError, match=r"slide\.json: not a slide\.json"):
        read_slide_json(folder)
    (folder / "slide.json").unlink()
    with pytest.raises(InputError, match=r"slide\.json: No such file"):
        read_slide_json(folder)


def test_folders_of_finished_slides(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tiled slides in it; papsmear tile makes them"):
        slide_folders(tmp_path)
    for name in ("b", "a", ".c.part"):
        write(tmp_path / name, 1)
    (tmp_path / "d").mkdir()
    assert [folder.name for folder in slide_folders(tmp_path)] == ["a", "b"]
