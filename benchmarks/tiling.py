"""How fast the tiler is, against a plain loop, other engines where they are installed, and what the codec allows.

    python benchmarks/tiling.py [--slide FILE] [--rounds 5] [--latency_ms 0 0.5 2] [--wide]

Every engine makes the same tiles, 320 px at 0.5 µm/px as JPEG of quality 90, of the whole slide, on one core, in each
round; figures are medians, and ratios those of the rounds. The default slide is a phantom of 20,480 px a side.
"""

import argparse
import contextlib
import io
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import simplejpeg
import tifffile
from PIL import Image

from papsmear.cohort import Slide
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.grid import grid
from papsmear.tiling.picture import YCbCr
from papsmear.tiling.reader import open_slide
from papsmear.tiling.shards import read_tiles
from papsmear.tiling.slide import tile_slide
from papsmear.turbo import Decoder

SIZE_PX, MPP, QUALITY = 320, 0.5, 90
N_SLIDES = 24  # so many that the start of a second process does not count


def plain_loop(slide: Path, out: Path) -> int:
    """What most scripts do: read_region of level 0, resize, encode, write."""
    with openslide.OpenSlide(slide) as source, out.open("wb") as file:
        side = round(SIZE_PX * MPP / float(source.properties["openslide.mpp-x"]))
        corners = grid(source.dimensions, side).tolist()
        for corner in corners:
            tile = source.read_region(corner, 0, (side, side)).convert("RGB")
            buffer = io.BytesIO()
            tile.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=QUALITY)
            file.write(buffer.getvalue())
    return len(corners)


def papsmear(slide: Path, out: Path) -> int:
    """Ours, as `papsmear tile --area=all` does a slide: opening, overview, scores, shards and all."""
    out.mkdir()
    made = tile_slide(Slide("s", slide, None, "s", None, "", None, None, {}), out, TileSettings(area="all"))
    assert made.status == "tiled", made.reason
    return made.tiles


