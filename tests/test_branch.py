"""Views of several sizes through one network; the position embedding of a smaller view."""

import pytest
import torch
from torch.nn import functional as F

from papsmear.ssl.branch import Branch
from papsmear.ssl.head import DINOHead
from papsmear.ssl.network import create_network


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet"])
def test_each_size_goes_through_the_backbone_once_and_all_through_the_head(architecture: str) -> None:
    torch.manual_seed(0)
    backbone = create_network(architecture, 64, any_px=True)
    branch = Branch(backbone, DINOHead(backbone.num_features, 9))
    first = next(module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d))
    passes: list[tuple[int, ...]] = []
    first.register_forward_hook(lambda module, inputs, output: passes.append(tuple(inputs[0].shape)))
    views = [torch.randn(4, 3, 64, 64), torch.randn(6, 3, 32, 32)]
    features, outputs, patches = branch(views)
    assert passes == [(4, 3, 64, 64), (6, 3, 32, 32)]
    assert (len(features), outputs.shape, patches.shape) == (10, (10, 9), (0, 9))
    wanted = torch.cat([backbone(size) for size in views])
    torch.testing.assert_close(features, wanted)
    torch.testing.assert_close(outputs, branch.head(wanted))


def test_the_position_embedding_of_a_smaller_view_is_that_of_the_same_places() -> None:
    """Within 5 % of the official `interpolate_pos_encoding`, which is bicubic too, not antialiased, by 6.1 / 14."""
    torch.manual_seed(0)
    vit = create_network("vit_tiny_patch16_224", 224, any_px=True)
    across = (torch.arange(14) + 0.5) / 14
    smooth = torch.stack([torch.outer(torch.sin(3 * across + k), torch.cos(2 * across)) for k in range(192)], -1)
    vit.pos_embed.data[:, 1:] = smooth.reshape(1, 196, 192)
    found = vit._pos_embed(torch.zeros(1, 6, 6, 192))[0, 1:].detach()  # of a view of 96 px
    grid = smooth.permute(2, 0, 1)[None]
    official = F.interpolate(grid, scale_factor=(6.1 / 14, 6.1 / 14), mode="bicubic")[0].flatten(1).T
    assert found.shape == official.shape
    assert (found - official).abs().mean() < 0.05 * smooth.std()
    assert (found.flip(0) - official).abs().mean() > 0.5 * smooth.std(), "which not any embedding would be"
    torch.testing.assert_close(vit._pos_embed(torch.zeros(1, 14, 14, 192))[0, 1:].detach(), smooth.reshape(196, 192))
