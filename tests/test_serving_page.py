"""The web page in a real headless browser, over the API of an index in this process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from distindex.config import FeaturesConfig
from distindex.corpus.features import fit_features
from distindex.hashing.classic import fit_lsh
from distindex.index.index import Index
from distindex.serving.access import Access, digests_of
from distindex.serving.api import make_api
from distindex.serving.body import Limits
from distindex.serving.responder import Responder
from tests.serving_backend import IndexBackend, served

playwright = pytest.importorskip("playwright.sync_api")

BITS, ROWS, FIRST_ID = 32, 300, 1 << 60
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LIMITS = Limits(max_queries=8, max_k=100, max_requests=4)


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray((pixels * 15).astype(np.uint8)).save(sink, "png")
    return sink.getvalue()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> IndexBackend:
    """Digits by what they are called and look like; ids that JavaScript's numbers cannot hold."""
    digits: Any = load_digits()
    images, digit_N = digits.images[:ROWS], digits.target[:ROWS]
    texts = [
        f"digit {NAMES[digit]} drawn by hand, " + f"{NAMES[digit]} " * (row % 3) for row, digit in enumerate(digit_N)
    ]
    features = fit_features(FeaturesConfig(), "text", [pa.array(texts)])
    hasher = fit_lsh(features, features.transform(pa.array(texts)), "text", BITS)
    payload = pa.table(
        {
            "text": texts,
            "picture": pa.array([png(image) for image in images], pa.binary()),
            "seal": pa.array([b"\x00\x01\x02"] * ROWS, pa.binary()),
            "label": [NAMES[digit] for digit in digit_N],
            "markup": ["<b id='injected'>bold</b>"] * ROWS,
        }
    )
    ids = pa.array(FIRST_ID + np.arange(ROWS))
    index = Index.create(
        str(tmp_path_factory.mktemp("page") / "digits"), hasher.encode(pa.array(texts)), ids, payload
    )
    return IndexBackend(index, LIMITS, hasher)


