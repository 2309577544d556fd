"""Finds out, in plain float32 if that fits, under which conditions a text's score is its own.

Which is what transformers' pipeline gives for that text alone. It may depend on the texts that
share its batch, on the padding between them, or on what the model has seen before; where it does,
rows are laid out so that it does not, and a model for which that is impossible is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from sparkinfer.exceptions import ConfigError, ModelLoadError, SparkInferError
from sparkinfer.logs import get_logger
from sparkinfer.models import probes as probing
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.frequencies import growing_frequencies
from sparkinfer.models.layout import Layout
from sparkinfer.models.lookups import positions_held, watched_lookups
from sparkinfer.models.probes import Probes
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.state import ModuleState
from sparkinfer.models.tokens import NO_LIMIT, PaddingSide, of_config
from sparkinfer.workers.devices import is_out_of_memory, release_memory

logger = get_logger(__name__)

TESTED_TOKENS = 4096
"""Greatest length of the longest probe: beyond it a trial would take longer than it is worth."""

SAME_NUMBER = 1e-6
"""Largest difference between two passes of one text that are alike in everything."""

TOLERANCES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05, "int8": 0.1}
"""Largest difference of a probability that rounding to the dtype explains.

Half-precision formats keep 11 and 8 significant bits, int8 about 7 of the largest number of a row;
a silently wrong kernel was observed to be off by 0.35. An output that is not a probability is
compared relative to its size if that exceeds 1; one of a regression, to the largest of all if that
does not.
"""


TENSOR_CORES = 8
"""Of what the sizes of products are best multiples on a GPU, in half precision.
Source: NVIDIA's guide to the performance of matrix multiplication."""


@dataclass(frozen=True)
class Examined:
    """What was found out, beside the limit and the layout, which the checkpoint now has.

    Attributes:
        probes: the texts with which it was found out.
        scored: what the reference says of them in batches of the layout.
        alone: what it says of each alone.
        unpadded: why texts of unlike length do not share a batch; empty if they may.
    """

    probes: Probes
    scored: pa.RecordBatch
    alone: pa.RecordBatch
    unpadded: str


def examine(checkpoint: Checkpoint, longest_text: int | None, way: Acceleration) -> Examined:
    """Returns what was found out, and has the checkpoint keep the limit and the layout.

    Args:
        checkpoint: the model, not yet run.
        longest_text: an upper bound of the UTF-8 bytes of the job's longest text, None if unknown.
        way: the reference, which is plain float32 if that fits in memory.

    Raises:
        ModelLoadError: the model does not load, fails in that way, or gives a text another score
            each time.
        ConfigError: `max_length` exceeds the model's limit, or the limit is too low for the task.
    """
    reference = _Reference(checkpoint, way)
    longest = _seen_tokens(checkpoint, longest_text)
    _limit(checkpoint, _positions(reference))
    tested = TESTED_TOKENS
    while True:
        tokens = min(tested, longest, checkpoint.most_tokens)
        try:
            return _examine(reference, tokens, longest)
        except _TooLongError:
            release_memory(checkpoint.device)
            tested = tokens // 2
            logger.warning("no memory to try a text of %d tokens; trying half of that", tokens)
        except _FailsError as error:
            _limit(checkpoint, _found_limit(reference, tokens, error.reason))


class _Reference:
    """The way of running a model that is examined.

    Args:
        checkpoint: the model, not yet run.
        way: how it is run.

    Attributes:
        checkpoint: as given.
        way: as given.
        as_loaded: the model's state before it has seen any text; None where it is not in this
            process.
    """

    def __init__(self, checkpoint: Checkpoint, way: Acceleration) -> None:
        self.checkpoint = checkpoint
        self.way = way
        self._runtime = self._load()
        self.as_loaded = None if self.module is None else ModuleState(self.module)

    @property
    def module(self) -> Any:
        """The module; None where it is not in this process."""
        return self._runtime.module

    @property
    def model(self) -> RunningModel:
        """The model, with the limit and the layout that the checkpoint has now."""
        return RunningModel(self.checkpoint, self._runtime)

    def follow(self, layout: Layout) -> None:
        """Has the model be run in another layout, reloaded if it has other resets."""
        if layout.resets != self.checkpoint.layout.resets:
            self.checkpoint.follow(layout)
            self._runtime = self._load()

    def _load(self) -> Any:
        try:
            return load_way(self.checkpoint, self.way).runtime
        except SparkInferError:
            raise
        except Exception as error:  # a wrapper may raise anything
            raise ModelLoadError(
                f"model {str(self.checkpoint.path)!r} cannot be run by {self.way} "
                f"({_said(error)}), with which other ways are compared; use another of dtype, "
                "parallel.tensor and parallel.offload, or more memory"
            ) from error


class _TooLongError(Exception):
    """The longest probe does not fit in memory, where a shorter one may."""


