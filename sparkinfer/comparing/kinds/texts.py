"""Texts that a model has generated."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.comparing.differences import DifferenceSums
from sparkinfer.comparing.kinds.base import Flags, Summary, Unlike, codes_of_both, count_changes
from sparkinfer.comparing.outputs import ScoredModel

TOKENS, REASONS = "generated tokens", "rows with another finish_reason"


class TextComparison:
    """Compares generated texts, character by character.

    Args:
        a: the one model.
        b: the other.
    """

    columns = ("generated_text", "n_generated_tokens", "finish_reason")

    def __init__(self, a: ScoredModel, b: ScoredModel) -> None:
        self._changed = 0
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._tokens = DifferenceSums()

    def add(self, a: pa.Table, b: pa.Table) -> Unlike:
        """Compares rows; the difference is the share of a text from where they part."""
        changed = _unlike(a, b, "generated_text")
        self._changed += int(np.count_nonzero(changed))
        ended = pa.array(_unlike(a, b, "finish_reason"))
        count_changes(
            self._reasons, a["finish_reason"].filter(ended), b["finish_reason"].filter(ended)
        )
        made = [pc.fill_null(t["n_generated_tokens"], 0).to_numpy().astype(float) for t in (a, b)]
        self._tokens.add(np.abs(made[0] - made[1]))
        differences, mask = np.zeros(len(a)), pa.array(changed)
        texts = (table["generated_text"].filter(mask).to_pylist() for table in (a, b))
        differences[changed] = [
            parted(one or "", other or "") for one, other in zip(*texts, strict=True)
        ]
        return Unlike(changed, differences)

    def summary(self) -> Summary:
        """Returns how many texts are the same."""
        tokens = self._tokens.result()
        return Summary(
            changed=self._changed,
            measure="the share of the longer text from where they part",
            differences={TOKENS: tokens} if tokens else {},
            counts={REASONS: sum(self._reasons.values())},
        )


def parted(one: str, other: str) -> float:
    """Returns the share of the longer text that follows the first character that differs."""
    shorter, longer = sorted((len(one), len(other)))
    pairs = enumerate(zip(one, other, strict=False))
    same = next((place for place, (x, y) in pairs if x != y), shorter)
    return 1 - same / longer if longer else 0.0


def _unlike(a: pa.Table, b: pa.Table, name: str) -> Flags:
    one, other = codes_of_both([(a[name], b[name])])
    return np.asarray(one != other)
