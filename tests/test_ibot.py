"""iBOT: which patches are hidden, and the loss and its centre in plain loops."""

import math

import numpy as np
import pytest
import torch

from papsmear import seeds
from papsmear.errors import UsageError
from papsmear.ssl.branch import Branch
from papsmear.ssl.dino import DINO
from papsmear.ssl.head import DINOHead
from papsmear.ssl.ibot import IBOTLoss, block_mask, hide_patches
from papsmear.ssl.network import create_network

GRID = (14, 14)


def masks_of(images: range, batch_size: int, *position: int) -> np.ndarray:
    """Masks (2, images, 14, 14), and a check of the divisors that belong to them."""
    hidden = hide_patches(GRID, images, batch_size, *position)
    masks = np.zeros((2, len(images), 14 * 14), bool)
    masks.reshape(-1)[hidden.index] = True
    counts = masks.sum(-1, keepdims=True)
    assert hidden.divisor.tolist() == (2 * len(images) * np.broadcast_to(counts, masks.shape)[masks]).tolist()
    return masks.reshape(2, len(images), *GRID)


def test_half_of_the_views_lose_a_share_between_a_tenth_and_a_half() -> None:
    shares = np.concatenate([masks_of(range(64), 64, 0, 0, batch).mean((2, 3)).ravel() for batch in range(20)])
    some = shares[shares > 0]
    assert len(some) == len(shares) / 2
    assert some.max() <= 0.5
    assert some.min() >= 0.1 - 6 / 196, "where no block fits any more, a few patches are missing"
    middle, spread = (0.1 + 0.5) / 2, 0.4 / math.sqrt(12)
    assert some.mean() == pytest.approx(middle, abs=4 * spread / math.sqrt(len(some)) + 0.005)
    assert some.std() == pytest.approx(spread, rel=0.06)


def test_they_are_blocks_all_over_the_view() -> None:
    masks = masks_of(range(64), 64, 0, 0, 0)[masks_of(range(64), 64, 0, 0, 0).any((2, 3))]
    alone = np.mean([(mask[:, 1:] == mask[:, :-1]).mean() for mask in masks])
    assert alone > 0.8, "a patch is mostly as its neighbour; of single patches at random 0.58 would be"
    often = np.mean([masks_of(range(64), 64, 0, 1, b).mean((0, 1)) for b in range(10)], axis=0)
    assert often.min() > 0, "corners are in few blocks, but in some"
    assert often.mean() == pytest.approx(0.15, abs=0.01)


def test_they_follow_from_seed_and_place_for_any_number_of_ranks() -> None:
    alone = masks_of(range(8), 8, 3, 1, 2)
    together = np.concatenate([masks_of(range(first, first + 4), 8, 3, 1, 2) for first in (0, 4)], axis=1)
    np.testing.assert_array_equal(together, alone)
    for other in ((4, 1, 2), (3, 2, 2), (3, 1, 3)):
        assert (masks_of(range(8), 8, *other) != alone).any()


@pytest.mark.parametrize(("grid", "wanted"), [((1, 1), 1), ((2, 2), 1), ((2, 2), 4), ((3, 5), 15), ((14, 14), 0)])
def test_small_grids_end(grid: tuple[int, int], wanted: int) -> None:
    for seed in range(20):
        assert block_mask(seeds.rng(seed), grid, wanted).sum() <= wanted


def test_loss_is_the_formula() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    loss = IBOTLoss(7, student_temperature=0.2)
    loss.centre.copy_(torch.randn(7))
    # three views, two of which have hidden patches: 2 and 3
    value = loss(student, teacher, torch.tensor([6, 6, 9, 9, 9]), 0.05)
    wanted = 0.0
    for view in ([0, 1], [2, 3, 4]):
        for m in view:
            p = torch.exp((teacher[m] - loss.centre).double() / 0.05)
            q = torch.exp(student[m].detach().double() / 0.2)
            wanted -= float((p / p.sum() * torch.log(q / q.sum())).sum()) / len(view) / 3
    assert float(value.detach()) == pytest.approx(wanted, rel=1e-5)
    value.backward()
    assert student.grad is not None


def test_the_centre_follows_hidden_patches_and_stays_where_there_are_none() -> None:
    loss = IBOTLoss(3, centre_momentum=0.9)
    loss.update_centre(torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]))
    torch.testing.assert_close(loss.centre, torch.tensor([0.2, 0.1, 0.0]))
    loss.update_centre(torch.empty(0, 3))
    torch.testing.assert_close(loss.centre, torch.tensor([0.2, 0.1, 0.0]))
    nothing = torch.empty(0, 3, requires_grad=True)
    value = loss(nothing, nothing.detach(), torch.empty(0, dtype=torch.long), 0.04)
    value.backward()
    assert float(value.detach()) == 0


def test_only_the_student_is_not_shown_hidden_patches() -> None:
    torch.manual_seed(0)
    branch = Branch(create_network("test_vit", 64, any_px=True), DINOHead(64, 9), hides_patches=True).eval()
    torch.nn.init.normal_(branch.mask_token)
    x = torch.randn(2, 3, 64, 64)  # 16 patches each
    other = x.clone()
    other[1, :, 16:32, 32:48] = 0  # patch 6 of the second
    hidden = torch.tensor([3, 16 + 6])
    for hide in (True, False):
        features, outputs, patches = branch([x, x[:1, :, :32, :32]], hidden, hide)
        assert (features.shape, outputs.shape, patches.shape) == ((3, 64), (3, 9), (2, 9))
        again = branch([other, x[:1, :, :32, :32]], hidden, hide)
        assert torch.allclose(outputs, again[1], atol=1e-6) == hide
        assert torch.allclose(patches, again[2], atol=1e-6) == hide
    plain = branch([x])[1]
    assert not torch.allclose(branch([x], hidden, True)[1], plain)
    torch.testing.assert_close(branch([x], hidden)[1], plain)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit2"])
def test_a_network_without_class_and_patch_tokens_is_refused(architecture: str) -> None:
    with pytest.raises(UsageError, match=rf"{architecture} has no .* set model\.ibot_weight to 0"):
        DINO(architecture, 32, 16, ibot_weight=1.0)
