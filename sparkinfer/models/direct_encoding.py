"""Token ids from a tokenizer written in Rust, without the Python lists of everything else.

Of each text transformers makes a list for every column, which takes several times as long as to
tokenise and holds the interpreter's lock, so that a GPU waits for what would launch its next batch.
Here the tokenizer in Rust is called directly, as transformers has set it up, and only token ids are
read. A tokenizer is used so if its class changes nothing about that, and if both ways give the same
for some texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

IDS, KINDS, MASK = "input_ids", "token_type_ids", "attention_mask"

_METHODS = (
    *("__call__", "_call_one", "batch_encode_plus", "_batch_encode_plus", "_encode_plus"),
    *("_convert_encoding", "set_truncation_and_padding", "backend_tokenizer"),
)
"""By which transformers calls the tokenizer in Rust, in one version or another."""

_PROBES = ("", "text", "A few words, 1,234 of them: naïve 京都 😀!", "word " * 40)

Call = Callable[[Sequence[Sequence[str]]], Any]


class DirectEncoding:
    """Calls the tokenizer in Rust that a tokenizer of transformers holds.

    Args:
        tokenizer: what holds it.
        call: calls `tokenizer` on one column of texts, or two, with all options.
        adds_special_tokens: as among these options.
    """

    def __init__(self, tokenizer: Any, call: Call, adds_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._call = call
        self._adds_special_tokens = adds_special_tokens
        self._are_kinds_zero = False

    def is_equal(self, columns: int, names: Sequence[str]) -> bool:
        """Returns whether it gives for some texts what the tokenizer gives.

        Args:
            columns: texts of a sequence, one or two.
            names: see `values`.
        """
        if not set(names) <= {IDS, KINDS, MASK}:
            return False
        given = [_PROBES, _PROBES[::-1]][:columns]
        try:
            whole = self._call(given)
            expected = {name: flat(whole[name]) for name in names}
            # A text alone has the same kind of token everywhere, whatever it says.
            self._are_kinds_zero = columns == 1 and not expected.get(KINDS, np.zeros(1)).any()
            found = self.values(self.encodings(given), names)
        except Exception:  # of whatever a tokenizer does not take, it is not asked here
            return False
        return all(np.array_equal(found[name], expected[name]) for name in names)

    def encodings(self, columns: Sequence[Sequence[str]]) -> list[Any]:
        """Returns what the tokenizer in Rust makes of texts, given as one column or two."""
        # Sets what is cut, padded and taken for a special token; a text of theirs may be a book.
        self._call([["text"]] * len(columns))
        texts: Any = list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))
        made: list[Any] = self._tokenizer.backend_tokenizer.encode_batch(
            texts, add_special_tokens=self._adds_special_tokens
        )
        return made

    def values(
        self, encodings: Sequence[Any], names: Sequence[str]
    ) -> Mapping[str, npt.NDArray[np.int32]]:
        """Returns what is asked for per token, each int32 (tokens,).

        Args:
            encodings: of the texts.
            names: any of `input_ids`, `token_type_ids` and `attention_mask`.
        """
        found = {IDS: flat(encoding.ids for encoding in encodings)}
        if MASK in names:  # nothing is padded here
            found[MASK] = np.ones(len(found[IDS]), np.int32)
        if KINDS in names:
            zeros = np.zeros(len(found[IDS]), np.int32)
            found[KINDS] = zeros if self._are_kinds_zero else flat(e.type_ids for e in encodings)
        return {name: found[name] for name in names}


def is_called_directly(tokenizer: Any) -> bool:
    """Returns whether transformers' own code stands between a tokenizer and the one in Rust."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    own = type(tokenizer)
    return all(
        name not in vars(tokenizer)
        and getattr(own, name, None) is getattr(PreTrainedTokenizerFast, name, None)
        for name in _METHODS
    )


def flat(lists: Iterable[Iterable[int]]) -> npt.NDArray[np.int32]:
    """Returns the numbers of several lists, one list after the other."""
    return np.fromiter(chain.from_iterable(lists), np.int32)
