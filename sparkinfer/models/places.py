"""Where each token is in its text, in windows if a text is long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from sparkinfer.models.direct_encoding import flat
from sparkinfer.models.encoded import Inputs
from sparkinfer.models.tokens import Asked, Encoder

IN_TEXT, START, END = "in_text", "start", "end"
"""Columns per token: 1 for one of the text, 0 for one that the tokenizer adds; its first character
and the one after its last, counted as Python does, -1 where the tokenizer does not say."""


def encode_with_places(encoder: Encoder, texts: Sequence[str], stride: int | None) -> Inputs:
    """Returns the token ids of texts, with the columns `IN_TEXT`, `START` and `END`.

    Args:
        encoder: the model's tokenizer.
        texts: each an input.
        stride: tokens of a long text that one window shares with the next; each window is a
            sequence of the input. None: what is too long is cut off.
    """
    options: dict[str, Any] = {
        "truncation": True,
        "return_special_tokens_mask": True,
        "return_offsets_mapping": encoder.tokenizer.is_fast,
    }
    if stride is not None:
        options |= {"stride": stride, "return_overflowing_tokens": True}
    columns = (*encoder.input_names, IN_TEXT, START, END)
    return encoder.inputs([texts], Asked(options, columns, _places))


def _places(batch: Any) -> Mapping[str, npt.NDArray[np.int32]]:
    in_text = 1 - flat(batch["special_tokens_mask"])
    if "offset_mapping" not in batch:  # tokenizers written in Python know none
        nowhere = np.full(len(in_text), -1, np.int32)
        return {IN_TEXT: in_text, START: nowhere, END: nowhere}
    places = flat(chain.from_iterable(batch["offset_mapping"])).reshape(-1, 2)
    return {IN_TEXT: in_text, START: places[:, 0].copy(), END: places[:, 1].copy()}
