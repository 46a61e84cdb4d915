"""Embedding: shards to bags, resuming, and inputs that fail."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import simplejpeg
import torch
from torch import nn

from papsmear.cli import main
from papsmear.errors import InputError
from papsmear.mil.bags import read_bag, read_card, read_encoder_card
from papsmear.mil.embed import embed_tiles
from papsmear.ssl.card import EncoderCard
from papsmear.ssl.encoder import Encoder, load_encoder
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.shards import ShardWriter, Tile

ENCODER = "random:test_vit"
SETTINGS = {"area": "all", "quality": 75}
SLIDES = ("s1", "s2", "s3")


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(noise.repeat(4, 0).repeat(4, 1)))


def write_slide(shards: Path, slide_id: str, n: int) -> Path:
    folder = shards / slide_id
    folder.mkdir(parents=True)
    with ShardWriter(folder, slide_id) as writer:
        for i in range(n):
            writer.write(Tile((640 * i, 7), 640.0, 32, 0.5, 0.0, 1.0, 1.0, picture(i)))
    counts = {"tiles": writer.n_tiles, "shards": writer.n_shards}
    (folder / "slide.json").write_text(json.dumps({"slide_id": slide_id, "settings": SETTINGS, "counts": counts}))
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three slides of 11, 1 and 3 tiles."""
    for slide_id, n in zip(SLIDES, (11, 1, 3), strict=True):
        write_slide(tmp_path / "shards", slide_id, n)
    return tmp_path / "shards"


def embed(shards: Path, out: Path, encoder: str = ENCODER) -> int:
    return main(["embed", "--shards", str(shards), "--encoder", encoder, "--out", str(out), "--batch_size=4"])


