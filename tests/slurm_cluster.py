"""A real SLURM that tests start and stop: of one node on this machine, or of two in network namespaces.

The nodes claim more cores, memory and GPUs than there are, so that slurm/*.sbatch are submitted with the limits they
ship with; only the number of cores is lowered.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DAEMONS = ("munged", "slurmctld", "slurmd")
UNFINISHED = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}

SLURM_CONF = """
ClusterName=papsmear
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
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
KillWait=20
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr={address} CPUs=4 RealMemory=1000000 Gres=gpu:4 State=UNKNOWN"


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

    def submit(
        self, name: str, *words: str, array: str = "", after: str = "", options: tuple[str, ...] = (), **more: str
    ) -> str:
        """Submits slurm/NAME.sbatch with options for its command, and returns the job's id."""
        options = ("--parsable", "--cpus-per-task=1", f"--output={self.folder}/{name}-%j.log", *options)
        options += (f"--array={array}",) * bool(array) + (f"--dependency=afterok:{after}",) * bool(after)
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


@contextmanager
def running_slurm(nodes: dict[str, str], address: str = "127.0.0.1", within: bool = False) -> Iterator[Cluster]:
    """A SLURM whose nodes have these names and addresses, the controller at `address`; needs root, munge, slurm-wlm.

    With `within`, each node's daemon runs in the network namespace of its name, and knows the others by name.
    """
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
        _configure(folder, nodes, address)
        for words in _daemons(folder, nodes, within):
            with (folder / f"{Path(words[0]).name}.log").open("ab") as log:
                daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        cluster = Cluster(folder, environment)
        _wait_for_nodes(cluster, daemons)
        yield cluster
    finally:
        _cancel_all(environment)
        for daemon in reversed(daemons):
            _stop(daemon)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A SLURM of one node on this machine."""
    with running_slurm({"localhost": "127.0.0.1"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """A SLURM of two nodes that reach each other over a bridge only: each has a network namespace of its own."""
    bridge, net = f"ps{os.getpid()}", f"10.213.{os.getpid() % 256}"
    nodes = {f"{bridge}-1": f"{net}.1", f"{bridge}-2": f"{net}.2"}
    try:
        try:
            _ip("link", "add", bridge, "type", "bridge")
            _ip("addr", "add", f"{net}.254/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for node, address in nodes.items():
                _ip("netns", "add", node)
                _ip("link", "add", node, "master", bridge, "up", "type", "veth", "peer", "name", "eth0", "netns", node)
                _ip("-n", node, "addr", "add", f"{address}/24", "dev", "eth0")
                _ip("-n", node, "link", "set", "eth0", "up")
                _ip("-n", node, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"two nodes need root and network namespaces: {error} {getattr(error, 'stderr', '')}")
        with running_slurm(nodes, f"{net}.254", within=True) as cluster:
            yield cluster
    finally:
        for words in (*(("netns", "delete", node) for node in nodes), ("link", "delete", bridge)):
            subprocess.run(["ip", *words], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _configure(folder: Path, nodes: dict[str, str], address: str) -> None:
    """Writes the configuration; munged wants its folder readable and its key private."""
    folder.chmod(0o755)
    for name in ("munge", "state", *(f"spool-{node}" for node in nodes)):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    host = socket.gethostname().partition(".")[0]
    lines = [NODE.format(name=name, host=host, address=at) for name, at in nodes.items()]
    conf = SLURM_CONF.format(folder=folder, host=host, address=address, ports=ports, nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero,/dev/full,/dev/random\n")
    (folder / "hosts").write_text("".join(f"{at} {name}\n" for name, at in nodes.items()) + "127.0.0.1 localhost\n")


def _daemons(folder: Path, nodes: dict[str, str], within: bool) -> list[list[str]]:
    munge, conf = folder / "munge", str(folder / "slurm.conf")
    paths = [f"--{name}={munge / name.removesuffix('-file')}" for name in ("key-file", "socket", "pid-file")]
    paths += [f"--{name}={munge / name.removesuffix('-file')}" for name in ("log-file", "seed-file")]
    slurmds = [["slurmd", "-D", "-N", name, "-f", conf] for name in nodes]
    if within:  # with a hostname and an /etc/hosts of its own; `ip netns exec` would hide /sys/fs/cgroup
        shell = f'mount --bind {folder / "hosts"} /etc/hosts && hostname "$4" && exec "$@"'
        enter = ["unshare", "--mount", "--uts", "sh", "-c", shell, "sh"]
        slurmds = [["nsenter", f"--net=/run/netns/{words[3]}", *enter, *words] for words in slurmds]
    return [
        ["munged", "--foreground", "--force", "--num-threads=1", *paths],
        ["slurmctld", "-D", "-f", conf],
        *slurmds,
    ]


def _wait_for_nodes(cluster: Cluster, daemons: list[subprocess.Popen[bytes]], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while True:
        said = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%T"], env=cluster.environment, capture_output=True, text=True
        )
        if said.stdout and set(said.stdout.split()) == {"idle"}:
            return
        if time.monotonic() > until or any(daemon.poll() is not None for daemon in daemons):
            logs = "\n".join(log.read_text()[-1500:] for log in cluster.folder.glob("*.log"))
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
