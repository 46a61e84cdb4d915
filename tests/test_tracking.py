"""W&B without network or prompts: how the mode is decided, and what an offline run leaves on disk."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from papsmear.errors import UsageError
from papsmear.tracking import has_login, run_of, start_run, wandb_mode


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def service() -> Iterator[None]:
    yield
    wandb.teardown()


def test_offline_without_a_login() -> None:
    assert wandb_mode() == "offline"


def test_online_with_an_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert wandb_mode() == "online"


@pytest.mark.parametrize(
    ("server", "found"),
    [("api.wandb.ai", True), ("wandb.hospital.example", False), ("api.wandb.ai.example", False)],
)
def test_a_netrc_entry_counts_for_its_own_server_only(tmp_path: Path, server: str, found: bool) -> None:
    (tmp_path / "netrc").write_text(f"machine {server} login user password {'a' * 40}\n")
    assert has_login() is found


def test_a_netrc_entry_of_the_server_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine wandb.hospital.example:8080 login user password {'a' * 40}\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.hospital.example:8080/")
    assert wandb_mode() == "online"


@pytest.mark.parametrize("text", ["machine api.wandb.ai login user\n", "machine\n", "\x00\xff"])
def test_a_netrc_without_a_key_or_damaged_is_no_login(tmp_path: Path, text: str) -> None:
    (tmp_path / "netrc").write_text(text, encoding="latin-1")
    assert wandb_mode() == "offline"


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_wandb_mode_decides_whatever_the_login(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_mode() == mode


def test_an_unknown_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UsageError, match="WANDB_MODE='ofline' is none of online, offline"):
        wandb_mode()


@pytest.mark.usefixtures("service")
def test_an_offline_run_lies_in_its_folder_and_ends(tmp_path: Path) -> None:
    with start_run(tmp_path / "out", "probe", "a name", {"seed": 3}) as run:
        run.log({"loss": 1.0})
        assert run.offline
        assert (run.project, run.name, run.job_type) == ("papsmear", "a name", "probe")
        assert run.config["seed"] == 3
    assert wandb.run is None
    (file,) = (tmp_path / "out" / "wandb").glob("offline-run-*/run-*.wandb")
    assert run_of(tmp_path / "out") == {"id": file.stem.removeprefix("run-"), "project": "papsmear"}


@pytest.mark.usefixtures("service")
def test_a_run_that_goes_on_has_one_id_and_offline_a_file_a_start(tmp_path: Path) -> None:
    ids = []
    for folder, seconds in (("a", 0), ("a", 1.1), ("b", 0)):  # W&B tells two starts apart by the second
        time.sleep(seconds)
        run = start_run(tmp_path / folder, "fit", "a name", {}, goes_on=True)
        ids.append(run.id)
        run.finish(exit_code=1)
    assert ids[0] == ids[1] != ids[2]
    assert len(list((tmp_path / "a" / "wandb").glob(f"offline-run-*/run-{ids[0]}.wandb"))) == 2


@pytest.mark.usefixtures("service")
def test_disabled_leaves_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with start_run(tmp_path, "probe", "a name", {}) as run:
        run.log({"loss": 1.0})
    assert not list(tmp_path.rglob("*.wandb"))


@pytest.mark.usefixtures("service")
def test_a_login_that_is_refused_keeps_the_run_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with start_run(tmp_path, "probe", "a name", {}) as run:
        assert run.offline
    assert "kept offline" in capsys.readouterr().err