def test_bags_hold_the_features_of_the_tiles_in_their_order(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "features"
    assert embed(shards, out) == 0
    encoder = load_encoder(ENCODER, "cpu")
    assert read_encoder_card(out) == encoder.card
    bag, card = read_bag(out / "s1.h5"), read_card(out / "s1.h5")
    assert bag.features.shape == (11, encoder.width)
    assert bag.xy_level0.tolist() == [[640 * i, 7] for i in range(11)]
    assert card is not None
    assert (card.encoder, card.encoder_sha256) == (ENCODER, encoder.card.sha256)
    assert (card.tiles, card.size_level0) == (TileSettings("all", 32, 0.5, 75), 640)
    for i in (0, 5, 10):  # one tile at a time, decoded here
        with torch.inference_mode():
            alone = encoder(torch.from_numpy(simplejpeg.decode_jpeg(picture(i)))[None])[0]
        np.testing.assert_allclose(bag.features[i], alone.cpu().numpy(), rtol=2e-3, atol=2e-3)
    assert not np.allclose(bag.features[0], bag.features[1], rtol=1e-2)
    assert sorted(file.name for file in out.iterdir()) == ["encoder.json", "s1.h5", "s2.h5", "s3.h5"]


def test_the_shipped_configuration_is_the_command(shards: Path, tmp_path: Path, root: Path) -> None:
    words = ["--shards", str(shards), "--encoder", ENCODER, "--out", str(tmp_path / "f")]
    assert main(["embed", "-c", str(root / "configs" / "embed.yaml"), *words]) == 0
    assert (tmp_path / "f" / "s3.h5").is_file()


def test_it_goes_on_where_it_stopped(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "features"
    assert embed(shards, out) == 0
    (out / "s2.h5").unlink()
    (out / "s3.h5").write_bytes((out / "s3.h5").read_bytes()[:500])
    kept = (out / "s1.h5").stat().st_mtime_ns
    assert embed(shards, out) == 0
    assert (out / "s1.h5").stat().st_mtime_ns == kept
    assert read_bag(out / "s2.h5").features.shape[0] == 1
    assert read_bag(out / "s3.h5").features.shape[0] == 3
    assert "(1 were there already)" in capsys.readouterr().err


def test_a_slide_tiled_anew_is_embedded_anew(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "features"
    assert embed(shards, out) == 0
    for file in (shards / "s2").iterdir():
        file.unlink()
    (shards / "s2").rmdir()
    write_slide(shards, "s2", 4)
    assert embed(shards, out) == 0
    assert len(read_bag(out / "s2.h5").features) == 4


def test_a_cut_shard_does_not_stop_the_others(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = shards / "s1" / "s1-000000.tar"
    tar.write_bytes(tar.read_bytes()[:7000])
    assert embed(shards, tmp_path / "features") == 1
    said = capsys.readouterr().err
    assert "1 of 3 slides failed" in said
    assert "s1-000000.tar" in said
    assert sorted(file.stem for file in (tmp_path / "features").glob("*.h5")) == ["s2", "s3"]


def test_a_damaged_tile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shards" / "s1"
    folder.mkdir(parents=True)
    with ShardWriter(folder, "s1") as writer:
        writer.write(Tile((640, 7), 640.0, 32, 0.5, 0.0, 1.0, 1.0, picture(0)[:50]))
    (folder / "slide.json").write_text(
        json.dumps({"slide_id": "s1", "settings": {}, "counts": {"tiles": 1, "shards": 1}})
    )
    assert embed(tmp_path / "shards", tmp_path / "features") == 1
    assert "s1: tile at x=640 y=7: damaged JPEG" in capsys.readouterr().err


def test_a_slide_without_tiles_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_slide(tmp_path / "shards", "s1", 0)
    assert embed(tmp_path / "shards", tmp_path / "features") == 1
    assert "s1: " in (said := capsys.readouterr().err)
    assert "holds no tiles" in said


def test_one_encoder_a_folder(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "features"
    assert embed(shards, out) == 0
    before = (out / "encoder.json").read_text()
    assert embed(shards, out, "random:test_vit2") == 2
    assert "use another --out" in capsys.readouterr().err
    assert (out / "encoder.json").read_text() == before
    (out / "encoder.json").unlink()
    assert embed(shards, out) == 2
    assert "papsmear did not make" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "said"), [("nothing", "no such name"), ("e.safetensors", "no such file")])
def test_an_encoder_that_is_not_there(
    shards: Path, tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(shards, tmp_path / "features", name) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "features").exists()


def test_no_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(tmp_path, tmp_path / "features") == 2
    assert f"{tmp_path}: " in capsys.readouterr().err


class Brightness(nn.Module):
    """One feature: the mean of the input, times a factor."""

    num_features = 1

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 1)."""
        return self.factor * x.mean(dim=(1, 2, 3))[:, None]


def grey(*levels: int) -> Iterator[tuple[tuple[int, int], bytes]]:
    for i, level in enumerate(levels):
        yield (i, 2 * i), simplejpeg.encode_jpeg(np.full((16, 16, 3), level, np.uint8), quality=100)


def brightness(factor: float) -> Encoder:
    return Encoder(Brightness(factor), EncoderCard("brightness", "none", 16, (0.0,) * 3, (1 / 255,) * 3))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_tiles_keep_their_order_whatever_the_batch(batch_size: int) -> None:
    levels = list(range(0, 250, 5))
    features, xy_level0 = embed_tiles(brightness(1), grey(*levels), batch_size)
    np.testing.assert_allclose(features[:, 0], levels, atol=0.6)
    assert xy_level0.tolist() == [[i, 2 * i] for i in range(len(levels))]
    assert (features.dtype, xy_level0.dtype) == (np.float16, np.int32)


def test_features_beyond_float16_are_refused_rather_than_infinite() -> None:
    with pytest.raises(InputError, match="beyond what bags hold"):
        embed_tiles(brightness(1000), grey(10, 200))


def test_no_tiles_give_an_empty_bag() -> None:
    features, xy_level0 = embed_tiles(brightness(1), grey())
    assert (features.shape, xy_level0.shape) == ((0, 1), (0, 2))


def test_a_bag_holds_nothing_of_the_machine(shards: Path, tmp_path: Path) -> None:
    assert embed(shards, tmp_path / "features") == 0
    data = io.BytesIO((tmp_path / "features" / "s1.h5").read_bytes())
    assert str(tmp_path).encode() not in data.getvalue()
    with h5py.File(data) as h5:
        tiles = {field.name for field in dataclasses.fields(TileSettings)}
        assert {"mpp", "size_px"} < tiles
        own = {"encoder", "encoder_sha256", "size_level0", "slide_json_sha256", "focus", "light", "stain"}
        assert set(h5.attrs) == own | tiles
