"""Functions over texts, as users give them to `preprocess`."""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd
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


def in_parts(texts: Any) -> Any:
    """Upper-cases those of many letters; they come first."""
    are_long = texts.str.len() > 3
    return pd.concat([texts[are_long].str.upper(), texts[~are_long]])


def with_one_twice(texts: Any) -> Any:
    """Upper-cases them; of several, the second is lost and the first is there in its place."""
    if len(texts) == 1:
        return texts.str.upper()
    return pd.concat([texts.iloc[:1], texts.drop(1)]).str.upper()


def of_fewer(texts: Any) -> Any:
    """Returns a Series with an index of its own."""
    return pd.Series(list(texts), index=range(7, 7 + len(texts)))


def one_text(texts: Any) -> Any:
    return "a" * len(texts)


def distinct(texts: Any) -> Any:
    return set(texts)


def counted(texts: Any) -> Any:
    return dict.fromkeys(texts, 1)


def framed(texts: Any) -> Any:
    return pd.DataFrame({"text": texts})


def halved(texts: Any) -> Any:
    return [f"{text}\ud83d" for text in texts]


def leaving(texts: Any) -> Any:
    sys.exit("no more \ud83d\nof this" if "bad" in set(texts) else 0)


def of_two(texts: Any, others: Any) -> Any:
    return texts


class Shouting:
    """A function that is an object."""

    def __call__(self, texts: Any) -> Any:
        return texts.str.upper()


shouting = Shouting()
