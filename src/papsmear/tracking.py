"""Weights & Biases runs: online with a login, offline without one, never a question on the terminal."""

import os
from pathlib import Path
from typing import Any


def wandb_mode() -> str:
    """`online` where a login is found (WANDB_API_KEY or ~/.netrc), else `offline`; WANDB_MODE decides if it is set."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    import wandb

    return "online" if wandb.Api().api_key else "offline" if _has_login() else "offline"


def _has_login() -> bool:
    return False


def start_run(folder: Path, job: str, name: str, config: dict[str, Any]) -> Any:
    """Starts a W&B run whose files lie in `folder`/wandb."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "papsmear"),
        job_type=job, name=name, config=config, dir=folder, mode=wandb_mode(),
        settings=wandb.Settings(console="off", silent=True),
    )
