"""The page of a slide as a reader has it: opened in Chromium, clicked on with a real mouse, looked at."""

import asyncio
import base64
import dataclasses
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import numpy as np
import openslide
import pytest
import simplejpeg

from papsmear.mil.diagnosis import Diagnosis
from papsmear.mil.scope import Measured
from papsmear.mil.slide_files import files_of, write_diagnosis
from papsmear.mil.worklist import Entry, write_worklist
from papsmear.page import RESEARCH_USE_ONLY
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.phantom.identity import Identity
from papsmear.tiling.phantom.svs import write_svs
from papsmear.tiling.reader import open_slide

SIZE = (3840, 3200)  # 6 x 5 tiles
SELECTED_RGB = (10, 132, 255)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A slide and its diagnosis, written to `out`."""

    slide: Path
    diagnosis: Diagnosis
    out: Path

    def read(self, ending: str) -> str:
        return (self.out / f"case{ending}").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A slide no two places of which look alike, and scores that say nothing."""
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    small = rng.integers(90, 250, (SIZE[1] // 64, SIZE[0] // 64, 3), np.uint8)
    rgb = cv2.resize(small, SIZE, interpolation=cv2.INTER_CUBIC)
    strips = (rgb[y : y + 256] for y in range(0, SIZE[1], 256))
    write_svs(folder / "case.svs", SIZE, strips, 0.25, Identity("A", "B", "01/02/03", "C"))
    xy_level0 = np.array([(x, y) for y in range(0, SIZE[1], 640) for x in range(0, SIZE[0], 640)], np.int32)
    diagnosis = Diagnosis(
        slide_id="case",
        operating_point=0.4,
        size_level0=SIZE,
        mpp=0.25,
        tiles=TileSettings(),
        tile_size_level0=640,
        model={},
        probability=0.7,
        xy_level0=xy_level0,
        scores=rng.permutation(len(xy_level0)).astype(np.float32),
        measured=Measured(len(xy_level0), 9.0, 0.3),
    )
    with open_slide(folder / "case.svs") as reader:
        write_diagnosis(folder / "out", diagnosis, reader)
    return Case(folder / "case.svs", diagnosis, folder / "out")


class _Pictures(HTMLParser):
    """The pictures of the tiles, by rank."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.of_rank: dict[int, np.ndarray] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        if tag == "img":
            rank = int((of["alt"] or "").removeprefix("Tile ").partition(",")[0])
            self.of_rank[rank] = simplejpeg.decode_jpeg(base64.b64decode((of["src"] or "").partition("base64,")[2]))


def test_polygons_are_good_geojson_and_hold_what_the_page_shows(case: Case) -> None:
    """RFC 7946, 3.1.6: a ring has four or more positions, ends where it begins, and turns counter-clockwise."""
    collection = json.loads(case.read(".geojson"), parse_constant=pytest.fail)
    pictures = _Pictures(case.read(".html")).of_rank
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(pictures) == 10
    with openslide.OpenSlide(case.slide) as slide:
        for feature in collection["features"]:
            assert feature["type"] == "Feature"
            assert feature["geometry"]["type"] == "Polygon"
            assert feature["properties"]["research_use_only"] == RESEARCH_USE_ONLY
            (ring,) = feature["geometry"]["coordinates"]
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in itertools.pairwise(ring)) > 0
            (left, top), (right, bottom) = np.min(ring, axis=0), np.max(ring, axis=0)
            assert 0 <= left < right <= SIZE[0]
            assert 0 <= top < bottom <= SIZE[1]
            of = {item["name"]: item["value"] for item in feature["properties"]["measurements"]}
            found = slide.read_region((int(left), int(top)), 0, (int(right - left), int(bottom - top))).convert("RGB")
            difference = np.abs(pictures[of["Rank"]].astype(int) - np.asarray(found))
            assert difference.mean() < 2  # JPEG at quality 92; of two tiles it is above 30
            assert of["Score"] == len(case.diagnosis.scores) - of["Rank"]


def test_each_file_says_what_it_is_for(case: Case) -> None:
    for file in files_of(case.out, "case"):
        assert RESEARCH_USE_ONLY.encode() in file.read_bytes()
    heat = (case.out / "case-heatmap.jpg").read_bytes()
    rgb = simplejpeg.decode_jpeg(heat)
    assert heat.index(RESEARCH_USE_ONLY.encode()) < 60  # a comment, before the picture
    corner = rgb[-18:, :350].astype(int).sum(axis=2)  # and letters in the picture
    assert (corner < 200).sum() > 300
    assert (corner > 740).mean() > 0.5


class Navigated(Exception):  # noqa: N818  # no error: the page that was asked gave way to the next one
    """The page that was asked gave way to another before it answered."""


class Browser:
    """Headless Chromium, driven by its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.requested: list[str] = []
        self.complaints: list[str] = []

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            said = await self._socket.receive_json(timeout=60)
            if said.get("method") == "Network.requestWillBeSent":
                self.requested.append(said["params"]["request"]["url"][:80])
            elif said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(said["params"]))
            if said.get("id") == number:
                if "navigated" in said.get("error", {}).get("message", ""):
                    raise Navigated
                assert "error" not in said, said
                return dict(said["result"])

    async def ask(self, script: str) -> Any:
        """The value of a script, a promise's too."""
        done = await self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def open(self, page: Path, width: int = 1500, height: int = 900) -> None:
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.do(f"{domain}.enable")
        await self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.do("Page.navigate", url=page.as_uri())
        await self.reach("location.protocol", "file:")

    async def reach(self, script: str, value: str) -> None:
        """Waits for a page that has loaded and of which the script gives that value."""
        while True:
            with suppress(Navigated):
                if await self.ask(f"document.readyState + {script}") == f"complete{value}":
                    return
            await asyncio.sleep(0.05)

    async def still(self) -> None:
        """Waits until nothing scrolls any more."""
        await self.ask("""new Promise((done) => { let y = -1, same = 0; const look = () => {
            same = scrollY === y ? same + 1 : 0; y = scrollY; same > 12 ? done() : requestAnimationFrame(look); };
            look(); })""")

    async def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in the window."""
        left, top, width, height = await self.ask(
            f"(({{x, y, width, height}}) => [x, y, width, height])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        return left, top, width, height

    async def click(self, selector: str, leaves: bool = False) -> None:
        """Presses the mouse over the middle of what is seen there, whatever that is; `leaves`: for another page."""
        left, top, width, height = await self.box(selector)
        for kind in ("mousePressed", "mouseReleased"):
            await self.do(
                "Input.dispatchMouseEvent", type=kind, x=left + width / 2, y=top + height / 2,
                button="left", clickCount=1,
            )  # fmt: skip
        if not leaves:
            await self.still()

    async def screenshot(self) -> np.ndarray:
        shot = base64.b64decode((await self.do("Page.captureScreenshot"))["data"])
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@pytest.fixture
def in_browser(tmp_path: Path) -> Iterator[Callable[[Callable[[Browser], Awaitable[None]]], None]]:
    """Runs what is to be done with a browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine, so nobody clicks on the page: apt-get install chromium")
    profile = tmp_path / "profile"
    words = [chromium, *QUIET.split(), "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def drive(use: Callable[[Browser], Awaitable[None]]) -> None:
        file, until = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (file.is_file() and file.read_text().count("\n")):
            assert process.poll() is None
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        port = file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                (page,) = [target for target in await answer.json() if target["type"] == "page"]
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                await use(Browser(socket))

    yield lambda use: asyncio.run(drive(use))
    process.terminate()
    process.wait(30)


def _blue(picture: np.ndarray, box: tuple[float, float, float, float], margin: float) -> int:
    """How many pixels in and around a box have the colour of what is selected."""
    left, top, right, bottom = box[0] - margin, box[1] - margin, box[0] + box[2] + margin, box[1] + box[3] + margin
    top, bottom, left, right = (max(0, int(v)) for v in (top, bottom, left, right))  # of the window
    part = picture[top:bottom, left:right].astype(int)
    return int((np.abs(part - SELECTED_RGB).max(axis=2) < 12).sum())


def test_click_on_a_tile_shows_its_place_and_click_on_a_place_its_tile(case: Case, in_browser: Callable) -> None:
    tops = {tile.rank: tile for tile in case.diagnosis.top_tiles()}

    async def use(browser: Browser) -> None:
        async def selected() -> list[str]:
            every = "[...document.querySelectorAll('.selected')]"
            return sorted(await browser.ask(f"{every}.map((e) => `${{e.classList[0]}} ${{e.dataset.rank}}`)"))

        async def see(rank: int) -> None:
            assert await selected() == [f"pin {rank}", f"tile {rank}"]
            assert await browser.ask("document.querySelector('.tile[aria-pressed=true]').dataset.rank") == str(rank)
            left, top, width, _ = await browser.box("#map image")
            scale = width / SIZE[0]  # CSS pixels a level-0 pixel
            place, picture = await browser.box(f".pin[data-rank='{rank}'] rect"), await browser.screenshot()
            x, y = tops[rank].xy_level0
            np.testing.assert_allclose(place, (left + x * scale, top + y * scale, 640 * scale, 640 * scale), atol=1)
            assert _blue(picture, place, 40) > 400  # its square, a ring around it, and its number
            tile = await browser.box(f".tile[data-rank='{rank}']")
            assert tile[1] < 900
            assert tile[1] + tile[3] > 0
            assert _blue(picture, tile, 0) > 500  # its frame
            elsewhere = [await browser.box(f".tile[data-rank='{other}']") for other in tops if other != rank]
            assert sum(_blue(picture, box, 0) for box in elsewhere) == 0

        await browser.open(case.out / "case.html")
        assert await selected() == []
        await browser.click(".tile[data-rank='2']")
        await see(2)
        await browser.click(".pin[data-rank='9'] rect")  # inside of the square, where no line is drawn
        await see(9)
        await browser.click(".pin[data-rank='4'] .number")
        await see(4)
        await browser.ask("document.querySelector('.tile[data-rank=\"10\"]').scrollIntoView({block: 'center'})")
        await browser.click(".tile[data-rank='10']")
        await see(10)
        assert browser.complaints == []
        assert [url for url in browser.requested if not url.startswith(("file:", "data:"))] == []
        assert len([url for url in browser.requested if url.startswith("file:")]) == 1

    in_browser(use)


def test_on_a_narrow_screen_a_click_goes_to_the_map(case: Case, in_browser: Callable) -> None:
    async def use(browser: Browser) -> None:
        await browser.open(case.out / "case.html", 480, 800)
        await browser.ask("document.querySelector('.tile[data-rank=\"5\"]').scrollIntoView({block: 'center'})")
        await browser.click(".tile[data-rank='5']")
        _, top, _, height = await browser.box(".pin[data-rank='5'] rect")
        assert top >= 0
        assert top + height <= 800
        assert await browser.ask("document.documentElement.scrollWidth <= 480")  # nothing is cut off at the side
        assert browser.complaints == []

    in_browser(use)


def test_the_page_of_a_slide_that_cannot_be_judged_gives_no_figure(case: Case, tmp_path: Path) -> None:
    silent = dataclasses.replace(
        case.diagnosis, probability=None, xy_level0=np.empty((0, 2), np.int32), scores=np.empty(0, np.float32),
        reasons=("too few tiles: 3, at least 520 are needed",), measured=Measured(3), limits=Measured(520),
    )  # fmt: skip
    with open_slide(case.slide) as reader:
        write_diagnosis(tmp_path, case.diagnosis, reader)
        write_diagnosis(tmp_path, silent, reader)  # nothing is left of what was said before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["case.html", "case.json"]
    record = json.loads((tmp_path / "case.json").read_text())
    assert (record["assessable"], record["probability"], record["decision"]) == (False, None, "not assessable")
    assert record["reasons"] == ["too few tiles: 3, at least 520 are needed"]
    page = (tmp_path / "case.html").read_text()
    for words in ("Not assessable", "Too few tiles: 3", RESEARCH_USE_ONLY):
        assert words in page
    assert "model's probability" not in page


def test_worklist_leads_to_the_slides(case: Case, in_browser: Callable) -> None:
    judged = Entry("case", json.loads(case.read(".json")))
    page = write_worklist(case.out, [Entry("lost", None, "damaged"), judged])

    async def use(browser: Browser) -> None:
        await browser.open(page)
        await browser.click("#judged a", leaves=True)
        await browser.reach("document.title", "case · papsmear diagnosis")
        assert browser.complaints == []

    in_browser(use)
