"""Encoders by name: networks that turn tiles or cells into feature vectors.

Names are `timm:ARCH` and `hf-hub:REPO` (weights from the network), `random:ARCH` (fixed random weights, the floor that
every comparison needs), or a `.safetensors` file: a teacher that DINO exported, or any timm state dict with
`architecture` in its header. Files are safetensors with a text header, so loading one never runs code from it.

Shapes: B images, H x W pixels, D features.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from papsmear.errors import InputError, UsageError
from papsmear.files import sha256, whole
from papsmear.ssl.card import EncoderCard, with_tuples
from papsmear.ssl.network import (
    check_architecture,
    create_network,
    feature_width,
    fit_weights,
    input_config,
    read_safetensors,
    sha256_of_weights,
)

KINDS = "timm:ARCHITECTURE, random:ARCHITECTURE, hf-hub:REPOSITORY or a .safetensors file"
_IN_HEADER = ("architecture", "input_px", "mean", "std", "mpp", "train_slides", "fold")
LARGEST_DEFAULT_PX = 224  # of a network that takes any size: 518 px, DINOv2's own, would cost five times as much


class Encoder(nn.Module):
    """A frozen network with its card: uint8 images in, pooled features out."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: EncoderCard) -> None:
        super().__init__()
        self.network: Any = network.requires_grad_(False)
        self.card = card
        self.register_buffer("mean", 255 * torch.tensor(card.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(card.std).view(3, 1, 1), persistent=False)
        self.eval()

    @property
    def width(self) -> int:
        """D, the length of a feature vector."""
        return feature_width(self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) float32 of uint8 images (B, H, W, 3)."""
        return self.features(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        """Network input (B, 3, input_px, input_px) of uint8 images (B, H, W, 3), on the encoder's device.

        Both sides are resized to the card's `input_px`, bicubic with antialiasing.
        """
        x = images.to(self.mean.device).permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        size = (self.card.input_px, self.card.input_px)
        if x.shape[-2:] != size:
            x = nn.functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        return (x - self.mean) / self.std

    def features(self, prepared: Tensor) -> Tensor:
        """Features (B, D) float32 of network input (B, 3, input_px, input_px)."""
        features: Tensor = self.network(prepared)
        return features.float()


def load_encoder(name: str, device: str | torch.device | None = None) -> Encoder:
    """Loads the encoder that `name` names, in evaluation mode; on the GPU, if there is one, where no device is given.

    Raises UsageError for a name that leads nowhere and for weights that do not fit their architecture, InputError for
    weights that cannot be read or downloaded.
    """
    kind, colon, rest = name.partition(":")
    if name.endswith(".safetensors"):
        encoder = _from_file(Path(name))
    elif colon and kind == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = _as_published(name, create_network(rest))
    elif colon and kind in ("timm", "hf-hub"):
        encoder = _as_published(name, _download(name, rest))
    else:
        hint = (
            f"{name}: only .safetensors files are loaded" if Path(name).exists() else f"encoder {name!r}: no such name"
        )
        raise UsageError(f"{hint}; give {KINDS}")
    return encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@torch.inference_mode()
def embed_images(encoder: Encoder, images: Iterable[NDArray[np.uint8]], batch_size: int = 64) -> NDArray[np.float32]:
    """Features (N, D) float32 of N images (H, W, 3) uint8, whose sizes may differ.

    Raises InputError where a feature is not finite.
    """
    parts = [np.empty((0, encoder.width), np.float32)]
    for batch in _batches(images, batch_size):
        prepared = [torch.empty(0)] * len(batch)
        for shape in {image.shape for image in batch}:  # resized together where sizes agree, as those of tiles do
            rows = [row for row, image in enumerate(batch) if image.shape == shape]
            stack = encoder.prepare(torch.from_numpy(np.stack([batch[row] for row in rows])))
            for row, image in zip(rows, stack, strict=True):
                prepared[row] = image
        # A ViT's class tokens are a view of all its tokens, which would stay in memory until the last image
        features = encoder.features(torch.stack(prepared)).cpu().numpy().copy()  # (B, D)
        if not np.isfinite(features).all():
            raise InputError(
                f"encoder {encoder.card.name}: features are not finite: damaged weights or a diverged training; "
                "export it again from an earlier checkpoint, or take another encoder"
            )
        parts.append(features)
    return np.concatenate(parts)


def _batches(images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    rest = iter(images)
    while batch := list(islice(rest, size)):
        yield batch


def export_encoder(path: Path, network: nn.Module, card: EncoderCard) -> None:
    """Writes a network's weights, whole, with its card in the header; `load_encoder` reads it back."""
    # One entry: safetensors writes several in random order, and equal encoders must be equal files.
    header = {"encoder_card": json.dumps({key: getattr(card, key) for key in _IN_HEADER})}
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with whole(path) as part:
        save_file(weights, part, header)


def _as_published(name: str, network: Any) -> Encoder:
    """An encoder with timm's own card for the network, its input brought down to 224 px where it can be."""
    config = input_config(network)
    input_px = int(config["input_size"][-1])
    if input_px > LARGEST_DEFAULT_PX and hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(LARGEST_DEFAULT_PX, LARGEST_DEFAULT_PX))  # resamples the position embedding
    if hasattr(network, "set_input_size") or not network.default_cfg.get("fixed_input_size"):
        input_px = min(input_px, LARGEST_DEFAULT_PX)
    return Encoder(
        network,
        EncoderCard(
            name=name,
            architecture=network.default_cfg["architecture"],
            input_px=input_px,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            sha256=sha256_of_weights(network),
        ),
    )


def _from_file(path: Path) -> Encoder:
    header, weights = _read(path)
    try:
        told = with_tuples(_told(header))
    except ValueError as error:
        raise UsageError(f"{path}: the values in its header must be JSON: {error}; export it again") from error
    if "architecture" not in told:
        raise UsageError(f"{path}: its header names no architecture; write it with metadata architecture=<timm name>")
    network = create_network(told["architecture"], told.get("input_px"))
    fit_weights(network, weights, path)
    if "input_px" in told:
        config = input_config(network)
        card = EncoderCard(
            str(path), told["architecture"], told["input_px"], tuple(config["mean"]), tuple(config["std"])
        )
        encoder = Encoder(network, card)
    else:
        encoder = _as_published(str(path), network)
    return Encoder(encoder.network, replace(encoder.card, sha256=sha256(path), **told))


def _told(header: dict[str, str]) -> dict[str, Any]:
    """What a header says: our card, or single entries beside a plain state dict, JSON but for the architecture."""
    if "encoder_card" in header:
        return dict(json.loads(header["encoder_card"]))
    plain = {key: json.loads(header[key]) for key in _IN_HEADER[1:] if key in header}
    return plain | ({"architecture": header["architecture"]} if "architecture" in header else {})


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give {KINDS}")
    try:
        return read_safetensors(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); copy or export it again") from error


def _download(name: str, architecture: str) -> Any:
    """A timm network with its published weights."""
    if name.startswith("timm:"):
        check_architecture(architecture)
    try:
        return timm.create_model(architecture if name.startswith("timm:") else name, pretrained=True, num_classes=0)
    except Exception as error:  # what fails here are the network, the hub and the cache, each with errors of its own
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"encoder {name}: its weights could not be fetched ({type(error).__name__}: {reason}); "
            "connect to the network, set HF_HOME to a folder that has them, or give a .safetensors file"
        ) from error
