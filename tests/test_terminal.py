from __future__ import annotations

import pytest

from sparkinfer.terminal import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\rb\nc\td\x00", r"a\rb\nc\td\x00"),
        ("\x9b31m\x85\x7f", r"\x9b31m\x85\x7f"),
        ("abc\u202edcba\u2066\u200f", r"abc\u202edcba\u2066\u200f"),
        ("zero\u200bwidth\ufeff\u2060\u00ad", r"zero\u200bwidth\ufeff\u2060\xad"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("half\ud83d", r"half\ud83d"),
        ("joined\u200dletters\u200c", r"joined\u200dletters\u200c"),
        ("tag\U000e0041", r"tag\U000e0041"),
    ],
)
def test_what_would_act_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "café e\u0301",
        "日本語",
        "עברית",
        "हिन्दी",
        "🙂 👩‍💻 👨‍👩‍👧 👩🏽‍🚀 🏳️‍🌈 ❤️‍🔥",
        "C:\\x1b",
        "½ № —",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_lines_stay_lines() -> None:
    assert printable_lines("a\x1b\nb\u2028") == "a\\x1b\nb\\u2028"
