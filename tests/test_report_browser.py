"""The page as a browser shows it, where there is one; the other tests read its markup."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

import sparkinfer
from sparkinfer.report.page import page_of
from tests.made_up_facts import CASES
from tests.test_report_page import HOSTILE, hostile_facts

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in PROGRAMS if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

REPORTS = ("finished", "unfinished", "several", "large", "unrecorded")
SHOWN = (*REPORTS, "comparison")

LEAST_CONTRAST = """
(() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.e-]*\\d/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [r * scale, g * scale, b * scale, a];
  };
  const part = (one) => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) =>
    0.2126 * part(r / 255) + 0.7152 * part(g / 255) + 0.0722 * part(b / 255);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const [r, g, b, a] = parse(getComputedStyle(one).backgroundColor);
      if (a > 0.99) return [r, g, b];
    }
    return [255, 255, 255];
  };
  let worst = [21, ""];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !one.getClientRects().length) continue;
    const style = getComputedStyle(one);
    const ink = parse(one.closest("svg") ? style.fill : style.color);
    const pair = [light(ink), light(behind(one))].sort();
    const contrast = (pair[1] + 0.05) / (pair[0] + 0.05);
    if (contrast < worst[0]) worst = [contrast, one.outerHTML.slice(0, 200)];
  }
  return worst;
})()
"""
"""The least contrast of a text with what is behind it, by WCAG 2, and where."""


class Look:
    """A page as it was opened.

    Attributes:
        page: the page.
        told: what it asked for beside itself, and what the browser complained of.
    """

    def __init__(self, browser: Browser, url: str, width: int, dark: bool) -> None:
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900},
            is_mobile=width < 600,
            color_scheme="dark" if dark else "light",
        )
        self.told: list[str] = []
        self.page.on("request", lambda one: self.told.append(one.url))
        self.page.on("console", lambda one: self.told.append(one.text))
        self.page.on("pageerror", lambda one: self.told.append(str(one)))
        self.page.goto(url)
        self.told = [one for one in self.told if one != url and not one.startswith("data:")]


class Looks:
    """Opens pages, and closes each when the next is opened."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    def __call__(self, url: str, width: int, dark: bool = False) -> Look:
        for context in self._browser.contexts:
            context.close()
        return Look(self._browser, url, width, dark)


@pytest.fixture(scope="module")
def look() -> Iterator[Looks]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Looks(browser)
        browser.close()


@pytest.fixture(scope="module")
def files(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The address of each page: reports, and a comparison of two runs."""
    folder = tmp_path_factory.mktemp("pages")
    for name in REPORTS:
        (folder / f"{name}.html").write_text(page_of(CASES[name]), encoding="utf-8")
    pq.write_table(pa.table({"text": ["superb", "dull and long"] * 5}), folder / "in.parquet")
    for length in (4, 16):
        config = sparkinfer.ScoringConfig(
            model=str(classifier),
            input=str(folder / "in.parquet"),
            input_col="text",
            output=str(folder / f"out-{length}"),
            max_length=length,
            engine="local",
            report=False,
        )
        sparkinfer.run(config)
    outputs = [str(folder / name) for name in ("out-4", "out-16")]
    sparkinfer.compare(*outputs, to=str(folder / "comparison.html"))
    return {name: (folder / f"{name}.html").as_uri() for name in SHOWN}


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_fits_and_is_readable(
    look: Looks, files: dict[str, str], name: str, width: int, dark: bool
) -> None:
    seen = look(files[name], width, dark)
    assert seen.told == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    contrast, where = seen.page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, where


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_has_no_fault_that_axe_finds(
    look: Looks, files: dict[str, str], name: str, dark: bool
) -> None:
    found = Axe().run(look(files[name], 1280, dark).page).response
    assert [one["help"] for one in found["violations"]] == []
    assert len(found["passes"]) > 10


def test_light_and_dark_are_two(look: Looks, files: dict[str, str]) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = look(files["finished"], 1280).page.evaluate(colour)
    assert look(files["finished"], 1280, dark=True).page.evaluate(colour) != light


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_the_data_runs(look: Looks, tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(hostile_facts(text)), encoding="utf-8")
    seen = look(path.as_uri(), 360)
    assert seen.told == []
    assert seen.page.evaluate("document.scripts.length + document.images.length") == 0
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_focus_is_seen_on_whatever_takes_it(look: Looks, files: dict[str, str]) -> None:
    page = look(files["finished"], 1280).page
    passed = 0
    while passed < 200:
        page.keyboard.press("Tab")
        style, width, tag = page.evaluate(
            "(() => { const one = document.activeElement, style = getComputedStyle(one);"
            "return [style.outlineStyle, parseFloat(style.outlineWidth), one.tagName]; })()"
        )
        if tag == "BODY":
            break
        passed += 1
        assert style == "solid"
        assert width >= 2
    assert 20 < passed < 200
