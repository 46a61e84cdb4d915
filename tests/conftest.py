"""What all tests share: no network, no user's login, one thread, and the fixture for real public data.

The environment is set before any test module is imported, and processes that tests start inherit it.
"""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


def pytest_configure(config: pytest.Config) -> None:
    """Points everything that writes to the user's home, or asks the network, somewhere else."""
    home = tempfile.TemporaryDirectory(prefix="papsmear-tests-")
    config.add_cleanup(home.cleanup)
    for name in (
        "WANDB_DIR",
        "WANDB_CONFIG_DIR",
        "WANDB_CACHE_DIR",
        "WANDB_DATA_DIR",
        "MPLCONFIGDIR",
        "HF_HOME",
    ):
        folder = Path(home.name) / name.lower()
        folder.mkdir()
        os.environ[name] = str(folder)
    settings.register_profile("papsmear", deadline=None)  # a busy machine is no failure
    settings.load_profile("papsmear")
    os.environ.pop("WANDB_API_KEY", None)
    os.environ.update(
        WANDB_MODE="offline",
        WANDB_SILENT="true",
        NETRC=str(Path(home.name) / "netrc"),
        HF_HUB_OFFLINE="1",
        MPLBACKEND="Agg",
        **dict.fromkeys(_ONE_THREAD, "1"),
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real public data (read-only), which lies beside the repository on development machines."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real public data is not here: there is no ../shared/data beside the repository")
    return folder
