"""`papsmear doctor` on a machine that has all, and on machines that lack something."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from papsmear import doctor
from papsmear.cli import main


def _lines(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """State and text of each printed line, by its part."""
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    return {part: (state, text) for state, part, text in rows}


def test_each_part_has_a_line_and_what_tests_need_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor"])
    lines = _lines(capsys)
    assert list(lines) == list(doctor.CHECKS)
    for part in ("Python", "torch", "OpenSlide", "codecs", "turbojpeg"):
        assert lines[part][0] == "ok", lines[part]
    assert lines["W&B"][0] == "optional"
    assert "offline" in lines["W&B"][1]
    assert "wandb login" in lines["W&B"][1]
    assert status == any(state == "missing" for state, _ in lines.values())


def test_without_slurm_and_gpu_all_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * doctor.GIB))
    assert main(["doctor"]) == 0
    lines = _lines(capsys)
    assert lines["SLURM"][0] == lines["GPU"][0] == "optional"
    assert "no sbatch" in lines["SLURM"][1]
    assert "configs/ssl/tiny.yaml" in lines["GPU"][1]


@pytest.mark.parametrize(
    ("free_gib", "state", "status"), [(0.5, "missing", 1), (1, "optional", 0), (19, "optional", 0), (20, "ok", 0)]
)
def test_free_disk(
    free_gib: float,
    state: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"disk": doctor.disk})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(free_gib * doctor.GIB)))
    assert doctor.doctor() == status
    found_state, text = _lines(capsys)["disk"]
    assert found_state == state
    assert f"{free_gib:.1f} GiB free in {Path.cwd()}" in text


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 13, 0)])
def test_a_python_that_papsmear_is_not_made_for(version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    finding = doctor.python()
    assert finding.state == "missing"
    assert "3.11 or 3.12" in finding.remedy


def test_the_pythons_are_those_of_the_package(root: Path) -> None:
    (low, high) = (".".join(map(str, v)) for v in (doctor.PYTHON_FROM, doctor.PYTHON_BELOW))
    assert f'requires-python = ">={low},<{high}"' in (root / "pyproject.toml").read_text()


@pytest.mark.parametrize("module", ["torchvision", "openslide", "simplejpeg", "wandb"])
def test_a_broken_installation_is_a_finding_with_a_remedy(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    part = {"torchvision": "torch", "openslide": "OpenSlide", "simplejpeg": "codecs", "wandb": "W&B"}[module]
    monkeypatch.setattr(doctor, "CHECKS", {part: doctor.CHECKS[part]})
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    assert doctor.doctor() == 1
    state, text = _lines(capsys)[part]
    assert state == "missing"
    assert module in text
    assert "requirements.lock" in text


def test_codecs_that_change_pixels_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    right = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda jpeg: right(jpeg)[..., ::-1])
    finding = doctor.codecs()
    assert finding.state == "missing"
    assert "simplejpeg" in finding.found


def test_without_libjpeg_turbo_slides_are_read_through_openslide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papsmear.turbo.library", lambda: None)
    finding = doctor.turbojpeg()
    assert finding.state == "optional"
    assert "libturbojpeg0" in finding.remedy


def test_a_card_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(tmp_path / "nvidia-smi", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    finding = doctor.gpu()
    assert finding.state == "optional"
    assert "driver" in finding.remedy


@pytest.mark.parametrize(
    ("sinfo", "state", "text"),
    [
        ("echo 'all* 3 nodes'", "ok", "all* 3 nodes"),
        ("echo 'sinfo: error: Unable to contact slurm controller' >&2; exit 1", "optional", "Unable to contact"),
    ],
)
def test_a_cluster_that_answers_and_one_that_does_not(
    sinfo: str, state: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tmp_path / "sbatch", "exit 0")
    _script(tmp_path / "sinfo", sinfo)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    finding = doctor.slurm()
    assert finding.state == state
    assert text in finding.found


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
