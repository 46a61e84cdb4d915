"""slurm/*.sbatch, submitted to a real SLURM of one node; test_slurm_pretrain.py interrupts them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import ROOT, Cluster

FILES = sorted((ROOT / "slurm").glob("*.sbatch"))


# --- without a cluster ------------------------------------------------------------------------------------------


def test_there_is_one_file_a_stage() -> None:
    assert {file.stem for file in FILES} == {"tile", "pretrain", "embed", "probe", "mil"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_short_and_logs_where_a_folder_is(file: Path) -> None:
    subprocess.run(["bash", "-n", file], check=True)
    text = file.read_text()
    assert len(text.splitlines()) <= 35
    (log,) = re.findall(r"^#SBATCH --output=(\S+)/[^/]+$", text, re.MULTILINE)
    assert (ROOT / log).is_dir(), "SLURM makes no folder for logs; a job without one fails and says nothing"
    for config in re.findall(r"configs/[\w/]+\.yaml", text):
        assert (ROOT / config).is_file(), config


# --- with one ---------------------------------------------------------------------------------------------------


def test_doctor_sees_the_cluster_from_a_job(cluster: Cluster) -> None:
    log = cluster.folder / "doctor-1.log"
    script = f"{sys.executable} -m papsmear doctor"
    job = cluster.run("sbatch", "--parsable", f"--output={log}", "--wrap", script).strip()
    cluster.wait(job, seconds=60)
    assert re.search(r"^ok +SLURM +all\* 1 nodes", log.read_text(), re.MULTILINE), log.read_text()


def test_a_stage_that_fails_fails_its_job_and_says_why(cluster: Cluster) -> None:
    job = cluster.submit("tile", array="0", SLIDES="missing.csv", SHARDS=str(cluster.folder / "none"))
    assert cluster.wait(job, seconds=60) == {job: "FAILED 2:0"}
    assert "missing.csv: cannot read the slide list" in (cluster.folder / f"tile-{job}.log").read_text()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small phantom slides in three folds."""
    out = tmp_path_factory.mktemp("cohort")
    for words in (
        ["phantom", str(out), "--slides=6", "--prevalence=0.5", "--diameter_mm=0.6", "--folds=3", "--cell_sets=6"],
        ["split", str(out / "slides.csv"), "--folds=3"],
    ):
        subprocess.run([sys.executable, "-m", "papsmear", *words], check=True, timeout=120)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_tasks_of_an_array_share_the_slides(cluster: Cluster, cohort: Path, tmp_path: Path) -> None:
    def run(array: str) -> list[tuple[str, ...]]:
        """Slides tiled, done before and failed, as each task says."""
        before = set(cluster.folder.glob("tile-*.log"))
        job = cluster.submit("tile", "--size_px=160", array=array, **places)
        assert cluster.wait(job, seconds=120) == {job: "COMPLETED 0:0"}, cluster.logs()
        said = [log.read_text() for log in set(cluster.folder.glob("tile-*.log")) - before]
        return [n for text in said for n in re.findall(r"(\d+) slides tiled .* (\d+) done before, (\d+) failed", text)]

    places = {"SLIDES": str(cohort / "slides.csv"), "SHARDS": str(tmp_path / "shards")}
    assert run("4-6") == [("2", "0", "0")] * 3
    made = contents(tmp_path / "shards")
    assert run("5") == [("0", "6", "0")]  # one task alone takes the whole list
    assert contents(tmp_path / "shards") == made
    words = ["tile", "-c", str(ROOT / "configs" / "tiling.yaml"), f"--slides={places['SLIDES']}", "--size_px=160"]
    subprocess.run(
        [sys.executable, "-m", "papsmear", *words, f"--out={tmp_path / 'alone'}", "--workers=1"],
        check=True,
        timeout=120,
    )
    assert contents(tmp_path / "alone") == made


def test_the_stages_run_one_after_the_other_as_jobs(cluster: Cluster, cohort: Path, tmp_path: Path) -> None:
    places = {name: str(tmp_path / name.lower()) for name in ("SHARDS", "RUNS", "FEATURES", "REPORTS")}
    places |= {"SLIDES": str(cohort / "slides.csv"), "HERLEV": str(cohort / "cells" / "herlev")}
    # Two architectures and three folds: task 4 is the second architecture, tiny, with fold 1 left out.
    places |= {"ARCHS": "vits16 tiny", "FOLDS": "3", "FOLD": "1"}
    one_epoch = ("--trainer.max_epochs=1",)
    tile = cluster.submit("tile", array="0-1", **places)
    pretrain = cluster.submit("pretrain", *one_epoch, "--data.batch_size=16", array="4", after=tile, **places)
    embed = cluster.submit("embed", array="4", after=pretrain, **places)
    mil = cluster.submit("mil", *one_epoch, array="4", after=embed, **places)
    probe = cluster.submit("probe", "--runs=1", "--ks=[1,3]", after=pretrain, **{**places, "ARCHS": "tiny"})
    states = cluster.wait(tile, pretrain, embed, mil, probe)
    assert set(states.values()) == {"COMPLETED 0:0"}, f"{states}\n{cluster.logs()}"

    shards, runs, features, reports = (tmp_path / name for name in ("shards", "runs", "features", "reports"))
    assert len(list(shards.glob("*/*-000000.tar"))) == 6
    assert (runs / "ssl" / "tiny-fold1" / "encoder.safetensors").is_file()
    assert len(list((features / "tiny-fold1").glob("*.h5"))) == 6
    assert (runs / "mil" / "tiny-gated_attention-fold1" / "test.json").is_file()
    assert (reports / "probe-fold1" / "report.html").is_file()
