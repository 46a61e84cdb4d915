"""Several bags in one step: the segment operations against a loop over bags, every head against itself bag by bag."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from papsmear.mil.head import PackedHead, Standardised
from papsmear.mil.heads import HEADS, build_head
from papsmear.mil.packed import Packed

WIDTH = 12
SIZES = [3, 1, 40, 2, 17]
LABELS = torch.tensor([1, 0, 1, 1, 0])
sizes_of_bags = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """A positive slide counts three times."""
    targets, weight = labels.to(logits.dtype), torch.tensor(3.0)
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none")


def gradients(values: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    """The gradients of some weighted sum of `values`."""
    return torch.autograd.grad((values * numbers(*values.shape, seed=3)).sum(), of)


@given(sizes=sizes_of_bags, seed=st.integers(0, 100))
def test_softmax_and_pooling_are_those_of_each_bag_alone(sizes: list[int], seed: int) -> None:
    n = sum(sizes)
    weight = (30 * numbers(n, 2, seed=seed)).requires_grad_()
    values = numbers(n, 5, seed=seed + 1).requires_grad_()
    bags = Packed(values, sizes)
    found = bags.pool(bags.softmax(weight), values)  # (B, 2, 5)
    pairs = zip(weight.split(sizes), values.split(sizes), strict=True)
    wanted = torch.stack([torch.softmax(w, dim=0).T @ v for w, v in pairs])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    both = zip(gradients(found, weight, values), gradients(wanted, weight, values), strict=True)
    for gradient, wanted_gradient in both:
        torch.testing.assert_close(gradient, wanted_gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", ["sum", "mean", "max"])
@given(sizes=sizes_of_bags, seed=st.integers(0, 100))
def test_sum_mean_and_max_are_those_of_each_bag_alone(pool: str, sizes: list[int], seed: int) -> None:
    values = numbers(sum(sizes), seed=seed).requires_grad_()
    method: Callable[[Tensor], Tensor] = getattr(Packed(values[:, None], sizes), pool)
    found = method(values)
    wanted = torch.stack([getattr(v, pool)() for v in values.split(sizes)])
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients(found, values), gradients(wanted, values))


@given(sizes=sizes_of_bags, seed=st.integers(0, 100))
def test_tiles_are_ranked_within_their_bag(sizes: list[int], seed: int) -> None:
    values = numbers(sum(sizes), seed=seed)
    bags = Packed(values[:, None], sizes)
    first, found = 0, bags.ranked(values)
    for bag, n in enumerate(sizes):
        own = slice(first, first + n)
        assert found[own].tolist() == (first + values[own].argsort(descending=True)).tolist()
        assert bags.place[own].tolist() == list(range(n))
        assert bags.bag_of[own].tolist() == [bag] * n
        first += n


def a_head(name: str) -> Standardised:
    """In evaluation, since dropout and rearranged tiles are drawn otherwise for several bags."""
    torch.manual_seed(0)
    settings = {"embedding": 32, "heads": 4, "landmarks": 8} if name.startswith("transmil") else {}
    head = build_head(name, WIDTH, settings).eval()
    head.mean += 2
    head.std *= 3
    return head


@pytest.mark.parametrize("name", HEADS)
def test_several_bags_have_the_losses_and_the_gradients_of_each_alone(name: str) -> None:
    head = a_head(name)
    bags = numbers(sum(SIZES), WIDTH).half().split(SIZES)
    found = head.losses(bags, LABELS, cross_entropies)
    found.sum().backward()
    together = {key: p.grad for key, p in head.named_parameters()}
    head.zero_grad()
    wanted = []
    for bag, label in zip(bags, LABELS, strict=True):
        loss = head.loss(bag, int(label), lambda logit, label=label: cross_entropies(logit, label))  # type: ignore[misc]
        loss.backward()
        wanted.append(loss)
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-5)
    for key, parameter in head.named_parameters():
        torch.testing.assert_close(together[key], parameter.grad, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", [name for name, kind in HEADS.items() if issubclass(kind, PackedHead)])
def test_heads_that_pool_take_all_bags_in_one_pass_without_padding(name: str) -> None:
    head, rows = a_head(name), []
    first = next(module for module in head.modules() if isinstance(module, nn.Linear))
    first.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    head.losses(numbers(sum(SIZES), WIDTH).split(SIZES), LABELS, cross_entropies)
    assert rows == [sum(SIZES)]


def test_the_heads_that_pool_are_known() -> None:
    packed = {name for name, kind in HEADS.items() if issubclass(kind, PackedHead)}
    assert packed == {"gated_attention", "attention", "mean", "max", "clam_sb", "clam_mb"}


def test_an_empty_bag_among_others_is_refused() -> None:
    with pytest.raises(ValueError, match="without tiles"):
        a_head("mean").losses([numbers(3, WIDTH), numbers(0, WIDTH)], LABELS[:2], cross_entropies)


@pytest.mark.parametrize("width", [WIDTH, 5000])
def test_standardising_in_blocks_does_what_it_says(width: int) -> None:
    head = build_head("mean", width, {})
    head.mean.copy_(20 * numbers(width, seed=1))
    head.std.copy_(numbers(width, seed=2).abs() + 0.1)
    bag = (20 * numbers(120, width)).half()
    score = head(bag)[1]
    torch.testing.assert_close(score, head.head((bag.float() - head.mean) / head.std)[1], atol=1e-4, rtol=1e-4)
