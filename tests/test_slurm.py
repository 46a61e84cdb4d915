"""slurm/*.sbatch, submitted to a real SLURM of one node that this file starts and stops.

The node claims more memory and GPUs than there are, so that the files are submitted with the limits they ship with;
only the number of cores is lowered.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "slurm").glob("*.sbatch"))
DAEMONS = ("munged", "slurmctld", "slurmd")
UNFINISHED = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}

SLURM_CONF = """
ClusterName=papsmear
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,kill_invalid_depend
KillWait=2
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000000 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A running SLURM; `folder` takes the logs of its jobs."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, **more: str) -> str:
        """What a SLURM command answers."""
        said = subprocess.run(
            words, cwd=ROOT, env={**self.environment, **more}, capture_output=True, text=True, timeout=30
        )
        assert said.returncode == 0, f"{words}: {said.stderr}"
        return said.stdout

    def submit(self, name: str, *words: str, array: str = "", after: str = "", **more: str) -> str:
        """Submits slurm/NAME.sbatch with options for its command, and returns the job's id."""
        options = ["--parsable", "--cpus-per-task=1", f"--output={self.folder}/{name}-%j.log"]
        options += [f"--array={array}"] * bool(array) + [f"--dependency=afterok:{after}"] * bool(after)
        return self.run("sbatch", *options, f"slurm/{name}.sbatch", *words, **more).strip()

    def wait(self, *jobs: str, seconds: float = 480) -> dict[str, str]:
        """State and exit status of each job, such as `COMPLETED 0:0`, once none of them can go on.

        Of an array, those of all tasks if they are the same, else each.
        """
        until = time.monotonic() + seconds
        while True:
            shown = {job: self.run("scontrol", "--oneliner", "show", "job", job) for job in jobs}
            states = {job: re.findall(r" JobState=(\S+).* ExitCode=(\S+)", text) for job, text in shown.items()}
            found = {job: ", ".join(sorted({" ".join(task) for task in tasks})) for job, tasks in states.items()}
            if not any(state in UNFINISHED for tasks in states.values() for state, _ in tasks):
                return found
            assert time.monotonic() < until, f"{found} after {seconds} s\n{self.logs()}"
            time.sleep(0.3)

    def logs(self) -> str:
        """The ends of all the jobs' logs."""
        return "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*-*.log")))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A SLURM of one node on this machine; needs root and Debian's munge and slurm-wlm."""
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    missing = [name for name in (*DAEMONS, "sbatch", "srun") if not shutil.which(name, path=environment["PATH"])]
    if missing or os.geteuid() != 0:
        pytest.skip(f"starting SLURM needs root, and {', '.join(missing) or 'all else is here'}: see tests/system.sh")
    folder = Path(tempfile.mkdtemp(prefix="papsmear-slurm-"))
    environment["SLURM_CONF"] = str(folder / "slurm.conf")
    for name in list(environment):
        if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF":
            del environment[name]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _configure(folder)
        for words in _daemons(folder):
            with (folder / f"{Path(words[0]).name}.log").open("wb") as log:
                daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        cluster = Cluster(folder, environment)
        _wait_for_node(cluster, daemons)
        yield cluster
    finally:
        _cancel_all(environment)
        for daemon in reversed(daemons):
            _stop(daemon)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    """Writes the configuration; munged wants its folder readable and its key private."""
    folder.chmod(0o755)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, host=host, ports=ports))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")


def _daemons(folder: Path) -> list[list[str]]:
    munge = folder / "munge"
    paths = [f"--{name}={munge / name.removesuffix('-file')}" for name in ("key-file", "socket", "pid-file")]
    paths += [f"--{name}={munge / name.removesuffix('-file')}" for name in ("log-file", "seed-file")]
    return [
        ["munged", "--foreground", "--force", "--num-threads=1", *paths],
        ["slurmctld", "-D", "-f", str(folder / "slurm.conf")],
        ["slurmd", "-D", "-N", "localhost", "-f", str(folder / "slurm.conf")],
    ]


def _wait_for_node(cluster: Cluster, daemons: list[subprocess.Popen[bytes]], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while True:
        said = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=cluster.environment, capture_output=True, text=True
        )
        if said.stdout.strip() == "idle":
            return
        if time.monotonic() > until or any(daemon.poll() is not None for daemon in daemons):
            logs = "\n".join((cluster.folder / f"{name}.log").read_text()[-1500:] for name in DAEMONS)
            raise AssertionError(f"SLURM does not start: {said.stdout} {said.stderr}\n{logs}")
        time.sleep(0.2)


def _cancel_all(environment: dict[str, str], seconds: float = 30) -> None:
    """Ends what still runs, and waits for it: a job would outlive the daemons."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        left = subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True)
        if left.returncode or not left.stdout.strip():
            return
        time.sleep(0.2)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(timeout=5)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


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
