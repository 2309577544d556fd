"""Functions over texts, as users give them to `preprocess`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

NOT_A_FUNCTION = "text"


def shouted(texts: Any) -> Any:
    """Upper-cases a Series; fails with any batch that holds the word `bad`."""
    if texts.str.contains("bad").any():
        raise ValueError("bad words")
    return texts.str.upper()


def reversed_in_arrow(texts: pa.Array) -> pa.Array:
    assert isinstance(texts, pa.Array)
    return pc.utf8_reverse(texts)


def one_too_few(texts: Any) -> Any:
    return list(texts)[:-1]


def none_for_short(texts: Any) -> Any:
    return [text if len(text) > 3 else None for text in texts]


def long_ones_first(texts: Any) -> Any:
    return texts[texts.str.len().sort_values(ascending=False).index].str.upper()


def framed(texts: Any) -> Any:
    return texts.to_frame("text")


def by_text(texts: Any) -> Any:
    return {text: text.upper() for text in texts}


def unordered(texts: Any) -> Any:
    return {text.upper() for text in texts}


def the_same(texts: Any) -> Any:
    return "x"
