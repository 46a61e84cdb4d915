"""Weights & Biases runs: online with a login, offline without one, never a question on the terminal.

wandb itself asks on the terminal where it finds no login, and waits where it finds no server. A training run on a
cluster node must do neither, so the mode is decided here, from the environment and the netrc file alone.
"""

import json
import netrc
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from papsmear.errors import UsageError
from papsmear.files import write_text
from papsmear.progress import say

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "shared", "disabled"]
MODES: tuple[Mode, ...] = get_args(Mode)

LAST_RUN = "last-run.json"  # in a run folder's wandb/: which run it was, to be linked to by what uses its results


def wandb_mode() -> Mode:
    """What WANDB_MODE says; where it is not set, `online` with a login and `offline` without one.

    Needs no network and does not import wandb. Raises UsageError for a WANDB_MODE that wandb does not know.
    """
    wanted = os.environ.get("WANDB_MODE", "").strip().lower()
    if not wanted:
        return "online" if has_login() else "offline"
    for mode in MODES:
        if mode == wanted:
            return mode
    raise UsageError(f"WANDB_MODE={wanted!r} is none of {', '.join(MODES)}; unset it, or set one of these")


def has_login() -> bool:
    """Whether a W&B login lies on this machine: WANDB_API_KEY, or the server's entry in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        entry = netrc.netrc(file).hosts.get(server)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    return bool(entry and entry[2])


def start_run(folder: Path, job: str, name: str, config: dict[str, Any], goes_on: bool = False) -> "wandb.Run":
    """Starts a W&B run whose files lie in `folder`/wandb; call its `finish()`, or use `run_of_job`.

    With `goes_on`, all starts in one folder are one run, by an id that is kept there. Offline each start writes a file
    of its own, and `wandb sync FOLDER/wandb/offline-run-*` of wandb 0.23 and later puts them together, in order.

    Where the server cannot be reached or refuses the login, the run is kept offline, and a line says so: work that
    can be done without W&B is not lost to it. WANDB_PROJECT and WANDB_ENTITY say where the run belongs.
    """
    import wandb

    def init(mode: Mode) -> wandb.Run:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "papsmear",
            job_type=job,
            name=name,
            config=config,
            dir=folder,
            mode=mode,
            id=_kept_id(folder) if goes_on else None,
            resume="allow" if goes_on else None,
            settings=wandb.Settings(console="off", silent=True, init_timeout=30),
        )

    folder.mkdir(parents=True, exist_ok=True)
    mode = wandb_mode()
    try:
        run = init(mode)
    except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        if mode == "offline":
            raise
        reason = str(error).splitlines()[0]
        say(f"W&B: cannot log online ({reason}); this run is kept offline, `wandb sync` sends it later")
        run = init("offline")
    if mode != "disabled":
        # asked for its address, an offline run warns on the terminal that it has none
        told = {"id": run.id, "entity": run.entity, "project": run.project, "url": None if run.offline else run.url}
        write_text(folder / "wandb" / LAST_RUN, json.dumps({key: value for key, value in told.items() if value}))
    return run


@contextmanager
def run_of_job(folder: Path, job: str, config: dict[str, Any]) -> "Iterator[wandb.Run]":
    """`start_run` for as long as a block lasts; where that fails, the run ends as failed.

    A run as a context of its own would print the traceback of an error that we say in a line.
    """
    run = start_run(folder, job, folder.absolute().name, config)
    try:
        yield run
    except BaseException:
        with suppress(Exception):
            run.finish(exit_code=1)
        raise
    run.finish()


def _kept_id(folder: Path) -> str:
    """The id of the folder's run, a new one where it has none yet."""
    file = folder / "wandb" / "run-id.txt"
    if not file.is_file():
        write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8").strip()


def run_of(folder: Path) -> dict[str, str] | None:
    """The last W&B run whose files lie in `folder`: its `id`, and `entity`, `project` and `url` where they are known.

    None where there is none. Of a folder without our note only the id is known, from the names that wandb gives.
    """
    try:
        told = json.loads((folder / "wandb" / LAST_RUN).read_text(encoding="utf-8"))
        if "id" in told:
            return {key: str(value) for key, value in told.items()}
    except (OSError, ValueError):
        pass
    starts = [re.fullmatch(r"(?:offline-)?run-(\d+_\d+)-(\w+)", file.name) for file in folder.glob("wandb/*run-*")]
    ids = {match[1]: match[2] for match in starts if match}
    return {"id": ids[max(ids)]} if ids else None
