"""`papsmear doctor`: one line for everything a command needs of this machine, ok or with the way to get it.

Nothing here asks the network. A check that breaks is itself a finding, since broken installations are what a doctor
is for: each check imports what it looks at on its own.
"""

import importlib
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 13)
GIB = 2**30
# Below the first not even the demo fits; a small cohort's shards and an encoder's checkpoints fit in the second.
DISK_NEEDED_GIB, DISK_WANTED_GIB = 1, 20
REINSTALL = "install the pinned set: uv pip install -r requirements.lock"


@dataclass(frozen=True)
class Finding:
    """What was found, and the remedy, empty where all is well; nothing runs without an essential part."""

    found: str
    remedy: str = ""
    essential: bool = True

    @property
    def state(self) -> str:
        """`ok`, `optional` (all commands run without it) or `missing`."""
        return "ok" if not self.remedy else "missing" if self.essential else "optional"


def doctor() -> int:
    """Says what this machine lacks for papsmear, and how to get it.

    One line for each part: ok; optional, where everything runs without it; or missing: then the exit status is 1.
    """
    console = Console(highlight=False, soft_wrap=True)
    styles = {"ok": "green", "optional": "yellow", "missing": "bold red"}
    status = 0
    for part, check in CHECKS.items():
        finding = _guarded(check)
        line = Text(f"{finding.state:<9}", styles[finding.state]).append(f"{part:<11}", "bold")
        line.append(finding.found, "default")
        if finding.remedy:
            line.append(f": {finding.remedy}", "default")
        console.print(line)
        status |= finding.state == "missing"
    return int(status)


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check()
    except Exception as error:
        return Finding(f"fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}", REINSTALL)


def python() -> Finding:
    """The interpreter's version is one of those that papsmear is made for."""
    found = ".".join(map(str, sys.version_info[:3]))
    if PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        return Finding(found)
    return Finding(found, "papsmear needs Python 3.11 or 3.12; make the environment with one of them")


def torch() -> Finding:
    """torch runs, and torchvision is of a build that matches (where it does not, the import fails)."""
    import torch as installed

    torchvision = importlib.import_module("torchvision")
    return Finding(f"{installed.__version__}, torchvision {torchvision.__version__}")


def gpu() -> Finding:
    """A GPU that this build of torch can use."""
    import torch as installed

    if installed.cuda.is_available():
        cards = [installed.cuda.get_device_properties(i) for i in range(installed.cuda.device_count())]
        return Finding(", ".join(f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in cards))
    if shutil.which("nvidia-smi"):
        built = f"for CUDA {installed.version.cuda}" if installed.version.cuda else "without CUDA"
        remedy = f"torch is built {built}; update the driver, or install a torch build that fits it"
        return Finding("there is an NVIDIA driver, but torch cannot use a card", remedy, essential=False)
    return Finding("none", "the CPU does for configs/ssl/tiny.yaml and the demo; train larger encoders on a GPU", False)


def openslide() -> Finding:
    """OpenSlide opens a slide and reads the right pixels, and is new enough for DICOM."""
    import openslide as installed
    import tifffile

    picture = np.full((512, 512, 3), (200, 120, 40), np.uint8)
    with tempfile.TemporaryDirectory(prefix="papsmear-") as folder:
        file = Path(folder) / "slide.tif"
        tifffile.imwrite(file, picture, tile=(256, 256), photometric="rgb")
        with installed.OpenSlide(file) as slide:
            read = np.asarray(slide.read_region((300, 300), 0, (8, 8)).convert("RGB"))
    library = installed.__library_version__
    if not (read == picture[:8, :8]).all():
        return Finding(f"library {library} reads wrong pixels", REINSTALL)
    if int(library.split(".")[0]) < 4:
        return Finding(f"library {library}", "DICOM slides need 4.0 or later: uv pip install openslide-bin", False)
    return Finding(f"{installed.__version__}, library {library}, reads JPEG, JPEG 2000 and DICOM slides")


