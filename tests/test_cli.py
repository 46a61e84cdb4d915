"""One main() behind two names: commands, options, exit statuses, and errors of one line."""

import errno
import importlib
import inspect
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from papsmear import __version__, cli
from papsmear.cli import COMMANDS, TRAINING, Command, build_parser, main
from papsmear.errors import InputError, UsageError


@dataclass(frozen=True)
class Settings:
    """Settings of the sample command.

    Args:
        size_px: Side of a tile, pixels.
    """

    size_px: int = 320


calls: list[dict[str, Any]] = []


def sample(slides: list[Path], out: Path, settings: Settings = Settings(), mpp: float | None = None) -> int:
    """Does a sample's work.

    Args:
        slides: The slides to work on.
        out: Where it goes.
        settings: How tiles are made.
        mpp: µm/px, where the file does not say.
    """
    calls.append({"slides": slides, "out": out, "settings": settings, "mpp": mpp})
    return len(slides) - 1


@pytest.fixture(autouse=True)
def _sample_command(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    monkeypatch.setattr("papsmear.doctor.sample", sample, raising=False)
    monkeypatch.setitem(COMMANDS, "sample", Command("papsmear.doctor:sample", "a sample", ("slides",)))


def test_arguments_become_options(tmp_path: Path) -> None:
    assert main(["sample", "a.svs", "b.svs", "--out=o", "--settings.size_px=64", "--mpp", "0.5"]) == 1
    assert calls == [{"slides": [Path("a.svs"), Path("b.svs")], "out": Path("o"), "settings": Settings(64), "mpp": 0.5}]


def test_a_file_gives_options_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "sample.yaml"
    file.write_text("out: ${oc.env:SAMPLE_OUT,here}/tiles\nmpp: 0.25\nsettings:\n  size_px: 96\n")
    assert main(["sample", "a.svs", "-c", str(file), "--mpp=0.5"]) == 0
    assert calls[0]["out"] == Path("here/tiles")
    assert calls[0]["settings"] == Settings(96)
    assert calls[0]["mpp"] == 0.5


def test_print_config_gives_what_the_file_format_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", "a.svs", "--out=o", "--print_config"])
    assert stop.value.code == 0
    expected = {"slides": ["a.svs"], "out": "o", "settings": {"size_px": 320}, "mpp": None}
    assert yaml.safe_load(capsys.readouterr().out) == expected
    assert not calls


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sample", "a.svs"], "required: out"),
        (["sample", "--out=o"], "required: slides"),
        (["sample", "a.svs", "--out=o", "--mpp=wide"], "wide"),
        (["sample", "a.svs", "--out=o", "--colour=red"], "--colour=red"),
        (["sample", "a.svs", "--out=o", "-c", "missing.yaml"], "missing.yaml"),
        (["smaple"], "'smaple'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert "--help" in printed.err
    assert not calls


def unnamed_after_named() -> OSError:
    """A log that cannot be closed either, after the file that could not be written."""
    error = OSError(errno.ENOSPC, "No space left on device")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", "y.tar")
    return error


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (UsageError("slides.csv: no\n  slides"), 2, "papsmear sample: error: slides.csv: no slides\n"),
        (InputError("a.svs: cannot be read"), 1, "papsmear sample: error: a.svs: cannot be read\n"),
        (OSError(errno.ENOSPC, "No space left on device", "x.tar"), 1, "x.tar: No space left on device"),
        (unnamed_after_named(), 1, "y.tar: No space left on device; free some space and start the command again"),
        (OSError(errno.EROFS, "Read-only file system"), 1, "the output folder: Read-only file system"),
        (KeyboardInterrupt(), 130, "papsmear sample: error: interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, status: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        """Fails."""
        raise error

    monkeypatch.setattr("papsmear.doctor.sample", fails)
    monkeypatch.setitem(COMMANDS, "sample", Command("papsmear.doctor:sample", "a sample"))
    assert main(["sample"]) == status
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "I/O error")])
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        """Fails."""
        raise error

    monkeypatch.setattr("papsmear.doctor.sample", fails)
    monkeypatch.setitem(COMMANDS, "sample", Command("papsmear.doctor:sample", "a sample"))
    with pytest.raises(type(error)):
        main(["sample"])


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert all(name in text for name in (*COMMANDS, *TRAINING))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"papsmear {__version__}\n"


def test_help_of_a_command_comes_from_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "Does a sample's work.",
        "The slides to work on.",
        "Where it goes.",
        "Side of a tile, pixels.",
        "µm/px",
    ):
        assert part in text, part


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "sample"])
def test_every_command_is_a_typed_documented_function(name: str) -> None:
    command = COMMANDS[name]
    module, _, attribute = command.function.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    signature = inspect.signature(function)
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    help_text = build_parser(function, f"papsmear {name}", command.positional).format_help()
    undocumented = [p for p in signature.parameters if f"{p}: " not in (inspect.getdoc(function) or "")]
    assert not undocumented, undocumented
    assert (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".") in " ".join(help_text.split())


@pytest.mark.parametrize("words", [["--help"], ["split", "--help"], ["tile", "--help"], ["phantom", "--help"]])
def test_commands_without_training_do_not_wait_for_torch(words: list[str]) -> None:
    code = (
        "import sys; from papsmear.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'wandb', 'sklearn')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize(("given", "used"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_for_each_other_sleep_where_nothing_else_is_asked(given: dict[str, str], used: str) -> None:
    """As OpenMP itself says it when torch loads it."""
    code = "from papsmear.cli import main; main(['--version']); import torch; torch.rand(9, 9) @ torch.rand(9, 9)"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, env=env | {"OMP_DISPLAY_ENV": "TRUE"}, capture_output=True, text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{used}'" in said.stderr


def test_python_m_papsmear_is_papsmear() -> None:
    said = subprocess.run([sys.executable, "-m", "papsmear", "nothing"], capture_output=True, text=True)
    assert said.returncode == 2
    assert said.stderr.startswith("papsmear: error: there is no command 'nothing'")


# --- the name `lightning` ---------------------------------------------------------------------------------------


@pytest.fixture
def other_lightning(tmp_path: Path) -> dict[str, str]:
    """An environment in which another distribution has a `lightning` script too."""
    (tmp_path / "cloud.py").write_text("import sys\ndef run():\n    print('cloud', *sys.argv[1:])\n    return 5\n")
    info = tmp_path / "cloud-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cloud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nlightning = cloud:run\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def _script(name: str) -> str:
    script = Path(sys.executable).with_name(name)
    assert script.is_file(), f"{script} is missing; install the package: make check"
    return str(script)


def test_words_that_are_not_ours_go_to_the_other_owner_of_the_name(other_lightning: dict[str, str]) -> None:
    words = ["run", "app", "--x=1"]
    said = subprocess.run([_script("lightning"), *words], env=other_lightning, capture_output=True, text=True)
    assert (said.returncode, said.stdout, said.stderr) == (5, "cloud run app --x=1\n", "")


@pytest.mark.parametrize(("name", "words", "status"), [("papsmear", ["run"], 2), ("lightning", ["--version"], 0)])
def test_our_own_words_are_never_forwarded(
    name: str, words: list[str], status: int, other_lightning: dict[str, str]
) -> None:
    said = subprocess.run([_script(name), *words], env=other_lightning, capture_output=True, text=True)
    assert said.returncode == status
    assert "cloud" not in said.stdout


def test_without_another_owner_the_word_is_wrong_usage() -> None:
    said = subprocess.run([_script("lightning"), "run"], capture_output=True, text=True)
    assert said.returncode == 2
    assert "'run'" in said.stderr
    assert cli._other_lightning() is None
