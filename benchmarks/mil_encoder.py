"""An encoder that has seen cells: fine-tuned, for one fold, on tiles with pasted cells of the folds it is trained on.

    papsmear tile -c configs/tiling.yaml --slides COHORT/slides.csv --out SHARDS --size_px 112
    python benchmarks/mil_encoder.py --slides COHORT/slides.csv --shards SHARDS --cells HERLEV --encoder ENCODER
        --fold 0 --out encoder-0.safetensors
    papsmear embed -c configs/embed.yaml --shards SHARDS --encoder encoder-0.safetensors --out FEATURES/0
    python benchmarks/mil_cohort.py --slides COHORT/slides.csv --features FEATURES/{fold} --out OUT    # after all folds

Half of the tiles get a positive cell; of the others half a negative one. The tiles are of negative slides that the
fold's head is trained on, and so are the cells: none shares a source picture with a slide of its validation and test.
"""

import argparse
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mil_cohort import link_training_cells
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from papsmear.cohort import read_slides
from papsmear.probes.canvases import draw_canvases
from papsmear.probes.datasets import read_cells
from papsmear.probes.labelled import labelled_cells
from papsmear.probes.pasting import Pasting, Tile
from papsmear.ssl.encoder import Encoder, export_encoder, load_encoder

CANVASES, BATCH, LR = 6000, 64, 1e-3
Random = np.random.Generator


def main() -> int:
    """Fine-tunes, tells the AUC on tiles with cells that were kept aside, and writes the encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("slides", "shards", "cells", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--steps", type=int, default=200)
    words = parser.parse_args()
    slides = [slide for slide in read_slides(words.slides, need_files=False) if slide.fold is not None]
    folds = len({slide.fold for slide in slides})
    train = [slide for slide in slides if slide.fold not in (words.fold, (words.fold + 1) % folds)]
    drawn = draw_canvases(words.shards, train, CANVASES, seed=0)
    canvases = [drawn.tiles[i] for i in np.flatnonzero(drawn.labels == 0)]
    with tempfile.TemporaryDirectory(prefix="mil-encoder-") as folder:
        link_training_cells(Path(folder), words.cells, words.fold, folds)
        cells = labelled_cells(read_cells("herlev", Path(folder)), drawn.mpp, masked=True).cells
    encoder = load_encoder(words.encoder)
    encoder.card = replace(
        encoder.card,
        input_px=canvases[0].shape[0],
        mpp=drawn.mpp,
        train_slides=tuple(sorted(slide.slide_id for slide in train)),
        fold=words.fold,
    )
    random = np.random.default_rng(words.fold)
    torch.manual_seed(words.fold)
    aside = random.random(len(cells)) < 0.1
    fitted, tested = (Pasting([cells[i] for i in np.flatnonzero(of)]) for of in (~aside, aside))
    network = nn.Sequential(encoder.network.requires_grad_(True), nn.Linear(encoder.width, 1)).to(encoder.mean.device)
    fit(network, encoder, canvases, fitted, random, words.steps)
    auc = auc_of(network, encoder, canvases, tested, random)
    sys.stdout.write(f"AUC of tiles with cells kept aside: {auc:.3f}\n")
    export_encoder(words.out, encoder.network, encoder.card)
    return 0


def fit(
    network: nn.Module, encoder: Encoder, canvases: list[Tile], pasting: Pasting, random: Random, steps: int
) -> None:
    """AdamW with a cosine after a warm-up, tiles made anew in each step."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    network.train()
    for step in range(steps):
        tiles, labels = batch(canvases, pasting, random)
        for group in optimizer.param_groups:
            group["lr"] = LR / 2 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / 20)
        logits = network(encoder.prepare(torch.from_numpy(tiles)))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels).to(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            sys.stdout.write(f"step {step + 1} of {steps}: loss {loss.item():.3f}\n")
            sys.stdout.flush()
    network.eval()


@torch.inference_mode()
def auc_of(network: nn.Module, encoder: Encoder, canvases: list[Tile], pasting: Pasting, random: Random) -> float:
    """How well tiles with the other cells are told."""
    batches = [batch(canvases, pasting, random) for _ in range(20)]
    said = [network(encoder.prepare(torch.from_numpy(tiles)))[:, 0].cpu().numpy() for tiles, _ in batches]
    return float(roc_auc_score(np.concatenate([labels for _, labels in batches]), np.concatenate(said)))


def batch(canvases: list[Tile], pasting: Pasting, random: Random) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Tiles (B, H, W, 3), turned and mirrored at random, the first half of them positive, and their labels (B,)."""
    labels = np.repeat([1, 0], BATCH // 2)
    tiles = [pasting(canvases[random.integers(len(canvases))], int(label), random) for label in labels]
    turned = [np.rot90(tile, random.integers(4))[:: random.choice([1, -1])] for tile in tiles]
    return np.stack(turned), labels.astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