@pytest.fixture(scope="module")
def address(backend: IndexBackend) -> Iterator[str]:
    with served(make_api(Responder(backend))) as url:
        yield f"{url}/"


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, loaded; afterwards nothing may have gone wrong in it, nor been asked of another host."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.set_default_timeout(20_000)
    wrong, asked = [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: line.type == "error" and wrong.append(line.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_text("Bit balance").wait_for()
    yield page
    page.close()
    # Answers that are errors are what some tests ask for.
    assert [text for text in wrong if not text.startswith("Failed to load resource")] == []
    assert all(url.startswith((address, "data:")) for url in asked), asked


def results(page: Any) -> list[str]:
    page.locator("#search:not([aria-busy])").wait_for()
    return page.locator("#results h3").all_text_contents()


def ask(page: Any, kind: str, query: str) -> list[str]:
    page.get_by_label(kind, exact=True).first.check()
    page.locator("#query").fill(query)
    page.get_by_role("button", name="Search", exact=True).click()
    return results(page)


def test_search_by_text_shows_what_the_index_answers(page: Any, backend: IndexBackend) -> None:
    assert backend.hasher is not None
    code_QC = backend.hasher.encode(pa.array(["a seven"]))
    (expected,) = backend.index.search(code_QC, 10, columns=["label"])
    assert ask(page, "Text", "a seven") == [str(match.id) for match in expected]
    assert "10 rows in" in page.locator("#status").inner_text()
    labels = page.locator("#results .payload dd:nth-of-type(4)").all_text_contents()
    assert labels == [match.payload["label"] for match in expected]
    assert page.locator("#results .distance").all_text_contents() == [
        f"{match.distance} bit{'s' * (match.distance != 1)} away" for match in expected
    ]
    loaded = page.locator("#results img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert loaded == [8] * 10
    # What is in the data stays text.
    assert page.locator("#injected").count() == 0
    assert page.get_by_text("<b id='injected'>bold</b>").count() == 10
    assert page.get_by_text("3 bytes").count() == 10


def test_differing_bits_are_marked_and_said(page: Any, backend: IndexBackend) -> None:
    assert backend.hasher is not None
    code = int.from_bytes(backend.hasher.encode(pa.array(["a seven"]))[0].tobytes(), "little")
    ask(page, "Text", "a seven")
    for drawn in page.locator("#results svg.code").all():
        _, text, _ = (drawn.get_attribute("aria-label") + ",").split(" ", 2)
        other = int.from_bytes(bytes.fromhex(text.rstrip(",")), "little")
        bits = [str(bit) for bit in range(BITS) if (code ^ other) >> bit & 1]
        said = f"differs from the query in bits {', '.join(bits)}" if bits else "equal to the query"
        assert drawn.get_attribute("aria-label").endswith(said)
        marks = drawn.locator(".differing-mark")
        assert (marks.get_attribute("d").count("M") if marks.count() else 0) == len(bits)


def test_search_by_item_code_radius_filter_and_back(page: Any, backend: IndexBackend) -> None:
    first = ask(page, "Item", str(FIRST_ID + 7))
    (code,) = (match.code for match in backend.index.lookup([FIRST_ID + 7])[0])
    around = backend.index.search(np.frombuffer(bytes.fromhex(code), np.uint8)[None], 11)
    assert first == [str(match.id) for match in around[0] if match.id != FIRST_ID + 7][:10]
    assert str(FIRST_ID + 7) not in first
    page.locator("#results button").nth(3).click()
    playwright.expect(page.locator("#query")).to_have_value(first[3])
    assert first[3] not in results(page)
    page.go_back()
    playwright.expect(page.locator("#query")).to_have_value(str(FIRST_ID + 7))
    assert results(page) == first
    page.locator("#mode").select_option("radius")
    page.locator("#number").fill("3")
    page.locator("#filter").fill('label == "four"')
    within = ask(page, "Code", code)
    expected = backend.index.search(np.frombuffer(bytes.fromhex(code), np.uint8), radius=3, filter='label == "four"')
    assert within == [str(match.id) for match in expected[0]]
    page.reload()
    assert results(page) == within


def test_rescored_answers_show_their_score(page: Any, backend: IndexBackend) -> None:
    assert backend.hasher is not None
    logits = backend.hasher.logits_of(pa.array(["nine or four"]))
    expected = backend.index.search(k=10, logits=logits)[0]
    page.get_by_label("Rank ties").check()
    assert ask(page, "Text", "nine or four") == [str(match.id) for match in expected]
    assert page.locator("#results .distance").first.inner_text().endswith(f"score {expected[0].score:.2f}")


def test_an_empty_result_says_so(page: Any) -> None:
    page.locator("#filter").fill('label == "eleven"')
    assert ask(page, "Text", "eleven") == []
    assert "No row was found" in page.locator("#status").inner_text()
    assert not page.locator("#error").is_visible()


@pytest.mark.parametrize(
    ("kind", "query", "filter", "message"),
    [
        ("Item", "5", "", "items[0]: no row has the id 5"),
        ("Code", "xyz", "", "codes[0]: neither hexadecimal nor base64"),
        ("Text", "four", "label ==", "filter: "),
        ("Text", " ", "", "Give a text."),
    ],
)
def test_errors_are_those_of_the_api(page: Any, kind: str, query: str, filter: str, message: str) -> None:
    ask(page, "Text", "four")
    page.locator("#filter").fill(filter)
    assert ask(page, kind, query) == []
    assert page.get_by_role("alert").inner_text().startswith(message)
    assert page.locator("#status").inner_text() == ""


def test_a_service_that_fails_or_is_gone_is_told(page: Any, backend: IndexBackend, address: str) -> None:
    backend.lost = True
    try:
        assert ask(page, "Text", "four") == []
        assert page.get_by_role("alert").inner_text() == "shard 0 of 1 did not answer"
    finally:
        backend.lost = False
    page.route("**/v1/*", lambda route: route.abort())
    ask(page, "Text", "four")
    assert "cannot be reached" in page.get_by_role("alert").inner_text()
    page.unroute_all()
    assert len(ask(page, "Text", "four")) == 10
    assert not page.get_by_role("alert").is_visible()


def test_the_keyboard_alone_is_enough(page: Any) -> None:
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.value || document.activeElement.textContent"
            )
        )
    assert order == ["Skip to the results", "texts", "query", "mode", "number", "filter", "Search", "rescore"]
    outline = "getComputedStyle(document.querySelector(':focus-visible')).outlineStyle"
    page.locator("#query").focus()
    assert page.evaluate(outline) == "solid"
    page.keyboard.type("four")
    page.keyboard.press("Enter")
    assert len(results(page)) == 10
    page.locator("#results button").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results-title"
    assert len(results(page)) == 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000])
def test_narrow_and_wide_screens_hold_it_accessibly(page: Any, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page.set_viewport_size({"width": width, "height": 740})
    page.emulate_media(color_scheme=scheme)
    ask(page, "Text", "seven")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('#search').getBoundingClientRect().right") <= width
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_service_with_tokens_asks_for_one(browser: Any, backend: IndexBackend) -> None:
    access = Access(digests_of(["the-right-token-of-all"], "token"))
    with served(make_api(Responder(backend, access=access))) as url:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.goto(f"{url}/#by=texts&query=seven&k=3")
        page.get_by_role("alert").get_by_text("Give a token first.").wait_for()
        assert page.evaluate("document.activeElement.id") == "token"
        page.keyboard.type("a-wrong-token-instead")
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("The service does not know this token.").wait_for()
        page.get_by_label("Token").fill("the-right-token-of-all")
        page.get_by_role("button", name="Continue").click()
        page.locator("#results li").nth(2).wait_for()
        assert not page.locator("#access").is_visible()
        page.reload()
        page.locator("#results li").nth(2).wait_for()
        page.close()


def test_the_page_asks_for_nothing_but_itself(address: str) -> None:
    answer = httpx.get(address)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    scripts = [httpx.get(f"{address}page/{name}").text for name in ("page.js", "draw.js", "common.js")]
    assert "innerHTML" not in "".join(scripts)
    again = httpx.get(address, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(f"{address}page/../api.py").status_code == 404
