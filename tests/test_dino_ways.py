"""Ways to the same step: ranks, accumulated gradients, recomputed activations, compiled networks, lower precision."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision
from timm.models import VisionTransformer
from torch import Tensor

from papsmear.cli import main
from papsmear.errors import UsageError
from papsmear.ssl.branch import Branch
from papsmear.ssl.data import TileData
from papsmear.ssl.dino import DINO
from papsmear.ssl.encoder import load_encoder
from papsmear.ssl.head import DINOHead
from papsmear.ssl.network import checkpoint_activations, create_network
from papsmear.training import HARMLESS

pytestmark = pytest.mark.filterwarnings(*(f"ignore:{message}" for message in HARMLESS))
PX = 32
EXACT = {"rtol": 1e-6, "atol": 1e-8}  # in double precision, but timm resamples position embeddings in single


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """24 tiles of two slides."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for slide_id in ("s1", "s2"):
        low = rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
        write_shards(folder / "shards", slide_id, list(low.repeat(8, axis=1).repeat(8, axis=2)))
    (folder / "slides.csv").write_text("slide_id,path\ns1,a\ns2,b\n")
    return folder


def make_model(**changes: Any) -> DINO:
    seed_everything(3, verbose=False)
    values: dict[str, Any] = {"architecture": "test_vit", "base_lr": 0.02, "warmup_epochs": 1, "clip_norm": 0.05}
    return DINO(**{**values, "input_px": PX, "outputs": 24, "drop_path": 0.0, **changes})


def fit(model: LightningModule, cohort: Path, folder: Path, batch_size: int = 8, **options: Any) -> list[float]:
    """The loss of each step of a training."""
    losses = Losses()
    sizes = {"batch_size": batch_size, "crop_px": PX, "local_crops": 1, "local_crop_px": 16}
    data = TileData(cohort / "shards", cohort / "slides.csv", workers=0, **sizes)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"max_epochs": 2, "precision": "64-true", "accelerator": "cpu", "enable_model_summary": False}
    options = {**quiet, **settings, "callbacks": [losses], **options}
    Trainer(default_root_dir=folder, devices=1, **options).fit(model, datamodule=data)
    return losses.seen


