"""Duplicates: copies and near copies are found, different cells are not, and those across a split are counted."""

import io
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from papsmear.probes.datasets import read_set
from papsmear.probes.duplicates import NEAR_BITS, Duplicates, difference_hash, find_duplicates
from papsmear.probes.inputs import duplicate_facts
from papsmear.probes.splits import grouped_splits, random_splits, source_pictures


def cell(seed: int, side: int = 60) -> NDArray[np.uint8]:
    """A smooth picture that is like no other."""
    noise = np.random.default_rng(seed).normal(size=(side, side, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), side / 12)
    return np.clip(128 + 900 * smooth, 0, 255).astype(np.uint8)


def jpeg(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    memory = io.BytesIO()
    Image.fromarray(rgb).save(memory, "JPEG", quality=60)
    return np.array(Image.open(memory))


def test_copies_and_near_copies_are_found_and_nothing_else() -> None:
    first = cell(0)
    near = [jpeg(first), cv2.resize(first, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
            np.clip(first * 1.1 + 5, 0, 255).astype(np.uint8)]  # fmt: skip
    flat = [np.full((9, 9, 3), value, np.uint8) for value in (10, 200)]
    images = [cell(1), first, cell(2), first.copy(), *near, *flat, flat[0].copy()]
    found = find_duplicates(images)
    assert found.exact == 2
    assert found.content.tolist() == [0, 1, 2, 1, 3, 4, 5, 6, 7, 6]
    assert {tuple(pair) for pair in found.near.tolist()} == set(combinations((1, 3, 4, 5), 2))
    assert sorted(found.pairs()) == sorted([(1, 3), (7, 9), (1, 4), (1, 5), (1, 6), (4, 5), (4, 6), (5, 6)])


def test_the_hash_is_the_definition_and_the_bits_are_counted() -> None:
    rgb = cell(5, 12 * 13)  # shrinks by whole numbers in both pictures
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(float)
    wide = np.rint(grey.reshape(12, 13, 13, 12).mean(axis=(1, 3)))
    high = np.rint(grey.reshape(13, 12, 12, 13).mean(axis=(1, 3)))
    expected = [wide[y, x + 1] > wide[y, x] for y in range(12) for x in range(12)]
    expected += [high[y + 1, x] > high[y, x] for y in range(12) for x in range(12)]
    assert (difference_hash(rgb) == np.array(expected)).mean() > 0.99, "but for ties that round otherwise"
    images = [cell(seed, 40) for seed in range(60)] + [jpeg(cell(seed, 40)) for seed in range(20)]
    bits = [difference_hash(image) for image in images]
    slow = {(a, b) for a, b in combinations(range(80), 2) if (bits[a] != bits[b]).sum() <= NEAR_BITS}
    assert {tuple(pair) for pair in find_duplicates(images).near.tolist()} == slow
    assert len(slow) >= 19


def test_test_cells_with_a_copy_in_their_training_part_are_counted() -> None:
    found = Duplicates(np.array([0, 1, 0, 2, 3, 4]), np.array([[2, 3]]))
    train, test = np.array([0, 1, 3]), np.array([2, 4, 5])
    assert found.across([(train, test)]) == 2, "2 copies 0, and 4 is nearly 3"
    assert found.across([(train, test), (np.array([1, 5]), np.array([0, 2, 3, 4]))]) == 1
    assert found.across([]) == 0
    assert find_duplicates([]).exact == 0


def test_real_herlev_has_cells_that_were_cut_out_twice_and_grouped_splits_keep_them_together(shared_data: Path) -> None:
    cells = read_set("herlev", shared_data / "herlev")
    facts = duplicate_facts(cells, runs=4, seed=0)
    assert (facts["exact"], facts["near"], facts["other_class"]) == (0, 4, 0)
    assert all(Path(a).name.split("-")[0] == Path(b).name.split("-")[0] for a, b in facts["pairs"])
    assert facts["test_cells_with_one_in_training"]["grouped"] == 0
    found, parts = find_duplicates(cells.images), random_splits(cells.labels, 4, 0)
    counts = [sum((a in test) != (b in test) for a, b in found.pairs()) for _, test in parts]
    assert facts["test_cells_with_one_in_training"]["ungrouped"] == pytest.approx(np.mean(counts))
    assert sum(counts)
    assert len(grouped_splits(cells.labels, source_pictures(cells), 4, 0)) == 4