class _FailsError(Exception):
    """The model raises something."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return _said(self.reason)


def _seen_tokens(checkpoint: Checkpoint, longest_text: int | None) -> int:
    """Returns an upper bound of the tokens that the model sees of an input, if it is not cut.

    A token is at least a byte of the text, unless the tokenizer adds it or writes a character out.
    """
    if longest_text is None:
        return NO_LIMIT
    added = checkpoint.tokenizer.num_special_tokens_to_add() + 1 + checkpoint.task.added_bytes
    return int(longest_text + added) * checkpoint.num_texts + checkpoint.task.appended_tokens


def _positions(reference: _Reference) -> int:
    """Returns the tokens of the longest text for which the model has positions.

    Of one that is not in this process, those that its files claim.
    """
    model = reference.model

    def run(tokens: int) -> None:
        encoded = probing.same_token(model, tokens)
        model.try_out(model.encoder.collate(encoded, np.arange(len(encoded.n_tokens))))

    claimed = reference.checkpoint.max_length
    return claimed if reference.module is None else positions_held(run, claimed)


def _found_limit(reference: _Reference, too_long: int, failure: Exception) -> int:
    """Returns the tokens of the longest text that a model takes which failed on a longer one.

    Raises:
        ModelLoadError: it fails on short ones, too, or for another reason than a lack of positions.
    """
    checkpoint = reference.checkpoint
    fits = _longest_that_fits(reference, too_long)
    if not fits:
        raise ModelLoadError(
            f"model {str(checkpoint.path)!r} fails in plain {reference.way.dtype} "
            f"({_said(failure)}), expected scores for the gate's texts; give a model that "
            f"transformers' pipeline {checkpoint.options.task.name!r} runs"
        ) from failure
    if not isinstance(failure, IndexError):
        raise ModelLoadError(
            f"model {str(checkpoint.path)!r} fails on texts of more than {fits} tokens "
            f"({_said(failure)}), expected up to {checkpoint.most_tokens}; give "
            f"max_length={checkpoint.task.longest_input(fits)}"
        ) from failure
    logger.warning("texts are truncated at %d tokens: the model has no position beyond", fits)
    return fits


def _limit(checkpoint: Checkpoint, limit: int) -> None:
    wanted = checkpoint.options.max_length
    longest = checkpoint.task.longest_input(limit)
    if wanted is not None and wanted > longest:
        raise ConfigError(
            f"max_length={wanted}: this model takes at most {longest} tokens; lower it or leave it "
            "out"
        )
    checkpoint.max_length = wanted or longest
    checkpoint.task.check_limit(checkpoint.max_length)


def _failure(reference: _Reference, tokens: int) -> Exception | None:
    """Returns what the model raises for a text of so many tokens, unless it lacks memory."""
    try:
        with watched_lookups():
            probing.score_one(reference.model, tokens)
    except Exception as error:  # a model may raise anything
        return None if is_out_of_memory(error) else error.with_traceback(None)
    return None


def _longest_that_fits(reference: _Reference, too_long: int) -> int:
    """Returns the tokens of the longest text for which the model does not fail; 0 for none."""
    fits = min(probing.EQUAL_TOKENS, too_long - 1)
    if _failure(reference, too_long) is None or _failure(reference, fits) is not None:
        return 0
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _failure(reference, middle) is None:
            fits = middle
        else:
            too_long = middle
    return fits


def _examine(reference: _Reference, tokens: int, longest: int) -> Examined:
    checkpoint, model = reference.checkpoint, reference.model
    longest = min(longest, checkpoint.most_tokens)
    if tokens < longest:
        logger.warning("the model is tried with texts of up to %d tokens only", tokens)
    probes = probing.make_probes(model, tokens)
    is_whole, unpadded = tokens == longest, ""
    try:
        alone, changed = _score_alone(model, probes, reference.as_loaded, is_whole)
    except _FailsError as error:
        unpadded = f"the model fails on some short texts alone ({error})"
        probes = _without_failing(model, probes, error)
        alone, changed = _score_alone(model, probes, reference.as_loaded, is_whole)
    growing = growing_frequencies(reference.module, longest)
    if growing:
        unpadded = f"texts of more than {min(growing.values())} tokens change the model's positions"
    if resets := tuple(dict.fromkeys([*changed, *growing])):
        reference.follow(replace(checkpoint.layout, resets=resets))
    allowed = TOLERANCES[reference.way.dtype]
    return _lay_out(checkpoint, reference.model, probes, alone, unpadded, allowed)


def _without_failing(model: RunningModel, probes: Probes, failure: _FailsError) -> Probes:
    """Returns the probes without the short ones that the model fails on.

    In a job they are rows with an error: some models take no empty text.

    Raises:
        _FailsError: the model fails on all of them, or on none.
    """
    with watched_lookups():
        failing = probing.failing_alone(model, probes)
    if len(failing) in (0, len(probes.short)):
        raise failure
    return probing.without(probes, failing)


def _score_alone(
    model: RunningModel, probes: Probes, as_loaded: ModuleState | None, is_whole: bool
) -> tuple[pa.RecordBatch, tuple[str, ...]]:
    """Returns the scores of each probe alone, and the parts whose state changes them.

    Args:
        model: the model.
        probes: the texts, the longest one last.
        as_loaded: the model's state before it has seen any text; None where it cannot be seen.
        is_whole: whether no text of the job is longer than the longest probe.
    """
    if as_loaded is None:
        return _score(model, probes, probing.score_alone), ()
    as_loaded.put_back()
    worn = _score(model, probes, probing.score_alone)
    changed = as_loaded.changed()
    if not changed:
        return worn, ()
    alone = _score(model, probes, partial(probing.score_alone, before_each=as_loaded.put_back))
    after_the_longest = _score(model, probes, probing.score_alone)
    same = all(
        probing.difference(model, alone, other)[0] <= SAME_NUMBER
        for other in (worn, after_the_longest)
    )
    return alone, () if same and is_whole else changed


def _lay_out(
    checkpoint: Checkpoint,
    model: RunningModel,
    probes: Probes,
    alone: pa.RecordBatch,
    unpadded: str,
    allowed: float,
) -> Examined:
    """Finds the layout with the fullest batches in which each text has the score it has alone.

    Args:
        checkpoint: the model's files; it will follow the layout.
        model: the model.
        probes: the texts.
        alone: the score of each alone.
        unpadded: why texts of unlike length cannot share a batch, if that is known.
        allowed: largest difference of two scores of one text.
    """
    for layout in _layouts(checkpoint, is_padded=not unpadded):
        model = model.in_layout(layout)
        try:
            scored = _score(model, probes, probing.score_in_batches)
            problem = _problem(model, probes, alone, scored, allowed)
        except _FailsError as error:
            problem = f"a batch fails ({error})"
        if not problem:
            checkpoint.follow(layout)
            return _found(probes, (scored, alone), layout, unpadded)
        unpadded = unpadded or problem
    raise ModelLoadError(
        f"model {str(checkpoint.path)!r} gives a text another score each time ({problem}), "
        "expected the same; give a model without random parts"
    )


def _found(
    probes: Probes, scores: tuple[pa.RecordBatch, pa.RecordBatch], layout: Layout, unpadded: str
) -> Examined:
    if layout.shared == "any length":
        return Examined(probes, *scores, "")
    if layout.shared == "nothing":
        unpadded += "; nor do texts of equal length share one"
    logger.warning("texts of unlike length do not share a batch: %s", unpadded)
    return Examined(probes, *scores, unpadded)


def _layouts(checkpoint: Checkpoint, is_padded: bool) -> Iterator[Layout]:
    """Yields the layouts to try: as the files say, then with other padding, then without."""
    tokenizer, vocabulary = checkpoint.tokenizer, checkpoint.vocabulary or NO_LIMIT
    other: Mapping[str, PaddingSide] = {"left": "right", "right": "left"}
    named = (of_config(checkpoint.config, "pad_token_id"), tokenizer.pad_token_id, 0)
    pads = dict.fromkeys(pad for pad in named if isinstance(pad, int) and 0 <= pad < vocabulary)
    multiple = TENSOR_CORES if checkpoint.device.startswith("cuda") else 1
    if is_padded:
        sides = (tokenizer.padding_side, other[tokenizer.padding_side])
        for side in [only] if (only := checkpoint.task.padding_side) else sides:
            for pad in pads:
                padded = replace(checkpoint.layout, padding_side=side, pad_id=pad)
                yield replace(padded, pad_to_multiple_of=multiple)
    yield replace(checkpoint.layout, shared="equal length")
    yield replace(checkpoint.layout, shared="nothing")


def _problem(
    model: RunningModel,
    probes: Probes,
    alone: pa.RecordBatch,
    scored: pa.RecordBatch,
    allowed: float,
) -> str:
    """Returns how scores in batches differ from those of each text alone; empty if they do not."""
    expected = probing.expected_in_batches(model, probes, alone)
    largest, reason = probing.difference(model, expected, scored)
    if reason:
        return f"a batch {reason} where a text alone is"
    if not largest <= allowed:
        return f"scores in a batch differ from those of a text alone by {largest:.2g}"
    return "" if probing.same_labels(expected, scored) else "labels in a batch differ"


def _score(model: RunningModel, probes: Probes, way: Any) -> pa.RecordBatch:
    """Returns what the model says of the probes.

    Raises:
        _TooLongError: the longest one does not fit in memory.
        _FailsError: the model fails.
    """
    try:
        with watched_lookups():
            scored: pa.RecordBatch = way(model, probes)
            return scored
    except Exception as error:  # a model may raise anything
        if is_out_of_memory(error) and probes.longest_tokens > 2 * probing.EQUAL_TOKENS:
            raise _TooLongError from None
        raise _FailsError(error.with_traceback(None)) from None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
