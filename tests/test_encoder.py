"""Encoders by name: real weights, fixed random weights, files with and without our header, and what is refused."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from papsmear.errors import InputError, UsageError
from papsmear.ssl.card import EncoderCard, check_leak
from papsmear.ssl.encoder import Encoder, embed_images, export_encoder, load_encoder
from papsmear.ssl.network import create_network

CARD = EncoderCard("", "test_resnet", 48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.5, ("s1", "s2"), 3)


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    sizes = [(320, 320), (48, 48), (60, 90), (320, 320), (33, 20)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    export_encoder(tmp_path / "encoder.safetensors", create_network("test_resnet"), CARD)
    return tmp_path / "encoder.safetensors"


def test_an_exported_encoder_comes_back_the_same(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    for name in ("test_resnet", "test_vit"):
        network = create_network(name, 48)
        card = replace(CARD, name=str(tmp_path / f"{name}.safetensors"), architecture=name)
        export_encoder(Path(card.name), network, card)
        loaded = load_encoder(card.name, "cpu")
        assert replace(loaded.card, sha256="") == card
        assert len(loaded.card.sha256) == 64
        features = embed_images(Encoder(network, card), pictures)
        np.testing.assert_array_equal(embed_images(loaded, pictures), features)
        assert features.shape == (len(pictures), loaded.width)


class FirstToken(torch.nn.Module):
    """Features that are a view of 8 MiB an image, as those of a ViT are of its tokens; notes the process's memory."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.mib: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.ones(len(x), 2**18, 8)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return tokens[:, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_the_network_made_of_earlier_images_leaves_memory() -> None:
    network = FirstToken()
    features = embed_images(Encoder(network, CARD), [np.zeros((48, 48, 3), np.uint8)] * 64, batch_size=4)
    assert features.shape == (64, 8)
    assert network.mib[-1] - network.mib[1] < 200, "15 batches of 32 MiB are kept"


def test_the_card_goes_through_json() -> None:
    assert EncoderCard.from_json(CARD.to_json()) == CARD


def test_random_weights_are_fixed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = load_encoder("random:test_resnet", "cpu")
    drawn = torch.rand(1)
    torch.manual_seed(2)
    second = load_encoder("random:test_resnet", "cpu")
    torch.manual_seed(1)
    assert first.card == second.card
    assert drawn == torch.rand(1)
    assert first.card.sha256 != load_encoder("random:test_byobnet", "cpu").card.sha256


def test_features_do_not_depend_on_batches_nor_order(exported: Path, pictures: list[NDArray[np.uint8]]) -> None:
    encoder = load_encoder(str(exported), "cpu")
    features = embed_images(encoder, pictures)
    for batch_size in (1, 2):
        np.testing.assert_allclose(embed_images(encoder, iter(pictures), batch_size), features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embed_images(encoder, pictures[::-1])[::-1], features, rtol=1e-4, atol=1e-5)
    assert embed_images(encoder, []).shape == (0, encoder.width)
    assert not encoder.training
    assert np.linalg.norm(features[0] - features[3]) > 1e-3


