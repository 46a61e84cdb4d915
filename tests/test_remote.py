"""Shards at a URL: the same batches as from the folder, from a server without ranges; and servers that fail."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from papsmear.errors import InputError, UsageError
from papsmear.files import remove
from papsmear.ssl import remote
from papsmear.ssl.data import TileData
from papsmear.ssl.show import show_batch

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create",  # more workers than cores
    "ignore:This process .* is multi-threaded",  # Python 3.12, of the server's thread beside the workers
)


class Handler(SimpleHTTPRequestHandler):
    """What `python -m http.server` runs, which knows no ranges; it notes what it is asked for, and fails if told to."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        fails = self.path.endswith(".tar") and self.server.fails
        if fails == "status":
            self.send_error(503)
        elif fails:
            size = Path(self.translate_path(self.path)).stat().st_size
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(bytes(size // 2))
            if fails == "silence":
                self.server.end.wait(30)
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing on the terminal."""


class Server(ThreadingHTTPServer):
    """A server of a folder, that can be told to fail: by an error, an end in the middle, or silence."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked: list[str] = []
        self.fails = ""
        self.end = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def cohort(tmp_path: Path, write_shards: Callable[..., Path]) -> Path:
    """Three slides of 12 tiles; the third is held out as fold 1."""
    rng = np.random.default_rng(0)
    for slide_id in ("s1", "s2", "s3"):
        write_shards(tmp_path / "shards", slide_id, list(rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)))
    (tmp_path / "slides.csv").write_text("slide_id,path,fold\ns1,a,0\ns2,b,0\ns3,c,1\n")
    return tmp_path


@pytest.fixture
def server(cohort: Path) -> Iterator[Server]:
    server = Server(cohort)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.end.set()
    server.shutdown()
    thread.join()
    server.server_close()


def batches_of(cohort: Path, shards: str | Path, workers: int = 0, fold: int | None = 1) -> torch.Tensor:
    """All batches of an epoch (batches, 6, 2, 16, 16, 3)."""
    data = TileData(shards, cohort / "slides.csv", fold, cohort / "cache", batch_size=6, workers=workers, crop_px=16)
    data.prepare_data()
    data.setup("fit")
    return torch.stack([views for (views,) in data.loader()])


def test_a_url_gives_the_batches_of_the_folder(cohort: Path, server: Server) -> None:
    wanted = batches_of(cohort, cohort / "shards")
    assert not (cohort / "cache").exists()
    found = batches_of(cohort, f"{server.url}/shards/", workers=2)
    assert torch.equal(found, wanted)
    assert not [path for path in server.asked if "s3" in path], "the held-out fold is not even fetched"
    asked = len(server.asked)
    assert torch.equal(batches_of(cohort, f"{server.url}/shards"), wanted)
    assert {Path(path).name for path in server.asked[asked:]} == {"slide.json"}, "shards are fetched once"


def test_show_batch_takes_a_url_too(cohort: Path, server: Server) -> None:
    data = TileData(f"{server.url}/shards", cohort / "slides.csv", 1, cohort / "cache", batch_size=6, crop_px=16)
    show_batch(data, cohort / "sheet.png", count=1)
    assert (cohort / "sheet.png").is_file()


def test_a_slide_that_was_tiled_anew_is_fetched_anew(
    cohort: Path, server: Server, write_shards: Callable[..., Path]
) -> None:
    before = batches_of(cohort, f"{server.url}/shards")
    remove(cohort / "shards" / "s2")
    write_shards(cohort / "shards", "s2", [np.full((16, 16, 3), 9, np.uint8)] * 14)
    after = batches_of(cohort, f"{server.url}/shards")
    assert not torch.equal(after, before)
    assert torch.equal(after, batches_of(cohort, cohort / "shards"))


def test_a_missing_shard_and_missing_slides_are_named_by_their_url(cohort: Path, server: Server) -> None:
    (cohort / "shards" / "s2" / "s2-000000.tar").unlink()
    with pytest.raises(InputError, match=rf"{server.url}/shards/s2/s2-000000\.tar: cannot be fetched \(no such file"):
        batches_of(cohort, f"{server.url}/shards")
    with pytest.raises(
        UsageError, match=rf"{server.url}/wrong: has no shards of 2 of the slides: s1, s2; give the URL"
    ):
        batches_of(cohort, f"{server.url}/wrong")


@pytest.mark.parametrize("fails", ["status", "end", "silence"])
def test_a_server_that_fails_is_named_and_the_next_start_goes_on(
    cohort: Path, server: Server, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENT_SECONDS", 0.5)
    server.fails = fails
    with pytest.raises(InputError, match=rf"{server.url}/shards/s\d/s\d-000000\.tar: cannot be fetched .*goes on"):
        batches_of(cohort, f"{server.url}/shards")
    assert not list((cohort / "cache").rglob("*.tar")), "nothing under its final name"
    server.fails = ""
    assert torch.equal(batches_of(cohort, f"{server.url}/shards"), batches_of(cohort, cohort / "shards"))


def test_a_server_that_is_gone_is_named(cohort: Path) -> None:
    server = Server(cohort)
    server.server_close()
    with pytest.raises(InputError, match=rf"{server.url}/shards/s1/slide\.json: cannot be fetched \(.*[Cc]onnect"):
        batches_of(cohort, f"{server.url}/shards")


def test_a_shard_that_is_cut_short_on_the_server_is_named(cohort: Path, server: Server) -> None:
    folder = cohort / "shards" / "s1"
    about, tar = json.loads((folder / "slide.json").read_text()), folder / "s1-000000.tar"
    about["shards"] = [{"name": tar.name, "bytes": tar.stat().st_size}]
    (folder / "slide.json").write_text(json.dumps(about))
    content = tar.read_bytes()
    tar.write_bytes(content[:2048] + bytes(1024))  # it ends as a tar does
    with pytest.raises(InputError, match=rf"{server.url}/shards/s1/s1-000000\.tar: the shard is cut short"):
        batches_of(cohort, f"{server.url}/shards")
    tar.write_bytes(content)
    batches_of(cohort, f"{server.url}/shards")


def test_what_a_url_wants_is_said(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"http://x/shards: shards of a URL .*--data\.cache=DIR"):
        TileData("http://x/shards", cohort / "slides.csv").prepare_data()
    with pytest.raises(UsageError, match=r"s3://bucket/shards: .*s3fs"):
        batches_of(cohort, "s3://bucket/shards")
    with pytest.raises(UsageError, match=r"htp://x/shards: .*htp"):
        batches_of(cohort, "htp://x/shards")


def test_a_disk_without_room_is_said(cohort: Path, server: Server) -> None:
    folder = cohort / "shards" / "s1"
    about = json.loads((folder / "slide.json").read_text())
    about["shards"] = [{"name": "s1-000000.tar", "bytes": 10**18}]
    (folder / "slide.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match=r"the shards want 1000000000\.0 GB, .* are free; give another --data\.cache"):
        batches_of(cohort, f"{server.url}/shards")
