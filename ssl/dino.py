"""DINO: a student learns to say of one view of a tile what its own slow average, the teacher, says of another.

Caron et al. 2021 (arXiv 2104.14294), exact to the official repository: global and local crops, the head, the loss and
its centre, the schedules, the freezing of the last layer, gradient clipping of each parameter on its own, weight decay
on matrices only. The teacher's backbone is what the later stages use; it is exported at the end of each epoch.
The hidden patches of iBOT and the KoLeo term, as in DINOv2, can be added; both are off by default.

Shapes: B images of this rank, V views of each (first the 2 global ones, then the local ones), D features, K outputs of
the head, M hidden patches.
"""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor
from torch.optim import Optimizer

from papsmear.errors import UsageError
from papsmear.progress import say
from papsmear.seeds import derive
from papsmear.ssl.branch import Branch
from papsmear.ssl.card import EXPORTED, IMAGENET_MEAN, IMAGENET_STD, EncoderCard, teacher_card
from papsmear.ssl.data import TileData
from papsmear.ssl.encoder import export_encoder
from papsmear.ssl.head import DINOHead
from papsmear.ssl.ibot import Hidden, IBOTLoss, hide_patches
from papsmear.ssl.koleo import koleo_loss
from papsmear.ssl.loss import DINOLoss, entropy
from papsmear.ssl.network import check_takes, checkpoint_activations, create_network, feature_width, has_patch_tokens
from papsmear.ssl.schedules import Schedules
from papsmear.ssl.updates import clip_each, make_optimizer, move_average
from papsmear.ssl.watch import Figures, Watch, feature_std, non_finite


