"""What all tests share: no network, no user's login, one thread, and the fixture for real public data.

The environment is set before any test module is imported, and processes that tests start inherit it.
"""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parent))  # for the module below, which tests import too
from slurm_cluster import cluster, two_nodes  # noqa: F401  # fixtures, which pytest looks for here

ROOT = Path(__file__).resolve().parents[1]
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


def pytest_configure(config: pytest.Config) -> None:
    """Points everything that writes to the user's home, or asks the network, somewhere else."""
    home = tempfile.TemporaryDirectory(prefix="papsmear-tests-")
    config.add_cleanup(home.cleanup)
    for name in (
        "WANDB_DIR",
        "WANDB_CONFIG_DIR",
        "WANDB_CACHE_DIR",
        "WANDB_DATA_DIR",
        "MPLCONFIGDIR",
        "HF_HOME",
    ):
        folder = Path(home.name) / name.lower()
        folder.mkdir()
        os.environ[name] = str(folder)
    settings.register_profile("papsmear", deadline=None)  # a busy machine is no failure
    settings.load_profile("papsmear")
    os.environ.pop("WANDB_API_KEY", None)
    os.environ.update(
        WANDB_MODE="offline",
        WANDB_SILENT="true",
        NETRC=str(Path(home.name) / "netrc"),
        HF_HUB_OFFLINE="1",
        MPLBACKEND="Agg",
        **dict.fromkeys(_ONE_THREAD, "1"),
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real public data (read-only), which lies beside the repository on development machines."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real public data is not here: there is no ../shared/data beside the repository")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of 2 MiB, or as much as the parameter says; skipped where the user may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={getattr(request, 'param', '2m')}"
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"this user may not mount a small disk: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # W&B may still hold its log open


@dataclass(frozen=True)
class SmallSlide:
    """A slide of 1.2 x 1 mm with a round deposit: its file, its level-0 pixels (H, W, 3), and where the disc is."""

    path: Path
    rgb: "NDArray[np.uint8]"
    mpp: float
    centre_xy_level0: tuple[float, float]
    radius_level0: float


