from __future__ import annotations

import pytest

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import MOST_CHARACTERS, shortened, shown


def test_a_long_message_keeps_its_start_and_its_end_and_tells_its_length() -> None:
    text = "start " + "x" * 40_000 + "; do this"
    short = shortened(text)
    assert len(short) == MOST_CHARACTERS
    assert short.startswith("start ")
    assert short.endswith("; do this")
    assert "of 40,015 characters" in short
    assert shortened(short) == short


def test_an_error_is_short_and_without_secrets_whoever_raises_it() -> None:
    error = ConfigError("model='https://u:p@host/x' " + "x" * 5_000)
    assert len(str(error)) == MOST_CHARACTERS
    assert "https://***@host/x" in str(error) == error.message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("short", "'short'"),
        ("x" * 300, f"'{'x' * 200}'... (300 characters)"),
        (7, "7"),
        pytest.param(1 << 20_000, "an integer of 20,001 bits", id="large"),
        ([1] * 20, "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ...]"),
        ([[[[[[1]]]]]], "[[[[[...]]]]]"),
    ],
)
def test_a_large_value_is_shown_in_part(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_value_that_holds_the_same_many_times_is_shown_at_once() -> None:
    value: object = "x"
    for _ in range(40):
        value = [value] * 9
    assert len(shown(value)) < 100_000
