"""The page as a browser shows it, where there is one; the other tests read its markup."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.report.page import page_of
from tests.browser import Browser, find_browser
from tests.made_up_facts import CASES
from tests.test_report_page import HOSTILE, hostile_facts

BROWSER = find_browser()

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")

SHOWN = ("finished", "unfinished", "several", "large", "unrecorded")

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(BROWSER or "", tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name in SHOWN:
        path = folder / f"{name}.html"
        path.write_text(page_of(CASES[name]), encoding="utf-8")
        found[name] = path.as_uri()
    return found


def told(browser: Browser) -> list[Any]:
    """Returns what the page asked for beside itself, and what the browser complained of."""
    asked = [
        one["params"]["request"]["url"]
        for one in browser.events
        if one.get("method") == "Network.requestWillBeSent"
    ]
    complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    complained = [one for one in browser.events if one.get("method") in complaints]
    return [url for url in asked[1:] if not url.startswith("data:")] + complained


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_fits_and_is_readable(
    browser: Browser, files: dict[str, str], name: str, width: int, dark: bool
) -> None:
    browser.open(files[name], width, dark)
    assert told(browser) == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    contrast, where = browser.value(LEAST_CONTRAST)
    assert contrast >= 4.5, where


def test_light_and_dark_are_two(browser: Browser, files: dict[str, str]) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    browser.open(files["finished"], 1280)
    light = browser.value(colour)
    browser.open(files["finished"], 1280, dark=True)
    assert browser.value(colour) != light


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_the_data_runs(browser: Browser, tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(hostile_facts(text)), encoding="utf-8")
    browser.open(path.as_uri(), 360)
    assert told(browser) == []
    assert browser.value("document.scripts.length + document.images.length") == 0
    assert browser.value("document.documentElement.scrollWidth") <= 360


def test_focus_is_seen_on_whatever_takes_it(browser: Browser, files: dict[str, str]) -> None:
    browser.open(files["finished"], 1280)
    passed = 0
    while passed < 200:
        for kind in ("keyDown", "keyUp"):
            browser.call(
                "Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9
            )
        style, width, tag = browser.value(
            "(() => { const one = document.activeElement, style = getComputedStyle(one);"
            "return [style.outlineStyle, parseFloat(style.outlineWidth), one.tagName]; })()"
        )
        if tag == "BODY":
            break
        passed += 1
        assert style == "solid"
        assert width >= 2
    assert 20 < passed < 200
