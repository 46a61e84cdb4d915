"""slurm/pretrain.sbatch on a real SLURM: interrupted in every way, on one node and two, with the same weights.

The networks are tiny, the two configurations (AdamW, SGD) are those that ship. What is interrupted waits for it in
the midst of an epoch, once: so no time is lost, and none of the interruptions comes too late.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from slurm_cluster import Cluster

PX, BATCHES, EPOCHS = 32, 6, 2

WAIT = """
import time
from pathlib import Path

from lightning.pytorch import Callback

from papsmear.signals import told


class Wait(Callback):
    '''Waits in the midst of the second epoch for the signal that will come, in folders with a file `wait`.'''

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        folder = Path(trainer.default_root_dir)
        mine = folder / f"waited-{trainer.global_rank}"
        if trainer.current_epoch == 1 and batch_idx == 2 and (folder / "wait").exists() and not mine.exists():
            mine.touch()
            until = time.monotonic() + 150
            while not told and time.monotonic() < until:
                time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """Two folds of 26 tiles."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for slide_id in ("s1", "s2"):
        low = rng.integers(0, 256, (26, 6, 6, 3), dtype=np.uint8)
        write_shards(folder / "shards", slide_id, list(low.repeat(8, axis=1).repeat(8, axis=2)))
    (folder / "slides.csv").write_text("slide_id,path,fold\ns1,a,0\ns2,b,1\n")
    (folder / "wait.py").write_text(WAIT)
    return folder


def pretrain(cluster: Cluster, cohort: Path, runs: Path, array: str, *options: str) -> str:
    """Submits pretrain.sbatch for vits16 and resnet50, both with one tiny network, and two folds."""
    words = [f"--model.input_px={PX}", f"--data.crop_px={PX}", "--model.architecture=test_resnet"]
    words += ["--model.outputs=16", "--model.drop_path=0.3", "--data.batch_size=4", "--data.workers=1"]
    words += ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.sync_batchnorm=false"]
    words += [f"--trainer.max_epochs={EPOCHS}", "--trainer.callbacks+=wait.Wait"]
    places = {"SHARDS": f"{cohort}/shards", "SLIDES": f"{cohort}/slides.csv", "RUNS": str(runs)}
    return cluster.submit(
        "pretrain",
        *words,
        array=array,
        options=options,
        ARCHS="vits16 resnet50",
        FOLDS="2",
        PYTHONPATH=os.pathsep.join([str(cohort), *sys.path]),
        **places,
    )


def names(runs: Path) -> list[Path]:
    """The run folders of the array's tasks, by the task's number."""
    return [runs / "ssl" / f"{arch}-fold{fold}" for arch in ("vits16", "resnet50") for fold in (0, 1)]


def last(run: Path) -> dict[str, torch.Tensor]:
    """Weights, centre and buffers, and the optimiser's state, at the end of a run."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == BATCHES * EPOCHS
    state = {f"{n}.{k}": v for n, of in checkpoint["optimizer_states"][0]["state"].items() for k, v in of.items()}
    return {**checkpoint["state_dict"], **state}


def assert_same(run: Path, other: Path) -> None:
    one, two = last(run), last(other)
    assert one.keys() == two.keys()
    assert [name for name, value in one.items() if not torch.equal(value, two[name])] == []


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where an array that nobody interrupts puts its runs, of three tasks on two processes each, and its id."""
    runs = tmp_path_factory.mktemp("undisturbed")
    return runs, pretrain(cluster, cohort, runs, "0-2", "--ntasks-per-node=2", "--gres=gpu:2")


def test_every_way_of_being_stopped_ends_with_the_same_weights(
    cluster: Cluster, cohort: Path, tmp_path: Path, undisturbed: tuple[Path, str]
) -> None:
    """An array of two configurations and two folds: stopped by scancel, by scontrol, by the time limit, not at all."""
    runs = names(tmp_path)
    for run in runs[:3]:
        run.mkdir(parents=True)
        (run / "wait").touch()
    array = pretrain(cluster, cohort, tmp_path, "0-3", "--ntasks-per-node=2", "--gres=gpu:2")

    def once_it_waits(task: int, seconds: float = 240) -> str:
        """The id of a task's own job, which scancel of 22.05 knows better than the task's number."""
        until = time.monotonic() + seconds
        while not all((runs[task] / f"waited-{rank}").exists() for rank in range(2)):
            assert time.monotonic() < until, cluster.logs()
            time.sleep(0.2)
        shown = cluster.run("scontrol", "show", "job", f"{array}_{task}")
        return re.findall(r"JobId=(\d+) ArrayJobId", shown)[0]

    def restarts(job: str) -> int:
        return int(re.findall(r" Restarts=(\d+)", cluster.run("scontrol", "show", "job", job))[0])

    jobs = [once_it_waits(0)]
    # SLURM looks every 30 s for what ends soon: the 300 s of the file before the limit have come, the limit has not
    cluster.run("scontrol", "update", f"JobId={jobs[0]}", "TimeLimit=4")
    jobs.append(once_it_waits(1))
    # once a task has stopped, scancel tries again and again, as while an array is in motion, or finds none to signal
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--signal=USR1", jobs[1]], env=cluster.environment, timeout=10)
    jobs.append(once_it_waits(2))
    cluster.run("scontrol", "requeue", jobs[2])
    while not restarts(jobs[0]):
        time.sleep(0.5)
    more = ["scontrol", "update", f"JobId={jobs[0]}", "TimeLimit=60"]  # unless it has gone on and ended meanwhile
    raised = subprocess.run(more, env=cluster.environment, capture_output=True, text=True, timeout=30)
    assert raised.returncode == 0 or "already finished" in raised.stderr, raised.stderr

    whole, reference = undisturbed
    assert set(cluster.wait(array, reference).values()) == {"COMPLETED 0:0"}, cluster.logs()
    assert all(restarts(job) >= 1 for job in jobs)
    assert restarts(f"{array}_3") == 0
    for job, run, of_whole, number in zip(jobs, runs, names(whole), ("USR1", "USR1", "TERM"), strict=False):
        log = (cluster.folder / f"pretrain-{job}.log").read_text()
        assert f"{run}: stopped by SIG{number} at step {BATCHES + 3};" in log, log
        assert "Traceback" not in log, log
        assert len(list((run / "wandb").glob("offline-run-*"))) > 1
        assert_same(run, of_whole)
    assert last(runs[3]).keys() == last(runs[2]).keys()


def test_two_nodes_of_one_process_give_what_one_of_two_gives(
    two_nodes: Cluster, cluster: Cluster, cohort: Path, tmp_path: Path, undisturbed: tuple[Path, str]
) -> None:
    job = pretrain(two_nodes, cohort, tmp_path, "0", "--nodes=2", "--ntasks-per-node=1")
    assert two_nodes.wait(job) == {job: "COMPLETED 0:0"}, two_nodes.logs()
    whole, reference = undisturbed
    assert cluster.wait(reference) == {reference: "COMPLETED 0:0"}, cluster.logs()
    assert_same(names(tmp_path)[0], names(whole)[0])
