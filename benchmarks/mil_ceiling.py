"""Can the tiles with an abnormal cell be told at all by a cohort's features? If not, no head can.

    python benchmarks/mil_ceiling.py --slides COHORT/slides.csv --features FEATURES [--plant PLANTED]

Fits a logistic regression on the annotated tiles of the training folds of each fold, and tests it on all tiles of the
others. With --plant it also writes bags in which these tiles are shifted by 1.5 standard deviations in 30 features, for
benchmarks/mil_cohort.py: there the answer is known to be in the features.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from papsmear.cohort import Slide, read_slides
from papsmear.mil.bags import read_bag, read_card, read_encoder_card, write_bag, write_encoder_card
from papsmear.mil.data import BagData
from papsmear.mil.tiles import annotated_tiles
from papsmear.mil.truth import abnormal_cells, hold_a_cell

SHIFTED, BY = 30, 1.5  # features; standard deviations


def main() -> int:
    """Prints a line a fold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--features", required=True, help="{fold} stands for the fold's number")
    parser.add_argument("--plant", type=Path)
    words = parser.parse_args()
    for fold in sorted({slide.fold for slide in read_slides(words.slides, need_files=False)} - {None}):
        bags = BagData(Path(words.features.replace("{fold}", str(fold))), words.slides, fold=fold)
        bags.setup("fit")
        sys.stdout.write(f"fold {fold}: {ceiling(bags)}\n")
    if words.plant:
        plant(bags, words.plant)
    return 0


def ceiling(bags: BagData) -> str:
    """AUC of tiles, and of slides by their highest tile, on the slides that are not trained on."""
    tiles = annotated_tiles(bags, seed=0)
    assert tiles is not None
    mean, std = bags.feature_statistics()
    fitted = LogisticRegression(C=1e-3, class_weight="balanced", max_iter=300)
    fitted.fit((tiles.features.numpy() - mean) / std, tiles.labels.numpy())
    slides = bags.parts["validation"] + bags.parts["test"]
    features = [read_bag(bags.features / f"{slide.slide_id}.h5").features for slide in slides]
    scores = [fitted.decision_function((found - mean) / std) for found in features]  # each (N,)
    truth = [holds(bags, slide) for slide in slides]
    tile_auc = roc_auc_score(np.concatenate(truth), np.concatenate(scores))
    slide_auc = roc_auc_score([slide.label for slide in slides], [score.max() for score in scores])
    return f"AUC of tiles {100 * tile_auc:.0f}, of slides by their highest tile {100 * slide_auc:.0f}"


def holds(bags: BagData, slide: Slide) -> NDArray[np.bool_]:
    """Which tiles (N,) of a slide hold an annotated abnormal cell."""
    file = bags.features / f"{slide.slide_id}.h5"
    bag, card = read_bag(file), read_card(file)
    if slide.label != 1 or card is None:
        return np.zeros(len(bag.features), bool)
    cells = abnormal_cells(bags.slides.parent / slide.row["annotations"])
    return hold_a_cell(bag.xy_level0, card.size_level0, cells)


def plant(bags: BagData, out: Path) -> None:
    """Writes all bags anew, with the tiles that hold an abnormal cell shifted."""
    _, std = bags.feature_statistics()
    shift = np.zeros(bags.width)
    chosen = np.random.default_rng(0).permutation(bags.width)[:SHIFTED]
    shift[chosen] = BY * std[chosen]
    encoder = read_encoder_card(bags.features)
    if encoder is not None:
        write_encoder_card(out, encoder)
    for slide in (slide for part in bags.parts.values() for slide in part):
        file = bags.features / f"{slide.slide_id}.h5"
        bag, card = read_bag(file), read_card(file)
        assert card is not None
        features = bag.features + holds(bags, slide)[:, None] * shift
        write_bag(out / file.name, features.astype(np.float16), bag.xy_level0, card)


if __name__ == "__main__":
    sys.exit(main())
