"""DINO's training: freezing, clipping, decay, resume, export; test_dino_paper.py holds it against the paper."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from papsmear.cli import main
from papsmear.errors import InputError, UsageError
from papsmear.ssl.data import TileData
from papsmear.ssl.dino import DINO
from papsmear.ssl.encoder import embed_images, load_encoder
from papsmear.ssl.updates import clip_each, decay_groups, move_average
from papsmear.training import HARMLESS

pytestmark = pytest.mark.filterwarnings(*(f"ignore:{message}" for message in HARMLESS))
PX, BATCH = 32, 4
CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs" / "ssl").glob("*.yaml"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for slide_id, n_tiles in (("s1", 6), ("s2", 7), ("s3", 5)):
        low = rng.integers(0, 256, (n_tiles, 6, 6, 3), dtype=np.uint8)
        write_shards(folder / "shards", slide_id, list(low.repeat(8, axis=1).repeat(8, axis=2)))
    (folder / "slides.csv").write_text("slide_id,path,fold\ns1,a,0\ns2,b,0\ns3,c,1\n")
    return folder


def make_data(cohort: Path, **changes: Any) -> TileData:
    values = {"fold": 1, "batch_size": BATCH, "workers": 0, "crop_px": PX}
    return TileData(cohort / "shards", cohort / "slides.csv", **{**values, **changes})


def make_model(**changes: Any) -> DINO:
    seed_everything(3, verbose=False)
    values = {"architecture": "test_resnet", "input_px": PX, "outputs": 24, "drop_path": 0.0, "warmup_epochs": 1}
    return DINO(**{**values, **changes})


def make_trainer(folder: Path, epochs: int = 2, callbacks: list[Callback] | None = None) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=callbacks or [],
        enable_checkpointing=callbacks is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_the_last_layer_is_frozen_in_the_first_epoch(cohort: Path, tmp_path: Path) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.student.head.state_dict().items()}
    make_trainer(tmp_path, epochs=1).fit(model, datamodule=make_data(cohort))
    after = model.student.head.state_dict()
    assert torch.equal(before["last_layer.direction"], after["last_layer.direction"])
    assert not torch.equal(before["mlp.0.weight"], after["mlp.0.weight"])


def test_each_gradient_is_clipped_on_its_own() -> None:
    small, large, without = (nn.Parameter(torch.zeros(4)) for _ in range(3))
    small.grad, large.grad = torch.full((4,), 0.5), torch.full((4,), 50.0)
    clip_each([small, large, without], 3.0)
    torch.testing.assert_close(small.grad, torch.full((4,), 0.5))
    torch.testing.assert_close(large.grad.norm(), torch.tensor(3.0))
    assert without.grad is None


def test_biases_and_norms_do_not_decay() -> None:
    model = make_model(architecture="test_vit")
    decaying, free = decay_groups(model.student)
    names = {id(parameter): name for name, parameter in model.student.named_parameters()}
    assert (decaying["decays"], free["decays"]) == (True, False)
    assert {"backbone.pos_embed", "backbone.cls_token", "head.last_layer.direction"} <= {
        names[id(p)] for p in decaying["params"]
    }
    assert {names[id(p)] for p in free["params"]} == {n for n, p in model.student.named_parameters() if p.ndim == 1}
    assert "head.last_layer.norm" not in {names[id(p)] for group in (decaying, free) for p in group["params"]}


def test_the_teacher_moves_by_parameters_not_buffers() -> None:
    teacher, student = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(student.weight, 3.0)
    student.running_mean = torch.ones(2)
    move_average(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.data, torch.full((2,), 1.2))
    assert teacher.running_mean is not None
    assert not teacher.running_mean.any()


def test_the_teacher_starts_as_the_student_drops_nothing_and_trains_its_norms() -> None:
    model = make_model(architecture="test_vit", drop_path=0.5)
    model.train()
    x = torch.randn(4, 3, PX, PX)
    torch.testing.assert_close(model.teacher([x])[1], model.teacher([x])[1])
    assert not torch.allclose(model.student([x])[1], model.student([x])[1])
    assert all(torch.equal(a, b) for a, b in zip(model.student.parameters(), model.teacher.parameters(), strict=True))
    assert model.teacher.training
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_the_exported_encoder_is_the_teacher(cohort: Path, tmp_path: Path) -> None:
    model = make_model()
    make_trainer(tmp_path).fit(model, datamodule=make_data(cohort))
    encoder = load_encoder(str(tmp_path / "encoder.safetensors"), "cpu")
    card = encoder.card
    assert (card.architecture, card.input_px, card.mpp, card.fold) == ("test_resnet", PX, 0.5, 1)
    assert card.train_slides == ("s1", "s2")
    pictures = np.random.default_rng(0).integers(0, 256, (3, PX, PX, 3), dtype=np.uint8)
    with torch.inference_mode():
        wanted = model.teacher.eval().backbone(model.normalise(torch.from_numpy(pictures)))
    np.testing.assert_allclose(embed_images(encoder, pictures), wanted.numpy(), rtol=1e-4, atol=1e-5)


DINO_ALONE, AS_DINOV2 = {}, {"architecture": "test_vit", "ibot_weight": 1.0, "koleo_weight": 0.1}


@pytest.mark.parametrize(("changes", "local_crops"), [(DINO_ALONE, 0), (AS_DINOV2, 2)], ids=["DINO", "as DINOv2"])
def test_a_resumed_run_ends_with_the_same_weights(
    cohort: Path, tmp_path: Path, changes: dict[str, Any], local_crops: int
) -> None:
    every = ModelCheckpoint(tmp_path / "c", filename="{epoch}", save_top_k=-1)
    data = make_data(cohort, local_crops=local_crops, local_crop_px=16)
    whole = make_model(**changes)
    make_trainer(tmp_path / "whole", 3, [every]).fit(whole, datamodule=data)
    logged = {name for name in whole.trainer.callback_metrics if name.startswith(("train/ibot", "train/koleo"))}
    assert logged == ({"train/ibot_loss", "train/koleo_loss"} if changes else set())
    resumed = make_model(**changes)
    make_trainer(tmp_path / "resumed", 3).fit(
        resumed, datamodule=data, ckpt_path=tmp_path / "c" / "epoch=0.ckpt", weights_only=True
    )
    encoders = [tmp_path / name / "encoder.safetensors" for name in ("whole", "resumed")]
    assert encoders[0].read_bytes() == encoders[1].read_bytes()
    assert (
        load_encoder(str(encoders[0]), "cpu").network.state_dict().keys() == whole.teacher.backbone.state_dict().keys()
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    optimizers = [module.optimizers().state_dict()["state"] for module in (whole, resumed)]
    assert torch.equal(optimizers[0][0]["exp_avg"], optimizers[1][0]["exp_avg"])


def test_a_checkpoint_knows_its_slides_and_goes_on_with_no_others(cohort: Path, tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, filename="last")
    make_trainer(tmp_path, 1, [last]).fit(make_model(), datamodule=make_data(cohort))
    told = torch.load(tmp_path / "last.ckpt", weights_only=True)["TileData"]
    assert {key: told[key] for key in ("train_slides", "fold", "mpp")} == {
        "train_slides": ["s1", "s2"], "fold": 1, "mpp": 0.5,
    }  # fmt: skip

    def go_on(csv: str) -> None:
        (tmp_path / "slides.csv").write_text(f"slide_id,path,fold\n{csv}\n")
        data = make_data(cohort)
        data.slides = tmp_path / "slides.csv"
        make_trainer(tmp_path, 2).fit(
            make_model(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )

    with pytest.raises(UsageError, match=r"trained on other slides \(gone: s1; new: s3\); .* another --trainer"):
        go_on("s1,a,1\ns2,b,0\ns3,c,0")
    go_on("s3,c,1\ns2,b,0\ns1,a,0")


def test_a_loss_that_is_no_number_stops(cohort: Path, tmp_path: Path) -> None:
    model = make_model()
    nn.init.constant_(model.student.head.mlp[0].weight, math.nan)
    with pytest.raises(InputError, match=r"the loss is nan at step 0, epoch 0; .*lower --model.base_lr"):
        make_trainer(tmp_path).fit(model, datamodule=make_data(cohort))
    assert not (tmp_path / "encoder.safetensors").exists()


def test_what_does_not_fit_together_is_said(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.crop_px is 24, model.input_px is 32"):
        make_trainer(tmp_path).fit(make_model(), datamodule=make_data(cohort, crop_px=24))
    for architecture, px in (("test_vit", 24), ("mixer_s32_224", 32)):
        model, data = make_model(architecture=architecture), make_data(cohort, local_crops=2, local_crop_px=px)
        with pytest.raises(UsageError, match=rf"{architecture} cannot take images of data.local_crop_px {px} beside"):
            make_trainer(tmp_path).fit(model, datamodule=data)
    with pytest.raises(UsageError, match=r"model.koleo_weight needs two images a device, data.batch_size is 1"):
        make_trainer(tmp_path).fit(make_model(koleo_weight=0.1), datamodule=make_data(cohort, batch_size=1))
    with pytest.raises(UsageError, match=r"not on LightningDataModule; set data.class_path"):
        make_trainer(tmp_path).fit(make_model(), datamodule=LightningDataModule())
    with pytest.raises(UsageError, match=r"the schedules need one"):
        make_trainer(tmp_path, epochs=-1).fit(make_model(), datamodule=make_data(cohort))
    with pytest.raises(UsageError, match=r"vit_tiny_patch16_224 cannot take images of 40 px"):
        make_model(architecture="vit_tiny_patch16_224", input_px=40)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_configurations_name_arguments_that_exist(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    for part, kind in (("model", DINO), ("data", TileData)):
        assert config[part]["class_path"] == f"{kind.__module__}.{kind.__name__}"
        inspect.signature(kind).bind(**config[part]["init_args"])
    assert config["model"]["init_args"]["input_px"] == config["data"]["init_args"]["crop_px"]


def test_the_studys_settings() -> None:
    configs = {file.stem: yaml.safe_load(file.read_text()) for file in CONFIGS}
    assert set(configs) == {"vits16", "resnet50", "tiny"}
    found = {
        name: (
            configs[name]["trainer"]["max_epochs"],
            configs[name]["data"]["init_args"]["batch_size"],
            configs[name]["model"]["init_args"]["optimizer"],
            configs[name]["model"]["init_args"]["base_lr"],
            configs[name]["model"]["init_args"]["outputs"],
            configs[name]["trainer"]["sync_batchnorm"],
        )
        for name in ("vits16", "resnet50")
    }
    assert found == {
        "vits16": (300, 192, "adamw", 5e-4, 65536, True),
        "resnet50": (300, 256, "sgd", 3e-2, 65536, True),
    }


def test_fit_by_the_command_line(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"""fit -c {Path(__file__).parents[1]}/configs/ssl/tiny.yaml --data.shards={cohort}/shards
        --data.slides={cohort}/slides.csv --data.fold=1 --data.batch_size=4 --data.workers=0 --data.crop_px={PX}
        --model.input_px={PX} --model.architecture=test_resnet --model.outputs=16 --trainer.max_epochs=1
        --trainer.logger=false --trainer.default_root_dir={tmp_path}/run"""
    assert main(words.split()) == 0
    assert load_encoder(f"{tmp_path}/run/encoder.safetensors", "cpu").card.train_slides == ("s1", "s2")
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert "training on 13 tiles of 2 slides" in capsys.readouterr().err