def codecs() -> Finding:
    """libjpeg-turbo (simplejpeg) and OpenCV each give back a picture that the other one packed."""
    import cv2
    import simplejpeg

    ramp: Any = np.linspace(0, 255, 64 * 64, dtype=np.uint8).reshape(64, 64)
    picture = np.stack([ramp, ramp[::-1], ramp.T], axis=-1)
    by_turbo: Any = cv2.imdecode(np.frombuffer(simplejpeg.encode_jpeg(picture, 95), np.uint8), cv2.IMREAD_COLOR)
    by_opencv = simplejpeg.decode_jpeg(cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes())
    for name, read in (("OpenCV", by_turbo[..., ::-1]), ("simplejpeg", by_opencv)):
        if np.abs(read.astype(int) - picture).mean() > 8:
            return Finding(f"{name} decodes a JPEG to wrong pixels", REINSTALL)
    return Finding(f"libjpeg-turbo by simplejpeg {simplejpeg.__version__}, OpenCV {cv2.__version__}")


def turbojpeg() -> Finding:
    """libjpeg-turbo by its own interface, for reading slides by their JPEG tiles."""
    from papsmear.turbo import REMEDY, Decoder, library

    if library() is None:
        return Finding("none", f"slides are read through OpenSlide, ten times slower; {REMEDY}", essential=False)
    import simplejpeg

    grey: Any = np.full((64, 64, 3), 100, np.uint8)
    jpeg, channels = simplejpeg.encode_jpeg(grey, 95, colorsubsampling="444"), np.zeros((3, 32, 32), np.uint8)
    begins = tuple(channel.ctypes.data for channel in channels)
    Decoder().decode(jpeg, (32, 32), (begins[0], begins[1], begins[2]), (32, 32))
    if np.abs(channels.mean(axis=(1, 2)) - (100, 128, 128)).max() > 2:
        return Finding("decodes a JPEG to wrong pixels", REMEDY, essential=False)
    return Finding("libjpeg-turbo decodes them at half size")


def wandb() -> Finding:
    """Whether runs go to Weights & Biases at once."""
    import wandb as installed

    from papsmear.tracking import wandb_mode

    mode = wandb_mode()
    found = f"{installed.__version__}, {mode}"
    if mode == "online":
        return Finding(found)
    return Finding(found, "runs stay in their folder's wandb/; `wandb login` first, or `wandb sync` later", False)


def slurm() -> Finding:
    """A SLURM cluster that answers, for slurm/*.sbatch."""
    if not shutil.which("sbatch") or not shutil.which("sinfo"):
        return Finding("there is no sbatch", "slurm/*.sbatch needs a cluster's login node; commands run without", False)
    try:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--format=%P %D nodes"], capture_output=True, text=True, timeout=10
        )
    except subprocess.TimeoutExpired:
        return Finding("sinfo gives no answer in 10 s", "ask the cluster's administrator if it is up", False)
    if answer.returncode:
        said = answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else f"status {answer.returncode}"
        return Finding(f"sinfo fails: {said}", "see SLURM_CONF and whether slurmctld runs", False)
    return Finding(", ".join(answer.stdout.splitlines()) or "no partitions")


def disk() -> Finding:
    """Room in the current folder, where outputs go unless told otherwise."""
    here = Path.cwd()
    free_gib = shutil.disk_usage(here).free / GIB
    found = f"{free_gib:.1f} GiB free in {here}"
    if free_gib >= DISK_WANTED_GIB:
        return Finding(found)
    remedy = f"shards and checkpoints of a cohort take {DISK_WANTED_GIB} GiB and more; start where there is room"
    return Finding(found, remedy, essential=free_gib < DISK_NEEDED_GIB)


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": python,
    "torch": torch,
    "GPU": gpu,
    "OpenSlide": openslide,
    "codecs": codecs,
    "turbojpeg": turbojpeg,
    "W&B": wandb,
    "SLURM": slurm,
    "disk": disk,
}
