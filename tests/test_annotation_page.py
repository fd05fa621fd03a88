"""The page to label on in a real headless browser: by keyboard, by several, and while its server dies."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from distindex.annotation.api import make_api
from distindex.annotation.desk import Desk
from distindex.config import CorpusConfig
from distindex.corpus.label_store import LabelStore
from distindex.label_config import LabelServeConfig
from distindex.serving.access import Access, digests_of
from tests.serving_backend import free_port, served

playwright = pytest.importorskip("playwright.sync_api")

CLASSES = ["sport", "business", "culture"]
ROWS = 30
FIRST_ID = 1 << 60


@pytest.fixture
def texts(tmp_path: Path) -> CorpusConfig:
    table = pa.table(
        {
            "id": FIRST_ID + np.arange(ROWS),
            "text": [f"<b id='injected'>story</b> {i}\nof class {CLASSES[i % 3]}" for i in range(ROWS)],
            "source": ["<i id='injected-too'>wire</i>"] * ROWS,
        }
    )
    pq.write_table(table, tmp_path / "texts.parquet")
    return CorpusConfig(str(tmp_path / "texts.parquet"), "text", payload_columns=["source"])


class Process:
    """`distindex label serve` in a process of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._arguments = [sys.executable, "-m", "distindex.cli", "label", "serve", *arguments, f"--port={self.port}"]
        self.start()

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "DISTINDEX_TOKEN"}
        self._process = subprocess.Popen(self._arguments, stderr=subprocess.PIPE, text=True, env=environment)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                assert httpx.get(f"{self.url}health").json() == {"status": "ready"}
                return
            assert self._process.poll() is None, self._process.communicate()
            time.sleep(0.05)
        raise AssertionError("it has not started in time")

    def end(self, how: signal.Signals) -> int:
        self._process.send_signal(how)
        self._process.communicate(timeout=60)
        return self._process.returncode


def open_page(browser: Any, url: str, name: str, **settings: Any) -> Any:
    """The page in a browser context of its own, after its first item has come."""
    page = browser.new_context(viewport={"width": 1000, "height": 800}, **settings).new_page()
    page.set_default_timeout(20_000)
    page.wrong, page.asked = [], []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda line: line.type == "error" and page.wrong.append(line.text))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(url)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    page.locator("#work:not([aria-busy])").wait_for()
    return page


def close(page: Any, url: str) -> None:
    """Nothing may have gone wrong in it, nor been asked of another host."""
    # Requests that were refused or had no answer are what some tests ask for.
    assert [text for text in page.wrong if not text.startswith("Failed to load resource")] == []
    assert all(each.startswith((url, "data:", "blob:")) for each in page.asked), page.asked
    page.context.close()


def press(page: Any, key: str) -> None:
    """Press a key and wait until the page has dealt with it."""
    page.keyboard.press(key)
    page.locator("#work:not([aria-busy])").wait_for()


def item(page: Any) -> int:
    """The number of the item that is shown."""
    words = page.locator("#title").inner_text().split()
    assert words[0] == "Item"
    return int(words[1]) - FIRST_ID


def status(page: Any) -> str:
    return page.locator("#status").inner_text()


