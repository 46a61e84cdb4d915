"""Fine-tuning one network: its rates, that it learns, and what does not change what it learns."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from papsmear.errors import InputError
from papsmear.probes.deeppap import DeepPap
from papsmear.probes.nuclei import Nucleus
from papsmear.probes.patches import views_to_test
from papsmear.probes.tuning import TunedNetwork, Work, fit, mean_scores
from papsmear.ssl.encoder import Encoder, load_encoder

PLAN = DeepPap(epochs=3, batch_size=8, lr=0.02, abnormal=(2, 1), normal=(2, 2), views=(2, 1), crops=2)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    loaded = load_encoder("random:test_vit", "cpu")
    loaded.network.set_input_size(img_size=(32, 32))
    return Encoder(loaded.network, replace(loaded.card, input_px=32))


def work(encoder: Encoder, **changes: object) -> Work:
    """48 pictures of 64 px with a nucleus off the centre; abnormal ones are large, colours say nothing."""
    generator = np.random.default_rng(0)
    images, nuclei, abnormal = [], [], np.arange(48) % 3 > 0
    for large in abnormal:
        image = np.full((64, 64, 3), generator.integers(150, 230, 3), np.uint8)
        x, y = generator.integers(24, 40, 2).tolist()
        cv2.circle(image, (x, y), 14 if large else 5, generator.integers(20, 100, 3).tolist(), -1)
        images.append(image)
        nuclei.append(Nucleus((x, y), 48.0))
    return replace(Work(encoder, tuple(images), tuple(nuclei), abnormal, PLAN, 0), **changes)  # type: ignore[arg-type]


def test_the_encoder_learns_at_a_tenth_of_the_rate(encoder: Encoder) -> None:
    """In the optimiser's groups, and in the first step of SGD, which is the rate times the gradient."""
    network = TunedNetwork(encoder, 2)
    transferred, new = network.rates(0.2)
    assert transferred["lr"] == pytest.approx(0.02)
    assert new["lr"] == 0.2
    assert {id(p) for p in transferred["params"]} == {id(p) for p in network.encoder.parameters()}  # type: ignore[attr-defined]
    assert {id(p) for p in new["params"]} == {id(p) for p in network.head.parameters()}  # type: ignore[attr-defined]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    loss = torch.nn.functional.cross_entropy(
        network(torch.full((4, 32, 32, 3), 90, dtype=torch.uint8)), torch.ones(4).long()
    )
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(network.rates(0.2)).step()
    for name, p in network.named_parameters():
        assert p.grad is not None
        rate = 0.2 if name.startswith("head") else 0.02
        assert p.detach() == pytest.approx(before[name] - rate * p.grad, abs=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), load_again(encoder), strict=True)), (
        "a copy learns"
    )


def load_again(encoder: Encoder) -> list[torch.Tensor]:
    loaded = load_encoder("random:test_vit", "cpu")
    loaded.network.set_input_size(img_size=(32, 32))
    return list(loaded.parameters())


def test_it_learns_the_size_of_the_nucleus(encoder: Encoder) -> None:
    of = work(encoder, plan=replace(PLAN, epochs=12))
    train, test = np.arange(36), np.arange(36, 48)
    network, losses = fit(of, train, of.abnormal.astype(int), "x")
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]
    scores = mean_scores(of, network, test)
    assert scores.shape == (12, 2)
    assert scores.sum(axis=1) == pytest.approx(1)
    assert ((scores[:, 1] > 0.5) == of.abnormal[test]).mean() > 0.9
    assert not np.allclose(scores, mean_scores(of, network, test, 10))


def test_a_score_is_the_mean_over_views(encoder: Encoder) -> None:
    """Against a loop over the views, one patch at a time; whatever the batch, and in the order of the test cells."""
    of = work(encoder)
    network = TunedNetwork(encoder, 3).eval()
    test = np.array([40, 3, 17])
    views = views_to_test(test, of.plan, 0)
    expected = np.zeros((3, 3))
    with torch.inference_mode():
        for row, cell in enumerate(views.cell):
            patch = torch.from_numpy(views.cut(row, of.images[cell], of.nuclei[cell], 32))
            expected[test.tolist().index(cell)] += network(patch[None]).softmax(dim=1)[0].numpy() / 4
    assert mean_scores(of, network, test) == pytest.approx(expected, abs=1e-6)


def test_loading_processes_change_nothing_and_the_place_does(encoder: Encoder) -> None:
    of = work(encoder, plan=replace(PLAN, epochs=1))
    train, targets = np.arange(24), of.abnormal.astype(int)
    state = torch.random.get_rng_state()
    first, losses = fit(of, train, targets, "binary", 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    same, same_losses = fit(replace(of, workers=1), train, targets, "binary", 1)
    other, _ = fit(of, train, targets, "binary", 2)
    assert losses == same_losses
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.head[1].weight, other.head[1].weight)


def test_a_loss_that_is_not_finite_is_named(encoder: Encoder) -> None:
    of = work(encoder, plan=replace(PLAN, epochs=1, lr=1e30))
    with pytest.raises(InputError, match=r"random:test_vit: the loss is not finite in epoch 1; lower --protocol.lr"):
        fit(of, np.arange(24), of.abnormal.astype(int), "x")