class DINO(LightningModule):
    """DINO pretraining of any timm backbone. Every default is the official value for a ViT-S/16."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: str = "vit_small_patch16_224",
        input_px: int = 224,
        outputs: int = 65536,
        norm_last_layer: bool = True,
        drop_path: float = 0.1,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        base_lr: float = 5e-4,
        min_lr: float = 1e-6,
        warmup_epochs: int = 10,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        ema_momentum: tuple[float, float] = (0.996, 1.0),
        teacher_temperature: tuple[float, float] = (0.04, 0.04),
        temperature_warmup_epochs: int = 0,
        student_temperature: float = 0.1,
        centre_momentum: float = 0.9,
        frozen_last_layer_epochs: int = 1,
        clip_norm: float = 3.0,
        ibot_weight: float = 0.0,
        koleo_weight: float = 0.0,
        activation_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002  # the name of the option
    ) -> None:
        """Builds student and teacher with the same random weights. A pair is (start, end) of a schedule.

        Args:
            architecture: A timm name.
            input_px: Side of the views; as the data's crop_px.
            outputs: K, outputs of the head.
            norm_last_layer: Keeps the rows of the head's last layer at norm 1.
            drop_path: Share of the student's residual branches that are dropped.
            optimizer: adamw, or sgd with momentum 0.9.
            base_lr: Learning rate for a batch of 256; it is scaled to the batch.
            min_lr: Learning rate at the end, not scaled.
            warmup_epochs: Epochs over which the learning rate rises from 0.
            weight_decay: Cosine; none on biases and 1-D parameters.
            ema_momentum: Cosine; share of the old teacher in the new one.
            teacher_temperature: Linear over its warm-up, then constant.
            temperature_warmup_epochs: Epochs of that warm-up.
            student_temperature: Of the student's softmax.
            centre_momentum: Share of the old centre in the new one.
            frozen_last_layer_epochs: Epochs at the start in which the head's last layer is not trained.
            clip_norm: Largest norm of each parameter's gradient.
            ibot_weight: Of iBOT's loss, for ViTs; DINOv2 has 1.
            koleo_weight: Of the KoLeo loss; DINOv2 has 0.1.
            activation_checkpointing: Keeps less of the student's forward pass in memory and computes it again.
            compile: Compiles the backbones with torch.compile.
        """
        super().__init__()
        self.save_hyperparameters()
        self.told: Any = self.hparams
        drops = {"drop_path_rate": drop_path} if drop_path else {}
        student = create_network(architecture, input_px, any_px=True, **drops)
        if ibot_weight and not has_patch_tokens(student):
            raise UsageError(f"{architecture} has no class and patch tokens to hide; set model.ibot_weight to 0")
        head = DINOHead(feature_width(student), outputs, norm_last_layer=norm_last_layer)
        self.student = Branch(student, head, hides_patches=bool(ibot_weight))
        teacher = create_network(architecture, input_px, any_px=True)
        self.teacher = Branch(teacher, copy.deepcopy(head), hides_patches=bool(ibot_weight)).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        if activation_checkpointing:
            checkpoint_activations(student, architecture)
        if compile:
            self.student.compile_backbone()
            self.teacher.compile_backbone()
        self.loss = DINOLoss(outputs, student_temperature, centre_momentum)
        self.ibot = IBOTLoss(outputs, student_temperature, centre_momentum) if ibot_weight else None
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD), persistent=False)
        self.figures = Figures(0, math.nan, math.nan, math.nan)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))

    @property
    def data(self) -> TileData:
        """The tiles that are trained on."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TileData):
            raise UsageError(
                f"DINO trains on papsmear.ssl.data.TileData, not on {type(data).__name__}; set data.class_path"
            )
        return data

    def setup(self, stage: str) -> None:
        """Checks that data and model fit together."""
        if self.data.views.crop_px != self.told.input_px:
            raise UsageError(
                f"data.crop_px is {self.data.views.crop_px}, model.input_px is {self.told.input_px}; make them equal"
            )
        for views in self.data.local_views:
            check_takes(self.student.backbone, self.told.architecture, views.crop_px)
        if self.told.koleo_weight and self.data.batch_size < 2 * self.trainer.world_size:
            raise UsageError(
                f"model.koleo_weight needs two images a device, data.batch_size is {self.data.batch_size}; give more"
            )
        say(f"training on {self.data.n_tiles} tiles of {len(self.data.train_slides)} slides")

    def configure_optimizers(self) -> Optimizer:
        """The optimiser over the student, and the schedules, now that the number of steps is known."""
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UsageError(
                "trainer.max_epochs is -1, without end, but the schedules need one; give a number of epochs"
            )
        accumulated = self.trainer.accumulate_grad_batches
        self.schedules = Schedules(
            steps=int(steps),
            steps_per_epoch=math.ceil(self.trainer.num_training_batches / accumulated),
            peak_lr=self.told.base_lr * self.data.batch_size * accumulated / 256,
            **{field.name: self.told[field.name] for field in fields(Schedules) if field.name in self.told},
        )
        # with a gradient scaler a fused optimiser would unscale the gradients itself, after they are clipped
        return make_optimizer(self.student, self.told.optimizer, fused=self.trainer.precision != "16-mixed")

    def configure_callbacks(self) -> list[Callback]:
        """What watches over the run."""
        return [Watch(self.told.outputs)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss () of a batch, uint8 (B, 2, H, W, 3) and (B, V - 2, h, w, 3), after which the centres move."""
        # what the student drops depends on the seed and the position only, so that a run that goes on drops the same
        torch.manual_seed(derive(self.seed, "step", self.current_epoch, batch_idx, self.global_rank))
        images = len(batch[0])
        views = [self.normalise(of_size.transpose(0, 1).flatten(0, 1)) for of_size in batch]  # (2B, 3, H, W), ...
        hidden = self.hide(images, batch_idx)
        index = hidden and hidden.index
        with torch.no_grad():
            features, teacher, truth = self.teacher(views[:1], index)  # (2B, D), (2B, K), (M, K)
        features, teacher = features.unflatten(0, (2, images)), teacher.unflatten(0, (2, images))
        seen, student, guess = self.student(views, index, hide=True)  # (VB, D), (VB, K), (M, K)
        temperature = self.schedules.temperature(self.current_epoch)
        probabilities = self.loss.teacher_probabilities(teacher, temperature)
        loss: Tensor = self.loss(student.unflatten(0, (-1, images)), probabilities)
        said, spread, total, beside = entropy(probabilities), feature_std(features), loss, {}
        if self.ibot and hidden:
            beside["train/ibot_loss"] = self.ibot(guess, truth, hidden.divisor, temperature)
            total = total + self.told.ibot_weight * beside["train/ibot_loss"]
        if self.told.koleo_weight:
            beside["train/koleo_loss"] = koleo_loss(seen[:images])
            total = total + self.told.koleo_weight * beside["train/koleo_loss"]
        # one transfer for all that is looked at in every step
        *figures, whole = torch.stack([loss.detach(), said, spread, total.detach()]).tolist()
        self.figures = Figures(self.global_step, *figures)
        if not math.isfinite(whole):
            raise non_finite(self.trainer, self.data, replace(self.figures, loss=whole), batch_idx)
        self.loss.update_centre(teacher)
        if self.ibot:
            self.ibot.update_centre(truth)
        logged = {
            "train/loss": loss,
            "train/kl": loss.detach() - said,  # cross-entropy = entropy + KL divergence, equation 5
            "train/teacher_entropy": said,
            "train/feature_std": spread,
            "train/centre_norm": self.loss.centre.norm(),
            "train/teacher_temperature": temperature,
        }
        self.log_dict(logged | beside, prog_bar=True)
        return total

    def hide(self, images: int, batch_idx: int) -> Hidden | None:
        """The patches of this rank's images that iBOT hides in a step; None without iBOT."""
        if not self.ibot:
            return None
        first = self.trainer.global_rank * images
        grid = self.student.backbone.patch_embed.grid_size
        of_rank = range(first, first + images)
        hidden = hide_patches(grid, of_rank, self.data.batch_size, self.data.seed, self.current_epoch, batch_idx)
        return hidden.to(self.device)

    def normalise(self, images: Tensor) -> Tensor:
        """Network input (N, 3, H, W) of uint8 images (N, H, W, 3)."""
        return ((images - self.mean) / self.std).permute(0, 3, 1, 2)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clips each parameter's gradient on its own; the last layer gets none in the first epochs."""
        norm = clip_each(self.student.parameters(), self.told.clip_norm)
        self.log("train/gradient_norm", norm, prog_bar=True)
        if self.current_epoch < self.told.frozen_last_layer_epochs:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """One step of the student by the schedules, then the teacher follows."""
        step = self.global_step
        lr, decay, momentum = self.schedules.lr(step), self.schedules.decay(step), self.schedules.momentum(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = decay if group["decays"] else 0.0
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        move_average(self.teacher, self.student, momentum)
        self.log("train/lr", lr, prog_bar=True)
        self.log_dict({"train/weight_decay": decay, "train/ema_momentum": momentum})

    def card(self) -> EncoderCard:
        """What the teacher's backbone is as an encoder."""
        return teacher_card(self.told, self.data.state_dict())

    def on_train_epoch_end(self) -> None:
        """Exports the teacher's backbone into the run's folder."""
        if self.trainer.is_global_zero:
            export_encoder(Path(self.trainer.default_root_dir) / EXPORTED, self.teacher.backbone, self.card())