def codec(slide: Path, out: Path) -> tuple[int, float]:
    """The limit: the same JPEG tiles decoded at the same scale, the same output tiles encoded, and nothing else.

    Tells its own seconds, since it reads the file before.
    """
    with open_slide(slide, engine="jpeg") as reader:
        source: Any = reader._source
        corners = grid(reader.size_level0, SIZE_PX * MPP / reader.mpp)
        level, scale = source._ways[source.downsamples.index(reader.downsample_for(MPP, corners, SIZE_PX))]
        pictures = [YCbCr(*map(np.copy, picture)) for picture in reader.tiles(corners, SIZE_PX, MPP)]
        streams = list(source._streams(level, range(len(level.offsets))))
        (sx, _), is_rgb = source._step, source._is_rgb
    side = level.tile_px[0] // scale
    memory = np.empty((3, side, side), np.uint8)
    places, strides = tuple(channel.ctypes.data for channel in memory), (side, side // sx)
    decoder = Decoder()
    rgbs = [simplejpeg.decode_jpeg(picture.jpeg(100)) for picture in pictures] if is_rgb else []
    began = time.perf_counter()
    for stream in streams:
        decoder.decode(stream, (side, side), places, strides)
    for rgb in rgbs:
        simplejpeg.encode_jpeg(rgb, QUALITY, colorsubsampling="420")
    for picture in () if is_rgb else pictures:
        picture.jpeg(QUALITY)
    return len(corners), time.perf_counter() - began


def cucim(slide: Path, out: Path) -> int:
    """cuCIM, in batches, on the CPU."""
    from cucim import CuImage

    image = CuImage(str(slide))
    size = tuple(image.resolutions["level_dimensions"][0])
    with open_slide(slide) as reader:
        side = round(SIZE_PX * MPP / reader.mpp)
    corners = grid(size, side).tolist()
    batches = image.read_region(corners, (side, side), level=0, batch_size=32, num_workers=1)
    with out.open("wb") as file:
        done = 0
        for batch in batches:
            for tile in np.asarray(batch):
                small = cv2.resize(tile, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
                file.write(simplejpeg.encode_jpeg(small, QUALITY, colorsubsampling="420"))
                done += 1
    return done


def libvips(slide: Path, out: Path) -> int:
    """libvips: shrink by two and dzsave one level."""
    import pyvips

    image = pyvips.Image.new_from_file(str(slide), access="sequential").shrink(2, 2)
    image.dzsave(str(out), tile_size=SIZE_PX, overlap=0, depth="one", suffix=f".jpg[Q={QUALITY}]")
    made = sum(1 for _ in Path(f"{out}_files").rglob("*.jpg"))
    shutil.rmtree(f"{out}_files")
    return made


ENGINES: dict[str, Callable[[Path, Path], int | tuple[int, float]]] = {
    "plain OpenSlide loop": plain_loop,
    "libvips dzsave": libvips,
    "cuCIM, batches": cucim,
    "papsmear tile": papsmear,
    "codec alone": codec,
}


def rgb_copy(slide: Path, copy: Path) -> Path:
    """The same slide with its tiles stored as RGB (4:4:4), as some scanners do."""
    with tifffile.TiffFile(slide) as tiff, tifffile.TiffWriter(copy, bigtiff=True) as writer:
        for page in tiff.pages:
            if not page.is_tiled:
                continue

            def streams(page: Any = page) -> Iterator[bytes]:
                file = page.parent.filehandle
                for at, length in zip(page.dataoffsets, page.databytecounts, strict=True):
                    file.seek(at)
                    rgb = simplejpeg.decode_jpeg(file.read(length))
                    yield imagecodecs.jpeg8_encode(rgb, level=80, colorspace="RGB", outcolorspace="RGB")

            writer.write(
                streams(), shape=page.shape, dtype=np.uint8, photometric="rgb", compression="jpeg",
                compressionargs={"outcolorspace": "rgb"}, tile=(page.tilelength, page.tilewidth),
                description=page.description, metadata=None, software=False,
            )  # fmt: skip
    return copy


def compare(slide: Path, rounds: int, work: Path) -> None:
    """One table for a slide: tiles/s of each engine, and its ratio to the loop and to the codec."""
    seconds: dict[str, list[float]] = {}
    tiles = plain_loop(slide, work / "out")
    out = work / "out"
    out.unlink()
    for turn, (name, engine) in itertools.product(range(rounds + 1), ENGINES.items()):
        began = time.perf_counter()
        try:
            made = engine(slide, out)
            made, took = made if isinstance(made, tuple) else (made, time.perf_counter() - began)
            assert made == tiles, f"{name}: {made} tiles instead of {tiles}"
        except ImportError:
            continue
        if turn:  # the first fills the caches
            seconds.setdefault(name, []).append(took / tiles)
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    print(f"\n{slide.name}: {tiles} tiles, {slide.stat().st_size / 2**20:.0f} MiB\n")
    print("| engine | tiles/s | times the loop | share of the codec's limit |\n|---|---|---|---|")
    for name, per_tile in seconds.items():
        loop, limit = seconds["plain OpenSlide loop"], seconds["codec alone"]
        times = statistics.median(a / b for a, b in zip(loop, per_tile, strict=True))
        share = statistics.median(a / b for a, b in zip(limit, per_tile, strict=True))
        print(f"| {name} | {1 / statistics.median(per_tile):.0f} | {times:.1f} | {share:.0%} |")


# A command's own peak: what the system tells of a child counts its parent's memory at the fork.
MEASURED = """
import sys
from pathlib import Path
from papsmear.cli import main
status = main(sys.argv[1:])
print(next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM")))
sys.exit(status)
"""


def command(work: Path, slides: Path, workers: int, fresh: bool = True) -> tuple[float, float]:
    """Seconds and peak MiB (of the first process) of `papsmear tile --area=all`."""
    if fresh:
        shutil.rmtree(work / "shards", ignore_errors=True)
    words = ["tile", f"--slides={slides}", f"--out={work / 'shards'}", "--area=all", f"--workers={workers}"]
    began = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", MEASURED, *words], check=True, capture_output=True, text=True)
    return time.perf_counter() - began, int(said.stdout) / 1024


def processes(slide: Path, rounds: int, work: Path) -> None:
    """Two processes against one, over many slides, and what the command takes to start."""
    slides = work / "slides.csv"
    slides.write_text("slide_id,path\n" + "".join(f"s{i},{slide}\n" for i in range(N_SLIDES)))
    ratios, starts, peaks = [], [], []
    for _ in range(rounds):
        one, two = (command(work, slides, workers) for workers in (1, 2))
        starts.append(command(work, slides, 1, fresh=False)[0])
        ratios.append((one[0] - starts[-1]) / (two[0] - starts[-1]))
        peaks.append(one[1])
    print(f"\nTwo processes: {statistics.median(ratios):.2f} times one, both less the start-up.")
    print(f"Start-up, imports and {N_SLIDES} slides that are done included: {statistics.median(starts):.2f} s.")
    print(f"Peak memory of one process: {max(peaks):.0f} MiB.")


def slow_disk(slide: Path, latencies_ms: list[float], work: Path) -> None:
    """The tiler where each request to the disk takes so much longer."""
    print("\n| ms more for each read | tiles/s | reads |\n|---|---|---|")
    pread = os.pread
    for latency in latencies_ms:
        count = itertools.count()

        def slowly(*words: Any, wait: float = latency / 1000, count: Any = count) -> bytes:
            next(count)
            if wait:
                time.sleep(wait)
            return pread(*words)

        os.pread = slowly
        began = time.perf_counter()
        tiles = papsmear(slide, work / "slow")
        print(f"| {latency:g} | {tiles / (time.perf_counter() - began):.0f} | {next(count)} |")
        shutil.rmtree(work / "slow")
    os.pread = pread


def tiny_files(slide: Path, work: Path) -> None:
    """The tiles of a slide as one shard, and as a file each, every one of them on the disk before the end."""
    papsmear(slide, work / "tiles")
    tiles = [(f"{meta['x_level0']}_{meta['y_level0']}.jpg", data) for meta, data in read_tiles(work / "tiles" / "s")]

    def write(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())

    began = time.perf_counter()
    write(work / "one", b"".join(data for _, data in tiles))
    one = time.perf_counter() - began
    (work / "files").mkdir()
    for name, data in tiles:
        write(work / "files" / name, data)
    many = time.perf_counter() - began - one
    print(f"\nOnto the disk: {len(tiles) / one:.0f} tiles/s in one file, {len(tiles) / many:.0f} as a file each.")


def phantom(folder: Path, diameter_mm: float) -> Path:
    """A phantom slide, made once."""
    words = ["phantom", str(folder), "--slides=1", f"--diameter_mm={diameter_mm}", "--cell_sets=0", "--workers=1"]
    subprocess.run([sys.executable, "-m", "papsmear", *words], check=True, stderr=subprocess.DEVNULL)
    return folder / "slides" / "phantom_0001.svs"


def main() -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, help="an SVS or TIFF of JPEG tiles at 0.25 µm/px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency_ms", type=float, nargs="*", default=[0, 0.2, 1, 5])
    parser.add_argument(
        "--wide", action="store_true", help="also a slide of 100,000 px a side, for the memory (minutes)"
    )
    options = parser.parse_args()
    os.environ["VIPS_CONCURRENCY"] = "1"
    cv2.setNumThreads(1)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiling-")))
        slide = options.slide or phantom(work / "cohort", 4.415)
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cores)})
        compare(slide, options.rounds, work)
        compare(rgb_copy(slide, work / "rgb.tiff"), options.rounds, work)
        os.sched_setaffinity(0, cores)
        processes(slide, options.rounds, work)
        slow_disk(slide, options.latency_ms, work)
        tiny_files(slide, work)
        if options.wide:
            wide = phantom(work / "wide", 21.56)
            slides = work / "wide.csv"
            slides.write_text(f"slide_id,path\nwide,{wide}\n")
            seconds, peak = command(work, slides, 1)
            with openslide.OpenSlide(wide) as source:
                size = source.dimensions
            print(f"\n{size[0]} x {size[1]} px: {seconds:.0f} s, peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
