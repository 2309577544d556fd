"""The texts on which the gate tries a model, and what the model says of them.

They are of several lengths, with more than one text of a length, some of them hold the token that
pads as a word of the text, and one is as long as the job's longest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from sparkinfer.batching.planner import IntArray, plan_batches
from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.encoded import Encoded, joined
from sparkinfer.models.running import RunningModel

PROBE_TEXTS = (
    "good",
    "",
    "A dull, endless film.",
    "I would buy it again without thinking twice, and so would my sister.",
    "Not bad at all - for 3.99 € it does what it says; the box was torn, though.",
    "Die Bedienung war freundlich, aber das Essen kam kalt. 很好吃!",
    "The first half drags, the second half rushes, and between the two nobody seems to have asked "
    "what the story was meant to be about; still, the music is lovely.",
    "word " * 60,
)
"""Texts of very different lengths."""

EQUAL_TOKENS = 8
"""Tokens to which the longer of them are cut as well, so that several are of one length."""


@dataclass(frozen=True)
class Probes:
    """Tokenised texts.

    Attributes:
        encoded: their sequences.
        short: the sequences of ordinary length, int64 (sequences,).
        longest: the sequence that is as long as the job's longest.
    """

    encoded: Encoded
    short: IntArray
    longest: int

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest."""
        return int(self.encoded.n_tokens[self.longest])

    @property
    def all(self) -> IntArray:
        """Every sequence, the longest last."""
        return np.append(self.short, self.longest)


def make_probes(model: RunningModel, longest: int) -> Probes:
    """Returns the probe texts as this model's sequences.

    A text that the tokenizer refuses, or with a token that the model does not have, is left out: in
    a job it is a row with an error. A task with several columns gets the texts in each, rotated by
    one per column.

    Args:
        model: whose tokenizer and task are used.
        longest: tokens of the longest probe; the others are cut there, too.

    Raises:
        ModelLoadError: the model can score none of the texts.
    """
    pad = model.encoder.tokenizer.pad_token
    padding = [f"{pad} good", f"A dull film {pad}", f"{pad} {pad}"] if pad else []
    parts = [
        _encode(model, [*PROBE_TEXTS, *padding], longest),
        _only_of_length(EQUAL_TOKENS, _encode(model, PROBE_TEXTS, min(EQUAL_TOKENS, longest))),
        _encode(model, [_long_text(longest)], longest),
    ]
    encoded = joined(parts[0].columns, parts)
    usable = encoded.n_tokens > 0
    if model.vocabulary is not None:
        usable[list(encoded.beyond(model.vocabulary))] = False
    kept = np.flatnonzero(usable)
    if not len(kept):
        raise ModelLoadError(
            "the tokenizer makes no token that the model knows of any text; give the tokenizer "
            "with which the model was trained"
        )
    # A task may cut a text into several sequences: the longest is the longest of them.
    last = int(kept[np.argmax(encoded.n_tokens[kept])])
    return Probes(encoded, kept[kept != last], last)


def without(probes: Probes, failing: Iterable[int]) -> Probes:
    """Returns the probes without some of the short ones."""
    return replace(probes, short=np.setdiff1d(probes.short, list(failing)))


def batches_of(model: RunningModel, probes: Probes) -> list[IntArray]:
    """Returns the probes in batches as the model's layout has them.

    Where lengths may mix, all short ones are one batch, and the longest one goes with a short one.
    """
    everything = probes.all
    if model.layout.shared == "nothing":
        return _alone(everything)
    if model.layout.shared == "any length" and len(probes.short):
        return [probes.short, np.array([probes.longest, probes.short[0]])]
    lengths = probes.encoded.n_tokens[everything]
    planned = plan_batches(lengths, max_tokens=2**40, max_rows=len(everything), mixes_lengths=False)
    return [everything[batch] for batch in planned]


def score_alone(
    model: RunningModel, probes: Probes, before_each: Callable[[], None] = lambda: None
) -> pa.RecordBatch:
    """Returns the task's columns for every probe, each scored by itself, the longest at last."""
    return _score(model, probes, _alone(probes.all), before_each)


