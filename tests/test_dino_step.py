"""benchmarks/dino_step.py on the CPU: that it runs, and that what it compares is the same training."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "dino_step.py"


def test_it_measures_all_ways_and_loading(tmp_path: Path, write_shards: Callable[..., Path]) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    write_shards(tmp_path / "shards", "s1", list(tiles))
    (tmp_path / "slides.csv").write_text("slide_id,path\ns1,a\n")
    words = ["--architecture=test_vit", "--outputs=64", "--batch=2", "--steps=1", "--rounds=1", "--tflops=0.1"]
    words += [f"--shards={tmp_path / 'shards'}", f"--slides={tmp_path / 'slides.csv'}", "--workers=0"]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    rows = re.findall(r"^(.+?) +([\d.]+) images/s +([\d.]+) x official$", ran.stdout, flags=re.MULTILINE)
    assert [name for name, *_ in rows] == ["official, fp32", "bare loop", "papsmear", "papsmear, from shards"]
    assert all(float(rate) > 0 for _, rate, _ in rows)
    assert re.search(r"^data_wait, from shards: [\d.]+%$", ran.stdout, flags=re.MULTILINE)
    assert re.search(r"^[\d.]+ GFLOP an image, at most \d+ images/s$", ran.stdout, flags=re.MULTILINE)
