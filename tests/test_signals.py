"""What SIGUSR1 and SIGTERM do to a process that notes them, and to a worker that heeds its parent only."""

import os
import signal
import subprocess
import sys

import pytest

from papsmear import signals

WORKER = "from papsmear.signals import heed_parent_only; heed_parent_only(); print('up', flush=True); input()"


def test_signals_are_noted_until_the_end_and_then_are_what_they_were() -> None:
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.noted_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.told == ["SIGTERM", "SIGUSR1"]
        with signals.unless_told():
            raise ConnectionResetError
    assert signals.told == []
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    with pytest.raises(ConnectionResetError), signals.unless_told():
        raise ConnectionResetError


def test_a_worker_heeds_its_parent_only() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"up\n"
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(1)
        worker.terminate()
        assert worker.wait(30) == 0


def test_a_signal_after_the_end_of_a_training_does_not_change_its_exit_status() -> None:
    """The process takes a second to go; a signal then would kill it, and its job would not be requeued."""
    code = (
        "import atexit, os, signal, sys; sys.modules['papsmear.training'] = None; from papsmear.cli import main\n"
        "atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGUSR1, signal.SIGTERM)])\n"
        "sys.argv = ['papsmear', 'fit']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert "import of papsmear.training halted" in ended.stderr


def test_training_listens_before_it_has_imported_anything() -> None:
    """From 0.1 s after its start on instead of 5: a signal in between would end a job that SLURM then counts failed."""
    code = (
        "import os, signal, sys; sys.modules['papsmear.training'] = None; from papsmear.cli import main\n"
        "from papsmear import signals; listen = signals.listen\n"
        "signals.listen = lambda: (listen(), os.kill(os.getpid(), signal.SIGUSR1), print('told', flush=True))\n"
        "main(['fit'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "told\n"), "killed by the signal"
    assert "import of papsmear.training halted" in ended.stderr