class Losses(Callback):
    """Notes the loss of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.seen.append(pl_module.figures.loss)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], **bounds: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, **(bounds or EXACT), msg=name)


def test_two_ranks_of_4_make_the_steps_of_one_of_8(cohort: Path, tmp_path: Path, root: Path) -> None:
    """Centres, hidden patches and teacher too. Only KoLeo is by rank, as published, and SyncBN needs a GPU."""
    for ranks, strategy in ((1, "auto"), (2, "ddp")):
        words = f"""fit -c {root}/configs/ssl/tiny.yaml --data.shards={cohort}/shards --data.slides={cohort}/slides.csv
            --data.batch_size=8 --data.workers=0 --data.crop_px={PX} --data.local_crops=1 --data.local_crop_px=16
            --model.input_px={PX} --model.architecture=test_vit --model.outputs=24 --model.ibot_weight=1
            --trainer.max_epochs=2 --trainer.precision=64-true --trainer.devices={ranks} --trainer.strategy={strategy}
            --trainer.logger=false --trainer.default_root_dir={tmp_path}/{ranks}"""
        if ranks == 1:
            assert main(words.split()) == 0
            continue
        done = subprocess.run([sys.executable, "-m", "papsmear", *words.split()], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{ranks}/checkpoints/last.ckpt", weights_only=True) for ranks in (1, 2))
    assert one["global_step"] == two["global_step"] == 6
    assert_same(two["state_dict"], one["state_dict"])
    assert {"loss.centre", "ibot.centre"} <= one["state_dict"].keys()
    for number, state in one["optimizer_states"][0]["state"].items():
        torch.testing.assert_close(two["optimizer_states"][0]["state"][number]["exp_avg"], state["exp_avg"], **EXACT)


def test_accumulated_batches_make_the_steps_of_one_batch(cohort: Path, tmp_path: Path) -> None:
    """Schedules and teacher too, where the centre stays; it moves with each batch, as it does in the repository."""
    whole, parts = (make_model(centre_momentum=1.0) for _ in range(2))
    fit(whole, cohort, tmp_path)
    fit(parts, cohort, tmp_path, batch_size=4, accumulate_grad_batches=2)
    assert whole.trainer.global_step == parts.trainer.global_step == 6
    assert_same(parts.state_dict(), whole.state_dict())


def test_the_centre_moves_with_each_accumulated_batch(cohort: Path, tmp_path: Path) -> None:
    model, means = make_model(), []
    model.teacher.register_forward_hook(lambda module, inputs, seen: means.append(seen[1].mean(0)))
    fit(model, cohort, tmp_path, batch_size=4, accumulate_grad_batches=3, max_epochs=1)
    centre = torch.zeros(24).double()
    for mean in means:
        centre = 0.9 * centre + 0.1 * mean
    assert (len(means), model.trainer.global_step) == (6, 2)
    torch.testing.assert_close(model.loss.centre, centre, **EXACT)


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet"])
def test_recomputed_activations_make_the_same_steps(cohort: Path, tmp_path: Path, architecture: str) -> None:
    kept, recomputed = (make_model(architecture=architecture, activation_checkpointing=on) for on in (False, True))
    for model in (kept, recomputed):
        fit(model, cohort, tmp_path, max_epochs=1)
    ours, theirs = (dict(model.named_parameters()) for model in (recomputed, kept))
    assert_same(ours, theirs)


def test_activations_are_dropped_and_computed_again() -> None:
    model, calls = make_model(activation_checkpointing=True), []
    model.student.backbone.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.student([torch.randn(2, 3, PX, PX)])[1].sum().backward()
    assert len(calls) == 2
    with pytest.raises(UsageError, match=r"timm cannot checkpoint convit_tiny; set model\.activation_checkpointing"):
        checkpoint_activations(create_network("convit_tiny"), "convit_tiny")


def test_compiling_changes_neither_weights_nor_names_nor_export(cohort: Path, tmp_path: Path) -> None:
    plain, compiled = (make_model(compile=on, ibot_weight=1.0) for on in (False, True))
    with torch.compiler.set_stance("force_eager"):  # compiling itself takes minutes; the next test does it once
        for model, name in ((plain, "plain"), (compiled, "compiled")):
            fit(model, cohort, tmp_path / name, max_epochs=1)
    assert_same(compiled.state_dict(), plain.state_dict())
    files = [tmp_path / name / "encoder.safetensors" for name in ("plain", "compiled")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_encoder(str(files[1]), "cpu").card.architecture == "test_vit"


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler, g++")
def test_a_compiled_backbone_gives_the_same_gradients() -> None:
    seed_everything(0, verbose=False)
    vit = VisionTransformer(PX, 16, embed_dim=32, depth=1, num_heads=2, num_classes=0, dynamic_img_size=True)
    branch = Branch(vit, DINOHead(32, 8, hidden=16, bottleneck=8), hides_patches=True)
    images, hidden = torch.randn(2, 3, PX, PX), torch.tensor([1, 6])
    results = []
    for _ in range(2):
        branch.zero_grad()
        _, outputs, patches = branch([images], hidden, hide=True)
        (outputs.square().sum() + patches.square().sum()).backward()
        grads = [p.grad for p in branch.parameters() if p.requires_grad]
        results.append([outputs.detach(), patches.detach(), *(grad.clone() for grad in grads if grad is not None)])
        before = vit.forward_features
        branch.compile_backbone()
    assert vit.forward_features is not before
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-5)


def test_bfloat16_follows_the_loss_of_single_precision(cohort: Path, tmp_path: Path) -> None:
    of_single, of_half = (
        fit(make_model(base_lr=0.1, clip_norm=3.0), cohort, tmp_path, precision=precision, max_epochs=5)
        for precision in ("32-true", "bf16-mixed")
    )
    assert max(of_single) - min(of_single) > 2, "a curve that could be missed"
    assert of_single != of_half
    np.testing.assert_allclose(of_half, of_single, rtol=0.05, atol=0.02)


class Gradients(Callback):
    """Notes the norms of the gradients of each step as the optimiser gets them."""

    def __init__(self) -> None:
        self.norms: list[list[float]] = []

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad for p in pl_module.student.parameters()]
        self.norms.append([float(grad.norm()) for grad in grads if grad is not None])


def test_gradients_are_clipped_after_the_scale_of_float16_is_taken_out(cohort: Path, tmp_path: Path) -> None:
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**14))
    runs = []
    for how in ({"precision": "32-true"}, {"precision": None, "plugins": [scaled]}):
        gradients = Gradients()
        fit(make_model(clip_norm=1e-3), cohort, tmp_path, callbacks=[gradients, Losses()], max_epochs=1, **how)
        runs.append(gradients.norms[-1])
    assert max(runs[1]) == pytest.approx(1e-3, rel=1e-2)
    np.testing.assert_allclose(runs[1], runs[0], rtol=0.2, atol=1e-4)