@pytest.mark.slow
def test_nothing_is_lost_nor_asked_twice_when_pages_and_servers_die(
    browser: Any, texts: CorpusConfig, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    process = Process(
        [f"--items.uri={texts.uri}", "--items.feature_column=text", "--items.payload_columns=[source]",
         f"--store={store}", f"--classes=[{', '.join(CLASSES)}]"]
    )  # fmt: skip
    try:
        page = open_page(browser, process.url, "ann")
        other = open_page(browser, process.url, "bob")
        held = item(other)
        answered: list[int] = []

        def answer(count: int) -> None:
            for _ in range(count):
                shown = item(page)
                assert page.locator(".text").inner_text().endswith(CLASSES[shown % 3])
                answered.append(shown)
                press(page, "123"[shown % 3])
                assert status(page) == f"Saved: {CLASSES[shown % 3]}."
                assert page.evaluate("document.activeElement.id") == "title", "a screen reader goes on from there"

        answer(8)
        press(page, "u")
        assert status(page).startswith("Taken back: ")
        assert item(page) == answered.pop()
        press(page, "s")
        skipped, again = status(page), item(page)
        assert skipped == "Skipped."
        press(page, "u")
        assert status(page) == "Taken back: a skip."
        answer(1)
        assert item(page) == again
        page.reload()
        page.locator("#work:not([aria-busy])").wait_for()
        assert item(page) == again, "the same item, not another one"
        answer(4)

        assert held not in answered, "what one is shown others are not"
        press(other, "1")
        close(other, process.url)

        shown = item(page)
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        page.keyboard.press("123"[shown % 3])
        page.get_by_role("alert").get_by_text("Your answer is kept here and sent again.").wait_for()
        process.start()
        page.get_by_role("alert").wait_for(state="hidden")
        page.locator("#work:not([aria-busy])").wait_for()
        answered.append(shown)
        assert status(page) == f"Saved: {CLASSES[shown % 3]}."
        answer(3)

        # Now the page dies too, with an answer that nobody has.
        shown = item(page)
        process.end(signal.SIGKILL)
        page.keyboard.press("123"[shown % 3])
        page.get_by_role("alert").get_by_text("Your answer is kept here").wait_for()
        state = page.context.storage_state()
        page.context.close()
        process.start()
        page = open_page(browser, process.url, "ann", storage_state=state)
        answered.append(shown)
        assert status(page) == "Your last answer is saved."
        answer(3)
        assert len(answered) == 20
        close(page, process.url)
        assert process.end(signal.SIGINT) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.end(signal.SIGKILL)

    votes = LabelStore.open(str(store)).votes()
    standing = {vote.id - FIRST_ID: vote for vote in votes}  # type: ignore[operator]
    assert {number: vote.labels for number, vote in standing.items() if vote.annotator == "ann"} == {
        number: (CLASSES[number % 3],) for number in answered
    }
    assert len(set(answered)) == 20, "nothing is asked twice"
    given = Counter((vote.annotator, vote.id) for vote in votes if vote.labels)
    assert sorted(given.values()) == [1] * 20 + [2], "one was taken back and answered again"
    assert (standing[held].annotator, held in answered) == ("bob", False)


@pytest.fixture
def digits(tmp_path: Path) -> CorpusConfig:
    """Digits as images; what Item 3 has is none."""
    files = []
    for pixels in load_digits().images[:6]:  # type: ignore[attr-defined]
        sink = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(sink, "png")
        files.append(sink.getvalue())
    files[3] = b"no image"
    table = pa.table({"id": FIRST_ID + np.arange(6), "image": pa.array(files, pa.binary()), "label": list("0....5")})
    pq.write_table(table, tmp_path / "digits.parquet")
    return CorpusConfig(str(tmp_path / "digits.parquet"), "image", label_column="label")


def test_images_with_several_labels_that_are_found_and_added(
    browser: Any, digits: CorpusConfig, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    with served(make_api(Desk(LabelServeConfig(items=digits, store=store, multi=True)), Access())) as url:
        page = open_page(browser, url, "ann")
        playwright.expect(page.locator(".item img")).to_have_js_property("naturalWidth", 8)
        names = page.locator("#classes button")
        assert names.all_inner_texts() == ["1 .", "2 0", "3 5"]
        page.keyboard.press("2")
        assert page.locator("#classes [aria-pressed=true]").inner_text() == "2 0"
        page.keyboard.press("/")
        page.keyboard.type("round")
        assert page.locator("#classes button:not([hidden])").all_inner_texts() == ["Add “round”"]
        page.keyboard.press("Enter")
        assert page.locator("#classes [aria-pressed=true]").all_inner_texts() == ["2 0", "4 round"]
        page.keyboard.press("Escape")
        press(page, "Enter")
        assert status(page) == "Saved: 0, round."
        assert item(page) == 1
        press(page, "Enter")
        assert status(page) == "Choose a label first, or skip."
        press(page, "u")
        assert page.locator("#classes [aria-pressed=true]").all_inner_texts() == ["2 0", "4 round"]
        page.keyboard.press("2")
        press(page, "Enter")
        for _ in range(2):
            press(page, "s")
        page.get_by_text("The image cannot be shown: ").wait_for()
        page.keyboard.press("?")
        page.get_by_label("Keys answer at once").uncheck()
        page.get_by_role("button", name="Close").click()
        page.keyboard.press("s")
        assert item(page) == 3, "keys do nothing any more"
        for _ in range(3):
            page.get_by_role("button", name="Skip").click()
            page.locator("#work:not([aria-busy])").wait_for()
        assert page.locator("#title").inner_text() == "Nothing is left for you now."
        assert page.locator("#left").inner_text() == "You have skipped 5."
        again = page.get_by_role("button", name="Show what I skipped")
        again.focus()
        with page.expect_response("**/v1/next"):
            pass
        page.locator("#work:not([aria-busy])").wait_for()
        playwright.expect(again).to_be_focused()
        again.click()
        playwright.expect(page.locator("#title")).to_contain_text("Item ")
        close(page, url)
    assert LabelStore.open(store).resolved().labels == {FIRST_ID: ("round",)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000])
def test_narrow_and_wide_screens_hold_it_accessibly(
    browser: Any, texts: CorpusConfig, tmp_path: Path, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    config = LabelServeConfig(items=texts, store=str(tmp_path / "store"), classes=CLASSES)
    access = Access(digests_of(["the-right-token-of-all"], "token"))
    with served(make_api(Desk(config), access)) as url:
        page = browser.new_page(viewport={"width": width, "height": 740}, color_scheme=scheme)
        page.set_default_timeout(20_000)

        def check() -> None:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = axe.Axe().run(page)
            assert found.violations_count == 0, found.generate_report()

        page.goto(url)
        page.get_by_role("alert").get_by_text("Give a token first.").wait_for()
        page.get_by_label("Token").fill("the-right-token-of-all")
        page.keyboard.press("Enter")
        page.get_by_label("Your name").fill("ann")
        check()
        page.keyboard.press("Enter")
        page.locator(".text").wait_for()
        assert page.locator("#injected, #injected-too").count() == 0, "what is in the data stays text"
        assert page.get_by_text("<b id='injected'>story</b> 0").count() == 1
        check()
        page.keyboard.press("?")
        page.get_by_role("dialog").wait_for()
        check()
        page.close()


def test_the_page_asks_for_nothing_but_itself(texts: CorpusConfig, tmp_path: Path) -> None:
    config = LabelServeConfig(items=texts, store=str(tmp_path / "store"))
    with served(make_api(Desk(config), Access())) as url:
        policy = httpx.get(url).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        scripts = [httpx.get(f"{url}/page/{name}").text for name in ("label.js", "common.js")]
        assert "innerHTML" not in "".join(scripts)
