"""Student and teacher are alike: a backbone, and a head that all views go through together.

As in the official repository (Caron et al. 2021, `MultiCropWrapper`), views of one size go through the backbone at
once. For iBOT the student's backbone is shown a learnt token in the place of some patches, and the head, the same one
(Zhou et al. 2022, section 3), also says something of these patches.

Shapes: N views, M hidden patches, D features, K outputs of the head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from papsmear.ssl.head import DINOHead


class Branch(nn.Module):
    """Backbone and head; student and teacher are one each."""

    def __init__(self, backbone: Any, head: DINOHead, hides_patches: bool = False) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self._hidden: Tensor | None = None  # (N · patches, 1) while such views go through the backbone
        if hides_patches:
            self.mask_token = nn.Parameter(torch.zeros(1, backbone.embed_dim))
            backbone.patch_embed.register_forward_hook(self._hide)

    def forward(
        self, views: Sequence[Tensor], patches: Tensor | None = None, hide: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, D) and outputs (N, K) of normalised views, and outputs (M, K) of chosen patches.

        Args:
            views: Views of one size each, (N1, 3, H, W), (N2, 3, h, w) and so on.
            patches: Indices (M,) of patches among those of views[0]; None for none.
            hide: Whether the backbone sees the mask token in their place.
        """
        tokens = []
        for number, images in enumerate(views):
            self._hidden = self._mask(images, patches) if hide and number == 0 and patches is not None else None
            tokens.append(self.backbone.forward_features(images))
        self._hidden = None
        features = torch.cat([self.backbone.forward_head(of_size) for of_size in tokens])  # (N, D)
        wanted = features
        if patches is not None:
            all_patches = tokens[0][:, self.backbone.num_prefix_tokens :].flatten(0, 1)
            wanted = torch.cat([features, all_patches[patches]])  # (N + M, D)
        outputs = self.head(wanted)
        return features, outputs[: len(features)], outputs[len(features) :]

    def compile_backbone(self) -> None:
        """Has the backbone compiled, once for each size of views; the names of all weights stay what they are.

        The head is left as it is: M differs from step to step, and a compiled head would be compiled again each time.
        """
        self.backbone.forward_features = torch.compile(self.backbone.forward_features, dynamic=False)

    def _mask(self, images: Tensor, patches: Tensor) -> Tensor:
        rows, columns = self.backbone.patch_embed.grid_size
        mask = torch.zeros(len(images) * rows * columns, 1, dtype=torch.bool, device=images.device)
        return mask.index_fill_(0, patches, True)

    def _hide(self, module: nn.Module, inputs: tuple[Tensor], embedded: Tensor) -> Tensor:
        """Embedded patches (N, rows, columns, D) with the mask token where they are hidden."""
        if self._hidden is None:
            return embedded
        token = self.mask_token.to(embedded.dtype)
        return torch.where(self._hidden, token, embedded.flatten(0, -2)).reshape(embedded.shape)
