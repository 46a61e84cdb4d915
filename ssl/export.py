"""`papsmear export`: a checkpoint's teacher as a safetensors file for anybody's timm, and a model card beside it.

A checkpoint is read without unpickling anything but tensors and plain values. The encoder is the file that the training
itself writes after each epoch; this is for the checkpoints beside the last one, and for giving an encoder away.
"""

import csv
import pickle
from pathlib import Path
from typing import Any

import torch

from papsmear import __version__
from papsmear.errors import InputError, UsageError
from papsmear.files import sha256, write_text
from papsmear.progress import say
from papsmear.ssl.card import EncoderCard, teacher_card
from papsmear.ssl.encoder import export_encoder
from papsmear.ssl.network import create_network, feature_width, fit_weights

TEACHER = "teacher.backbone."

CARD = """\
---
library_name: timm
tags: [cytology, cervical-cancer, self-supervised-learning, dino]
---
# {title}

An encoder of cervical cytology tiles, trained without labels by DINO (Caron et al. 2021, arXiv 2104.14294) with
papsmear {version}: an image in, a vector of {width} features out. **Research use only. Not for diagnosis of patients.**

| | |
|---|---|
{facts}

## Load it

    import timm
    import torch

    network = timm.create_model({arguments}).eval()
    mean, std = torch.tensor({mean}), torch.tensor({std})
    x = torch.rand(1, 3, {px}, {px})  # RGB from 0 to 1, {resolution}
    features = network((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))  # (1, {width})

The header of the file (`safetensors.safe_open(...).metadata()`) holds these values as JSON, and the ids of the training
slides: figures on those slides would flatter the encoder. papsmear refuses them.

## Figures

{figures}

## Licence

papsmear is under the Apache License 2.0. The licence of these weights is for those to state who trained them; it
depends on what the training slides may be used for.
"""


def export(ckpt: Path, out: Path | None = None) -> None:
    """Writes the encoder of a DINO checkpoint as safetensors, loadable by timm alone, and its model card (.md).

    Args:
        ckpt: The checkpoint, such as runs/tiny/checkpoints/last.ckpt.
        out: The file to write; beside the checkpoint, as NAME.safetensors, if not given.
    """
    out = out or ckpt.with_suffix(".safetensors")
    if out.suffix != ".safetensors":
        raise UsageError(f"--out={out}: an encoder is a safetensors file; give a name that ends in .safetensors")
    checkpoint = read_checkpoint(ckpt)
    card = teacher_card(checkpoint["hyper_parameters"], checkpoint["TileData"])
    network = create_network(card.architecture, card.input_px)
    weights = {
        name.removeprefix(TEACHER): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(TEACHER)
    }
    fit_weights(network, weights, ckpt)
    export_encoder(out, network, card)
    write_text(out.with_suffix(".md"), model_card(out, network, card, checkpoint, figures_of(ckpt, checkpoint)))
    say(f"{out}: {card.architecture} after {checkpoint['global_step']} steps; {out.with_suffix('.md')} says what it is")


def read_checkpoint(ckpt: Path) -> dict[str, Any]:
    """A checkpoint of DINO: tensors and plain values. UsageError where it is none, InputError where it is damaged."""
    if not ckpt.is_file():
        raise UsageError(f"{ckpt}: no such file; give a checkpoint, such as RUN/checkpoints/last.ckpt")
    try:
        checkpoint = torch.load(ckpt, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{ckpt}: damaged, or no checkpoint of papsmear fit; take another one of the run") from error
    parts = ("state_dict", "hyper_parameters", "TileData")
    if not isinstance(checkpoint, dict) or any(part not in checkpoint for part in parts):
        raise UsageError(
            f"{ckpt}: no checkpoint of DINO (papsmear fit -c configs/ssl/*.yaml); only its encoder is exported"
        )
    return checkpoint


def figures_of(ckpt: Path, checkpoint: dict[str, Any]) -> dict[str, float]:
    """The last value of each figure in the run's logs up to the checkpoint; empty where there are none."""
    found: dict[str, tuple[int, float]] = {}
    logs = sorted(
        ckpt.absolute().parent.parent.glob("logs/version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:])
    )
    for file in logs:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                step = int(row["step"])
                for name, value in row.items():
                    if "/" in name and value and found.get(name, (0, 0.0))[0] <= step < checkpoint["global_step"]:
                        found[name] = step, float(value)
    return {name: value for name, (_, value) in sorted(found.items())}


def model_card(
    out: Path, network: Any, card: EncoderCard, checkpoint: dict[str, Any], figures: dict[str, float]
) -> str:
    """The model card, in Markdown."""
    arguments = f'"{card.architecture}", num_classes=0, checkpoint_path="{out.name}"'
    if hasattr(network, "set_input_size"):
        arguments += f", img_size={card.input_px}"
    resolution = "of any resolution" if card.mpp is None else f"at {card.mpp:g} µm/px"
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    facts = {
        "architecture": f"`{card.architecture}` (timm), {millions:.1f} million weights",
        "input": f"RGB, {card.input_px} x {card.input_px} px",
        "trained on": f"tiles {resolution} of {len(card.train_slides)} slides",
        "fold held out": "none" if card.fold is None else str(card.fold),
        "training": f"{checkpoint['global_step']} steps, in {checkpoint['epoch'] + 1} epochs",
        "SHA-256": f"`{sha256(out)}`",
    }
    table = [f"| `{name}` | {value:.4g} |" for name, value in figures.items()]
    probe = checkpoint.get("callbacks", {}).get("KnnProbe", {})
    if probe.get("best_epoch"):
        told = f"{probe['best']:.4g} on {probe['cells']}, k = {probe['k']}, after epoch {probe['best_epoch']}"
        table.append(f"| best k-NN weighted F1 so far | {told} |")
    return CARD.format(
        title=out.stem,
        version=__version__,
        width=feature_width(network),
        px=card.input_px,
        facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        arguments=arguments,
        mean=list(card.mean),
        std=list(card.std),
        resolution=resolution,
        figures="\n".join(["| | last value |", "|---|---|", *table]) if table else "The run's logs are not beside it.",
    )