def test_input_is_resized_as_pillow_does_and_normalised_by_the_card() -> None:
    class Keep(torch.nn.Module):
        num_features = 3 * 48 * 48

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    smooth = Image.effect_noise((32, 32), 60).convert("RGB").resize((120, 120), Image.Resampling.BICUBIC)
    encoder = Encoder(Keep(), CARD)
    ours = embed_images(encoder, [np.asarray(smooth)]).reshape(3, 48, 48)
    theirs = np.asarray(smooth.resize((48, 48), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255
    wanted = (theirs - np.array(CARD.mean).reshape(3, 1, 1)) / np.array(CARD.std).reshape(3, 1, 1)
    np.testing.assert_allclose(ours, wanted, atol=1.1 / 255 / 0.4)


@pytest.mark.parametrize(
    ("name", "width", "mean"),
    [
        ("efficientnet_lite0_imagenet", 1280, 0.5),
        ("resnet50_augnet", 2048, 0.485),
        ("vits14_dinov2_saliency", 384, 0.485),
    ],
)
def test_real_weights(shared_data: Path, name: str, width: int, mean: float) -> None:
    """Cells of one class lie nearer to each other than to another class, which damaged weights would not give."""
    encoder = load_encoder(str(shared_data / "weights" / f"{name}.safetensors"), "cpu")
    assert (encoder.width, encoder.card.input_px, encoder.card.mean[0]) == (width, 224, mean)
    assert next(encoder.parameters()).dtype == torch.float32
    folders = [shared_data / "herlev" / "images" / kind for kind in ("normal_superficiel", "carcinoma_in_situ")]
    cells = [np.asarray(Image.open(file)) for folder in folders for file in sorted(folder.iterdir())[:60:10]]
    features = embed_images(encoder, cells)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    same = np.equal.outer(np.arange(12) < 6, np.arange(12) < 6) & ~np.eye(12, dtype=bool)
    likeness = features @ features.T
    assert likeness[same].mean() > likeness[~same & ~np.eye(12, dtype=bool)].mean() + 0.01


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "no such name; give timm:"),
        ("random:resnet10", "no architecture 'resnet10'; near: .*resnet10t"),
        ("timm:resnet5", "no architecture 'resnet5'; near: "),
        ("/nowhere/encoder.safetensors", r"/nowhere/encoder\.safetensors: no such file"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_encoder(name)


def test_no_network_is_one_line_with_a_remedy() -> None:
    with pytest.raises(InputError, match=r"could not be fetched .*; connect to the network, set HF_HOME") as caught:
        load_encoder("timm:resnet10t")
    assert "\n" not in str(caught.value)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(UsageError, match=r"only \.safetensors files are loaded"):
        load_encoder(str(tmp_path / "model.pth"))


def test_equal_encoders_are_equal_files(tmp_path: Path) -> None:
    network = create_network("test_resnet")
    for name in ("first", "second", "third"):
        export_encoder(tmp_path / name, network, CARD)
    assert len({(tmp_path / name).read_bytes() for name in ("first", "second", "third")}) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    path.write_bytes(b"no safetensors at all")


@pytest.mark.parametrize("damage", [cut, garble])
def test_a_damaged_file_is_named(exported: Path, damage: Callable[[Path], None]) -> None:
    damage(exported)
    with pytest.raises(InputError, match=r"encoder\.safetensors: not a whole safetensors file"):
        load_encoder(str(exported))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "names no architecture"),
        ({"architecture": "test_vit"}, "do not fit the architecture.* are missing.* are not of this architecture"),
        ({"architecture": "resnet10t5"}, "near: resnet10t"),
        ({"architecture": "test_resnet", "mean": "0.5, 0.5"}, "must be JSON"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path: Path, header: dict[str, str], message: str) -> None:
    path = tmp_path / "encoder.safetensors"
    save_file(create_network("test_resnet").state_dict(), path, header)
    with pytest.raises(UsageError, match=message):
        load_encoder(str(path))


def test_a_plain_state_dict_may_say_its_normalisation(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(
        create_network("test_resnet").state_dict(), path, {"architecture": "test_resnet", "mean": "[0.1, 0.2, 0.3]"}
    )
    assert load_encoder(str(path), "cpu").card.mean == (0.1, 0.2, 0.3)


def test_features_that_are_no_numbers_stop(exported: Path, pictures: list[NDArray[np.uint8]]) -> None:
    encoder = load_encoder(str(exported), "cpu")
    next(encoder.network.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match=r"encoder\.safetensors: features are not finite"):
        embed_images(encoder, pictures)


def test_the_leak_guard() -> None:
    assert check_leak(CARD, ["s3", "s4"]) is False
    with pytest.raises(UsageError, match=r"1 of the slides to test on: s2; .*held their fold out \(this one: 3\)"):
        check_leak(CARD, ["s2", "s3"])
    assert check_leak(CARD, ["s2", "s3"], allow_leak=True) is True
