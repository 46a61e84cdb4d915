"""Top-k selection: a slide is judged by its tiles of highest score, the same in training, test and diagnosis."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from papsmear.errors import UsageError
from papsmear.mil.head import ALONE, Head, Standardised
from papsmear.mil.heads import HEADS, build_head
from papsmear.mil.tiles import LabelledTiles, tile_loss
from papsmear.mil.topk import TopK

WIDTH, K = 12, 3
SMALL: dict[str, dict[str, Any]] = {
    "transmil": {"embedding": 32, "heads": 4, "landmarks": 41},
    "transmil_unordered": {"embedding": 32, "heads": 4, "landmarks": 41},
    "recurrent": {"hidden": 32},
    "recurrent_ensemble": {"hidden": 32},
}


def bag_of(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def small_head(name: str, top_k: int | None = K) -> Standardised:
    torch.manual_seed(0)
    return build_head(name, WIDTH, SMALL.get(name, {}), top_k)


def cross_entropy(logit: Tensor) -> Tensor:
    return nn.functional.softplus(-logit)


def ranked_by(plain: Standardised, bag: Tensor) -> Tensor:
    """What tiles are ranked by (N,): `Standardised` changes nothing before it is fitted."""
    assert isinstance(plain.head, Head)
    return plain.head.alone(bag)


@pytest.mark.parametrize("name", HEADS)
def test_tiles_are_ranked_by_their_logits_as_slides_of_their_own(name: str) -> None:
    plain, bag = small_head(name, None).eval(), bag_of(ALONE + 3)
    one_by_one = torch.stack([plain(tile[None])[0] for tile in bag[-9:]])  # in the second block where there are blocks
    torch.testing.assert_close(ranked_by(plain, bag)[-9:], one_by_one, atol=1e-6, rtol=1e-5)
    assert len(ranked_by(plain, bag)) == len(bag)


@pytest.mark.parametrize("name", ["mean", "gated_attention", "clam_sb", "dsmil"])
def test_a_tile_loss_teaches_which_tiles_are_kept(name: str) -> None:
    torch.manual_seed(0)
    head, signal = small_head(name), torch.zeros(WIDTH)
    signal[0] = 8
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-2)
    for step in range(30):
        tiles = LabelledTiles(bag_of(32, step), (torch.arange(32) % 2).float())
        tiles.features[1::2] += signal
        optimizer.zero_grad()
        tile_loss(head, tiles).backward()
        optimizer.step()
    bag = bag_of(40, 1000)
    bag[[4, 17, 31]] += signal
    _, score = head.eval()(bag)
    assert set(score.topk(K).indices.tolist()) == {4, 17, 31}


@pytest.mark.parametrize("name", HEADS)
def test_the_logit_is_that_of_the_k_best_tiles_and_all_have_their_score(name: str) -> None:
    plain, head, bag = small_head(name, None).eval(), small_head(name).eval(), bag_of(20)
    wanted_score = ranked_by(plain, bag)
    best = np.argsort(-wanted_score.detach().numpy())[:K].tolist()
    wanted, _ = plain(bag[sorted(best)])
    logit, score = head(bag)
    assert torch.equal(score, wanted_score)
    assert torch.equal(logit, wanted)
    assert not torch.equal(logit, plain(bag)[0]) or name == "max"


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("n", [1, K])
def test_a_bag_of_no_more_tiles_is_judged_whole(name: str, n: int) -> None:
    plain, head = small_head(name, None).eval(), small_head(name).eval()
    assert torch.equal(head(bag_of(n))[0], plain(bag_of(n))[0])


@pytest.mark.parametrize("name", HEADS)
def test_padding_changes_nothing(name: str) -> None:
    head, mask = small_head(name).eval(), torch.tensor([True, False, True, True, False, True, True])
    bag = torch.full((len(mask), WIDTH), 1e4)
    bag[mask] = bag_of(5)
    logit, score = head(bag, mask)
    wanted, wanted_score = head(bag_of(5))
    assert torch.equal(logit, wanted)
    assert torch.equal(score[mask], wanted_score)
    assert torch.equal(head.loss(bag, 1, cross_entropy, mask), head.loss(bag_of(5), 1, cross_entropy))


@pytest.mark.parametrize("name", [name for name in HEADS if name != "transmil"])
def test_the_order_of_the_tiles_does_not_matter(name: str) -> None:
    head, bag, order = small_head(name).eval(), bag_of(20), torch.randperm(20)
    torch.testing.assert_close(head(bag)[0], head(bag[order])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_only_the_kept_tiles_are_learnt_from_and_dropout_does_not_choose_them(name: str) -> None:
    head, bag = small_head(name), bag_of(20)
    best = set(ranked_by(small_head(name, None).eval(), bag).argsort(descending=True)[:K].tolist())
    for seed in range(3):
        tiles = bag.clone().requires_grad_()
        torch.manual_seed(seed)
        head.train().loss(tiles, 1, cross_entropy).backward()
        assert tiles.grad is not None
        assert set(tiles.grad.abs().sum(dim=1).nonzero().squeeze(1).tolist()) <= best
        plain = small_head(name, None).train()
        torch.manual_seed(seed)
        wanted = plain.loss(bag[sorted(best)], 1, cross_entropy)
        torch.manual_seed(seed)
        assert torch.equal(head.loss(bag, 1, cross_entropy), wanted)
        assert head.head.training


def test_of_equal_scores_the_first_tiles_are_kept() -> None:
    head = small_head("mean").eval()
    bag = torch.ones(6, WIDTH)
    seen: list[Tensor] = []
    assert isinstance(head.head, TopK)
    head.head.head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    bag[4] += torch.sign(head.state_dict()["head.head.classify.weight"][0])
    head(bag)
    assert torch.equal(seen[-1], bag[[0, 1, 4]])


def test_top_k_of_no_tile_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.top_k=0"):
        build_head("mean", WIDTH, {}, 0)
