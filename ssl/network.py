"""Networks by their timm name, without a classifier, and weights that must fit them.

Here, and not in `encoder`, since training needs networks too, and timm is untyped: this module is its border.
"""

import difflib
import hashlib
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from papsmear.errors import UsageError


def create_network(architecture: str, input_px: int | None = None, any_px: bool = False, **options: Any) -> Any:
    """A timm network without a classifier, random weights; for `input_px`, where the architecture must know that.

    With `any_px` it takes other sizes too if it can: a ViT then resamples its position embedding, bicubic as the
    official repository does, and antialiased as that of DINOv2 can.

    Raises UsageError for a name that timm does not have, with the nearest ones, and for a size it cannot take.
    """
    check_architecture(architecture)
    network: Any = timm.create_model(architecture, num_classes=0, **options)
    if input_px and hasattr(network, "set_input_size"):
        patch_px = network.patch_embed.patch_size[0]
        if input_px % patch_px:
            raise UsageError(f"{architecture} cannot take images of {input_px} px; give a multiple of {patch_px}")
        if any_px and hasattr(network, "dynamic_img_size"):
            options["dynamic_img_size"] = True
        network = timm.create_model(architecture, num_classes=0, img_size=input_px, **options)
    return network


def check_takes(network: Any, architecture: str, side_px: int) -> None:
    """A UsageError unless the network, made with `any_px`, takes local crops of that side; it is shown one."""
    weight, training = next(network.parameters()), network.training
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            network.eval()(torch.zeros(1, 3, side_px, side_px, dtype=weight.dtype, device=weight.device))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"{architecture} cannot take images of data.local_crop_px {side_px} beside larger ones ({reason}); give "
            "another size, for a ViT a multiple of its patches, or set data.local_crops to 0"
        ) from error
    finally:
        network.train(training)


def has_patch_tokens(network: Any) -> bool:
    """Whether it is a vision transformer whose features are a class token beside the tokens of patches."""
    return getattr(network, "global_pool", "") == "token" and hasattr(network, "num_prefix_tokens")


def checkpoint_activations(network: Any, architecture: str) -> None:
    """Has activations computed again in the backward pass (Chen et al. 2016, arXiv 1604.06174), if timm can for it."""
    try:
        network.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise UsageError(
            f"timm cannot checkpoint {architecture}; set model.activation_checkpointing to false"
        ) from error


def check_architecture(architecture: str) -> None:
    """A UsageError that proposes the nearest names, unless timm has the architecture."""
    base = architecture.partition(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=4, cutoff=0.5)
        remedy = f"near: {', '.join(near)}" if near else "timm.list_models() lists them"
        raise UsageError(f"timm has no architecture {base!r}; {remedy}")


def feature_width(network: Any) -> int:
    """D, the length of the network's feature vectors."""
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def input_config(network: Any) -> dict[str, Any]:
    """timm's own `input_size` (3, H, W), `mean` and `std` for the network."""
    return dict(resolve_model_data_config(network))


def fit_weights(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Loads weights of any precision, read from `path`; a UsageError unless each name and shape fits."""
    wanted = network.state_dict()
    shared = wanted.keys() & weights.keys()
    checks = (
        ("are missing", wanted.keys() - weights.keys()),
        ("are not of this architecture", weights.keys() - wanted.keys()),
        ("have another shape", {key for key in shared if wanted[key].shape != weights[key].shape}),
    )
    problems = [f"{len(keys)} {what}, such as {min(keys)}" for what, keys in checks if keys]
    if problems:
        raise UsageError(f"{path}: its weights do not fit the architecture in its header: {'; '.join(problems)}")
    network.load_state_dict(weights)


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header entries and tensors of a safetensors file; SafetensorError where it is not whole."""
    with safe_open(path, framework="pt") as file:
        header: dict[str, str] = file.metadata() or {}
    return header, load_file(path)


def sha256_of_weights(network: nn.Module) -> str:
    """SHA-256 over names and bytes of all weights, hexadecimal."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
