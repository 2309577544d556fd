"""Makes a model's inputs of rows, and tells meanwhile what is in the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from sparkinfer.models.careful import Encode, encode_noted
from sparkinfer.models.encoded import EncodedRows
from sparkinfer.models.text_sources import TextSource
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Tokenising


class RowEncoder:
    """Encodes rows with one tokenizer.

    Args:
        texts: where each of the task's texts comes from.
        encode: encodes inputs; see `encode_rows`.
        salt: tells what is noted of it from what other encoders note of the same rows.

    Attributes:
        activity: what is in the tokenizer, for the watchdog, which reads it from its own thread.
            It is set and cleared once per window: two assignments, which are atomic and need no
            lock.
    """

    def __init__(self, texts: Sequence[TextSource], encode: Encode, salt: str = "") -> None:
        self._texts = texts
        self._encode = encode
        self._salt = salt
        self._column = texts[0].made_of.columns[0]
        self.activity: Tokenising | None = None

    def encode(self, rows: pa.RecordBatch, suspects: Suspects) -> EncodedRows:
        """Returns the model inputs of rows, with a note of them; see `encode_noted`."""
        self.activity = Tokenising(rows.column(self._column))
        try:
            return encode_noted(rows, self._texts, self._encode, suspects, self._salt)
        finally:
            self.activity = None