def _write_tiff(path: Path, rgb: "NDArray[np.uint8]", mpp: float | tuple[float, float] | None = 0.5) -> Path:
    import cv2
    import tifffile

    resolution = None if mpp is None else tuple(1e4 / v for v in (mpp if isinstance(mpp, tuple) else (mpp, mpp)))
    with tifffile.TiffWriter(path) as tiff:
        for shrink in (1, 2, 4):
            size = (rgb.shape[1] // shrink, rgb.shape[0] // shrink)
            level = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
            scale = None if resolution is None else tuple(v / shrink for v in resolution)
            unit = None if resolution is None else "CENTIMETER"
            kind = 0 if shrink == 1 else 1
            tiff.write(
                level, tile=(256, 256), photometric="rgb", subfiletype=kind, resolution=scale, resolutionunit=unit
            )
    return path


@pytest.fixture(scope="session")
def write_tiff() -> Callable[..., Path]:
    """Writes an RGB picture as a tiled TIFF with levels 1, 2 and 4 that OpenSlide opens; mpp, (x, y) or None."""
    return _write_tiff


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> SmallSlide:
    """A synthetic slide with scattered cells in a disc, made in a moment."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    width, height, centre, radius = 2400, 2000, (1250.0, 960.0), 700.0
    rgb = np.full((height, width, 3), (238, 236, 240), np.uint8)
    for _ in range(900):
        away, turn = radius * np.sqrt(rng.random()), rng.random() * 2 * np.pi
        at = (round(centre[0] + away * np.cos(turn)), round(centre[1] + away * np.sin(turn)))
        axes = (int(rng.integers(15, 40)), int(rng.integers(15, 40)))
        cv2.ellipse(rgb, at, axes, rng.random() * 180, 0, 360, (190, 205, 215), -1)
        cv2.circle(rgb, at, 7, (90, 70, 130), -1)
    rgb = np.clip(rgb + rng.normal(0, 3, rgb.shape), 0, 255).astype(np.uint8)
    path = _write_tiff(tmp_path_factory.mktemp("slide") / "small.tiff", rgb, 0.5)
    return SmallSlide(path, rgb, 0.5, centre, radius)


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., Path]:
    """Writes one slide's shards and slide.json: `write_shards(shards, slide_id, pictures, mpp=0.5)`."""
    import simplejpeg

    from papsmear.tiling.shards import ShardWriter, Tile

    def write(shards: Path, slide_id: str, pictures: "list[NDArray[np.uint8]]", mpp: float = 0.5) -> Path:
        folder = shards / slide_id
        folder.mkdir(parents=True)
        with ShardWriter(folder, slide_id) as writer:
            for index, picture in enumerate(pictures):
                side = picture.shape[0]
                jpeg = simplejpeg.encode_jpeg(picture, quality=95, colorsubsampling="444")
                writer.write(Tile((index * side, 0), float(side), side, mpp, 0.0, 1.0, 1.0, jpeg))
        counts = {"tiles": writer.n_tiles, "shards": writer.n_shards}
        content = {"slide_id": slide_id, "settings": {"mpp": mpp}, "counts": counts}
        (folder / "slide.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture(autouse=True)
def no_ranks_left() -> Iterator[None]:
    """What Lightning leaves in the environment of a process that was one of several ranks is not for the next test."""
    before = set(os.environ)
    yield
    for name in {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"} - before:
        os.environ.pop(name, None)


@dataclass(frozen=True)
class CropBench:
    """A slide s1 of 2400 x 2000 px at 0.5 µm/px to be annotated, and shards of a negative slide n1."""

    folder: Path
    slide: Any

    @property
    def slides(self) -> Path:
        return self.folder / "slides.csv"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def annotate(self, *features: dict[str, Any], label: str = "1") -> None:
        numbered = [{"type": "Feature", "id": f"f{n}", **f} for n, f in enumerate(features, 1)]
        (self.folder / "s1.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": numbered}))
        self.name(f"s1,{self.slide.path},{label},0,s1.geojson", "n1,gone.svs,0,0,")

    def name(self, *lines: str) -> None:
        self.slides.write_text("\n".join(["slide_id,path,label,fold,annotations", *lines]) + "\n")

    def run(self, *options: str) -> int:
        """What `papsmear crop` says of these slides and shards."""
        from papsmear.cli import main

        words = [f"-c={ROOT / 'configs' / 'crop.yaml'}", f"--slides={self.slides}", f"--shards={self.shards}"]
        return main(["crop", *words, f"--out={self.out}", "--workers=1", *options])

    def cells(self) -> list[dict[str, str]]:
        return self._rows("cells.csv")

    def tiles(self, label: str = "1") -> list[dict[str, str]]:
        return [row for row in self._rows("tiles.csv") if row["label"] == label]

    def _rows(self, name: str) -> list[dict[str, str]]:
        with (self.out / name).open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def write_shards(self, slide_id: str, n_tiles: int, **settings: Any) -> None:
        """Shards of grey tiles, no two alike, as papsmear tile lays them out."""
        folder = self.shards / slide_id
        folder.mkdir(parents=True)
        for first in range(0, n_tiles, 1024):
            with tarfile.open(folder / f"{slide_id}-{first // 1024:06d}.tar", "w") as tar:
                for number in range(first, min(first + 1024, n_tiles)):
                    meta = {"slide_id": slide_id, "x_level0": 320 * number, "y_level0": 0, "size_level0": 320.0}
                    meta |= {"size_px": 320, "mpp": 0.5, "z": 0.0, "focus": 1.0, "crc32": zlib.crc32(b"%d" % number)}
                    key = f"{slide_id}_x{320 * number}_y0"
                    for name, data in ((f"{key}.jpg", b"%d" % number), (f"{key}.json", json.dumps(meta).encode())):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        counts = {"tiles": n_tiles, "shards": -(-n_tiles // 1024)}
        settings = {"size_px": 320, "mpp": 0.5, "quality": 90, **settings}
        (folder / "slide.json").write_text(json.dumps({"slide_id": slide_id, "settings": settings, "counts": counts}))


@pytest.fixture
def bench(small_slide: SmallSlide, tmp_path: Path) -> CropBench:
    """A slide to be annotated, and 40 negative tiles."""
    bench = CropBench(tmp_path, small_slide)
    bench.write_shards("n1", 40)
    return bench