def failing_alone(model: RunningModel, probes: Probes) -> list[int]:
    """Returns the short probes for which the model raises."""
    failing = []
    for row in probes.short:
        try:
            _score(model, probes, _alone([row]))
        except Exception:  # a model may raise anything
            failing.append(int(row))
    return failing


def score_in_batches(model: RunningModel, probes: Probes) -> pa.RecordBatch:
    """Returns the task's columns for every probe, in batches; a probe in two of them twice."""
    return _score(model, probes, batches_of(model, probes))


def expected_in_batches(
    model: RunningModel, probes: Probes, alone: pa.RecordBatch
) -> pa.RecordBatch:
    """Returns what `score_in_batches` should return, made of what each probe gives alone."""
    rows = np.sort(np.concatenate(batches_of(model, probes)))
    return alone.take(pa.array(np.searchsorted(np.sort(probes.all), rows)))


def _score(
    model: RunningModel,
    probes: Probes,
    batches: Sequence[IntArray],
    before_each: Callable[[], None] = lambda: None,
) -> pa.RecordBatch:
    """Returns the scored rows of batches in the order of the sequences."""
    scored = []
    for batch in batches:
        before_each()
        scored.append(model.try_out(model.encoder.collate(probes.encoded, batch)))
    order = pa.array(np.argsort(np.concatenate(batches), kind="stable"))
    return pa.Table.from_batches(scored).take(order).combine_chunks().to_batches()[0]


def _alone(rows: Iterable[int]) -> list[IntArray]:
    return [np.array([row], np.int64) for row in rows]


def _encode(model: RunningModel, texts: Sequence[str], max_length: int) -> Encoded:
    """Returns one sequence for each text, though a task may make several of it."""
    columns = [[*texts[turn:], *texts[:turn]] for turn in range(len(model.texts))]
    most = model.encoder.max_length + model.task.appended_tokens
    encoder = model.encoder.cutting_at(min(max_length, most))
    inputs = model.task.encode_probes(encoder, columns)
    usable = np.setdiff1d(inputs.starts, list(inputs.encoded.errors))
    return _only(usable, inputs.encoded)


def _only_of_length(tokens: int, encoded: Encoded) -> Encoded:
    """Returns the sequences of exactly so many tokens."""
    return _only(np.flatnonzero(encoded.n_tokens == tokens), encoded)


def _only(rows: IntArray, encoded: Encoded) -> Encoded:
    """Returns some sequences, which have no errors."""
    taken = encoded.values_of(rows)
    columns = {name: values[taken] for name, values in encoded.columns.items()}
    return Encoded(columns, encoded.n_tokens[rows], encoded.truncated[rows])


def _long_text(tokens: int) -> str:
    """Returns a text of at least so many words, unlike one another."""
    words = " ".join(PROBE_TEXTS[2:7]).split()
    return " ".join(words * (tokens // len(words) + 1))


def score_one(model: RunningModel, tokens: int) -> pa.RecordBatch:
    """Returns the task's columns for one text of so many tokens."""
    encoded = _encode(model, [_long_text(tokens)], tokens)
    return model.try_out(model.encoder.collate(encoded, np.arange(len(encoded.n_tokens))))


def same_token(model: RunningModel, tokens: int) -> Encoded:
    """Returns one sequence of so many tokens, of one word over and over."""
    return _encode(model, ["word " * tokens], tokens)


def difference(
    model: RunningModel, expected: pa.RecordBatch, found: pa.RecordBatch
) -> tuple[float, str]:
    """Returns the largest difference of the task's numbers, and what keeps them from comparison."""
    largest = model.task.difference(expected, found)
    return largest, "gives an output that is not finite" if math.isnan(largest) else ""


def same_labels(expected: pa.RecordBatch, found: pa.RecordBatch) -> bool:
    """Returns whether all that is no number with a fraction, such as labels, is the same."""
    return all(
        found.column(name).equals(expected.column(name))
        for name in expected.schema.names
        if not _holds_fractions(expected.schema.field(name).type)
    )


def _holds_fractions(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(pa.types.is_floating(kind.value_type if is_list else kind))
