"""The one `main()` behind the console scripts `papsmear` and `lightning`.

A command is a typed function; its signature is its configuration and its docstring its help. Functions are named
here and imported when asked for, so that `papsmear tile` never waits for torch.
"""

import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from papsmear import __version__
from papsmear.errors import PapsmearError, UsageError, causes
from papsmear.files import DISK_FULL


@dataclass(frozen=True)
class Command:
    """A command: where its function is, which of its arguments are positional, and what it does in a line."""

    function: str
    does: str
    positional: tuple[str, ...] = ()


COMMANDS = {
    "phantom": Command("papsmear.tiling.phantom.cohort:phantom", "write synthetic slides with known truth", ("out",)),
    "split": Command("papsmear.cohort:split", "add stratified folds to slides.csv", ("slides",)),
    "tile": Command("papsmear.tiling.tile:tile", "slides to tiles in shards"),
    "verify": Command("papsmear.tiling.verify:verify", "check shards, name damaged ones", ("shards",)),
    "crop": Command("papsmear.tiling.crop:crop", "annotated cells and tiles as labelled sets"),
    "show-batch": Command("papsmear.ssl.show:show_batch", "a picture of tiles and the views that DINO sees of them"),
    "export": Command("papsmear.ssl.export:export", "a checkpoint's encoder for timm, and its model card", ("ckpt",)),
    "embed": Command("papsmear.mil.embed:embed", "shards to feature bags"),
    "data": Command("papsmear.probes.check:data", "check a set of labelled cells, say what it holds", ("name", "path")),
    "probe": Command("papsmear.probes.probe:probe", "the probe report of one or several encoders"),
    "c3p": Command("papsmear.probes.c3p:c3p", "public cells pasted on tiles: a linear classifier and its ablation"),
    "finetune": Command("papsmear.probes.finetune:finetune", "fine-tune an encoder on single cells, as DeepPap does"),
    "crossval": Command("papsmear.mil.crossval:crossval", "train and test MIL heads over all folds: one table of all"),
    "diagnose": Command("papsmear.mil.diagnose:diagnose", "slide files to diagnosis, top tiles, heat map", ("slides",)),
    "doctor": Command("papsmear.doctor:doctor", "what this machine lacks, and how to get it"),
}
TRAINING = ("fit", "validate", "test", "predict")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 some inputs failed, 2 wrong usage."""
    # Torch reads it when it first needs memory: large tensors go into huge pages, so that new ones cost less (Linux).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # So does OpenMP: its threads sleep while they wait for each other. By default they spin, which on a machine that
    # others use as well takes the processor from the very thread that is waited for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.raiseExceptions = False  # a library's log that cannot be written is no matter of the user's
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    if name == "--version":
        sys.stdout.write(f"papsmear {__version__}\n")
        return 0
    if name in TRAINING:
        return _guarded(name, lambda: _train(words, own_process=argv is None))
    if name in COMMANDS:
        return _guarded(name, lambda: _run(name, words[1:]))
    other = _other_lightning()
    if other is not None and Path(sys.argv[0]).stem == "lightning":
        return int(other() or 0)
    sys.stderr.write(f"papsmear: error: there is no command {name!r}; papsmear --help lists them\n")
    return 2


def _usage() -> str:
    lines = [f"  {name:<12}{command.does}" for name, command in COMMANDS.items()]
    lines.append(f"  {'fit':<12}train from a configuration: DINO (configs/ssl/*.yaml) or MIL (configs/mil.yaml)")
    lines.append("  validate, test, predict   the same for a trained model; `lightning fit` is `papsmear fit`")
    return (
        "usage: papsmear COMMAND [-c FILE] [--a.b=value ...] [--print_config]\n\n"
        + "\n".join(lines)
        + "\n\n`papsmear COMMAND --help` says more.\n"
    )


def _train(words: list[str], own_process: bool) -> int:
    from papsmear.signals import noted_signals

    with noted_signals(then_ignored=own_process) if words[0] == "fit" else nullcontext():
        from papsmear.training import train

        return train(words)


def _run(name: str, words: list[str]) -> int:
    from jsonargparse import ArgumentError

    command = COMMANDS[name]
    module, _, attribute = command.function.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    parser = build_parser(function, f"papsmear {name}", command.positional)
    try:
        config = parser.parse_args(words)
    except ArgumentError as error:
        raise UsageError(f"{error}; papsmear {name} --help lists the options") from error
    config.pop("config")
    status = function(**vars(parser.instantiate(config)))
    return int(status or 0)


def build_parser(function: Callable[..., Any], prog: str, positional: Sequence[str] = ()) -> Any:
    """The jsonargparse parser of a command: its function's arguments, `-c FILE`, `--print_config` and `${...}`."""
    import inspect

    import docstring_parser
    from jsonargparse import ArgumentParser

    doc = inspect.getdoc(function) or ""
    description = doc.partition("\nArgs:")[0]
    parser = ArgumentParser(prog=prog, description=description, parser_mode="omegaconf", exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="A YAML file with any of the options below.")
    signature = inspect.signature(function)
    help_of = {param.arg_name: param.description for param in docstring_parser.parse(doc).params}
    for name in positional:
        kind = signature.parameters[name].annotation
        several: dict[str, Any] = {"type": Path, "nargs": "+"} if kind == list[Path] else {"type": kind}
        parser.add_argument(name, help=help_of.get(name), **several)
    several_words = [n for n, p in signature.parameters.items() if p.annotation == list[Path] | None]
    for name in several_words:  # --compare A B, as a shell's * gives them
        parser.add_argument(f"--{name}", help=help_of.get(name), type=Path, nargs="+")
    parser.add_function_arguments(function, skip={*positional, *several_words}, as_group=False)
    return parser


def _guarded(name: str, run: Callable[[], int]) -> int:
    """Turns what a user can mend into one line on standard error and the right exit status."""
    try:
        return run()
    except PapsmearError as error:
        message, status = str(error), error.exit_status
    except OSError as error:
        if error.errno not in (*DISK_FULL, errno.EACCES, errno.EROFS):
            raise
        files = (link.filename2 or link.filename for link in causes(error) if isinstance(link, OSError))
        where = next(filter(None, files), "the output folder")
        mend = "free some space" if error.errno in DISK_FULL else "mend that"
        message, status = f"{where}: {error.strerror}; {mend} and start the command again: it goes on from there", 1
    except KeyboardInterrupt:
        message, status = "interrupted; start the command again to go on from there", 130
    sys.stderr.write(f"papsmear {name}: error: {' '.join(message.split())}\n")
    return status


def _other_lightning() -> Callable[[], Any] | None:
    """Another distribution's `lightning` script, if one is installed beside ours."""
    for entry in entry_points(group="console_scripts", name="lightning"):
        if not entry.value.startswith("papsmear"):
            script: Callable[[], Any] = entry.load()
            return script
    return None
