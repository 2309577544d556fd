"""Finds out, in plain float32, under which conditions a text's score is its own.

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

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.logs import get_logger
from sparkinfer.models import probes as probing
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
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

SAME_SCORE = 1e-4
"""Largest difference of a probability that the rounding of float32 explains."""


@dataclass(frozen=True)
class Examined:
    """What was found out, beside the limit and the layout, which the checkpoint now has.

    Attributes:
        probes: the texts with which it was found out.
        scored: what plain float32 says of them in batches of the layout.
        unpadded: why texts of unlike length do not share a batch; empty if they may.
    """

    probes: Probes
    scored: pa.RecordBatch
    unpadded: str


def examine(checkpoint: Checkpoint, longest_text: int | None) -> Examined:
    """Returns what was found out, and has the checkpoint keep the limit and the layout.

    Args:
        checkpoint: the model, not yet run.
        longest_text: an upper bound of the UTF-8 bytes of the job's longest text, None if unknown.

    Raises:
        ModelLoadError: the model does not load, fails in plain float32, or gives a text another
            score each time.
        ConfigError: `max_length` exceeds the model's limit, or the limit is too low for the task.
    """
    load_way(checkpoint, PLAIN)  # moves the module to its device
    as_loaded = ModuleState(checkpoint.module())
    longest = _seen_tokens(checkpoint, longest_text)
    _limit(checkpoint, _positions(checkpoint))
    tested = TESTED_TOKENS
    while True:
        tokens = min(tested, longest, checkpoint.most_tokens)
        try:
            return _examine(checkpoint, as_loaded, tokens, longest)
        except _TooLongError:
            release_memory(checkpoint.device)
            tested = tokens // 2
            logger.warning("no memory to try a text of %d tokens; trying half of that", tokens)
        except _FailsError as error:
            _limit(checkpoint, _found_limit(checkpoint, tokens, error.reason))


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


def _positions(checkpoint: Checkpoint) -> int:
    """Returns the tokens of the longest text for which the model has positions."""
    model = load_way(checkpoint, PLAIN)

    def run(tokens: int) -> None:
        encoded = probing.same_token(model, tokens)
        model.try_out(model.encoder.collate(encoded, np.arange(len(encoded.n_tokens))))

    return positions_held(run, checkpoint.max_length)


def _found_limit(checkpoint: Checkpoint, too_long: int, failure: Exception) -> int:
    """Returns the tokens of the longest text that a model takes which failed on a longer one.

    Raises:
        ModelLoadError: it fails on short ones, too, or for another reason than a lack of positions.
    """
    fits = _longest_that_fits(checkpoint, too_long)
    if not fits:
        raise ModelLoadError(
            f"model {str(checkpoint.path)!r} fails in plain float32 ({_said(failure)}), expected "
            f"scores for the gate's texts; give a model that transformers' pipeline "
            f"{checkpoint.options.task.name!r} runs"
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


def _failure(checkpoint: Checkpoint, tokens: int) -> Exception | None:
    """Returns what the model raises for a text of so many tokens, unless it lacks memory."""
    model = load_way(checkpoint, PLAIN)
    try:
        with watched_lookups():
            probing.score_one(model, tokens)
    except Exception as error:  # a model may raise anything
        return None if is_out_of_memory(error) else error.with_traceback(None)
    return None


def _longest_that_fits(checkpoint: Checkpoint, too_long: int) -> int:
    """Returns the tokens of the longest text for which the model does not fail; 0 for none."""
    fits = min(probing.EQUAL_TOKENS, too_long - 1)
    if _failure(checkpoint, too_long) is None or _failure(checkpoint, fits) is not None:
        return 0
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _failure(checkpoint, middle) is None:
            fits = middle
        else:
            too_long = middle
    return fits


def _examine(checkpoint: Checkpoint, as_loaded: ModuleState, tokens: int, longest: int) -> Examined:
    model = load_way(checkpoint, PLAIN)
    longest = min(longest, checkpoint.most_tokens)
    if tokens < longest:
        logger.warning("the model is tried with texts of up to %d tokens only", tokens)
    probes = probing.make_probes(model, tokens)
    is_whole, unpadded = tokens == longest, ""
    try:
        alone, changed = _score_alone(model, probes, as_loaded, is_whole)
    except _FailsError as error:
        unpadded = f"the model fails on some short texts alone ({error})"
        probes = _without_failing(model, probes, error)
        alone, changed = _score_alone(model, probes, as_loaded, is_whole)
    growing = _growing_frequencies(checkpoint.module(), longest)
    if growing:
        unpadded = f"texts of more than {min(growing.values())} tokens change the model's positions"
    if resets := tuple(dict.fromkeys([*changed, *growing])):
        checkpoint.follow(replace(checkpoint.layout, resets=resets))
        model = load_way(checkpoint, PLAIN)
    return _lay_out(checkpoint, model, probes, alone, unpadded)


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
    model: RunningModel, probes: Probes, as_loaded: ModuleState, is_whole: bool
) -> tuple[pa.RecordBatch, tuple[str, ...]]:
    """Returns the scores of each probe alone, and the parts whose state changes them.

    Args:
        model: the model.
        probes: the texts, the longest one last.
        as_loaded: the model's state before it has seen any text.
        is_whole: whether no text of the job is longer than the longest probe.
    """
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
) -> Examined:
    """Finds the layout with the fullest batches in which each text has the score it has alone.

    Args:
        checkpoint: the model's files; it will follow the layout.
        model: the model.
        probes: the texts.
        alone: the score of each alone.
        unpadded: why texts of unlike length cannot share a batch, if that is known.
    """
    for layout in _layouts(checkpoint, is_padded=not unpadded):
        model = model.in_layout(layout)
        try:
            scored = _score(model, probes, probing.score_in_batches)
            problem = _problem(model, probes, alone, scored)
        except _FailsError as error:
            problem = f"a batch fails ({error})"
        if not problem:
            checkpoint.follow(layout)
            return _found(probes, scored, layout, unpadded)
        unpadded = unpadded or problem
    raise ModelLoadError(
        f"model {str(checkpoint.path)!r} gives a text another score each time ({problem}), "
        "expected the same; give a model without random parts"
    )


def _found(probes: Probes, scored: pa.RecordBatch, layout: Layout, unpadded: str) -> Examined:
    if layout.shared == "any length":
        return Examined(probes, scored, "")
    if layout.shared == "nothing":
        unpadded += "; nor do texts of equal length share one"
    logger.warning("texts of unlike length do not share a batch: %s", unpadded)
    return Examined(probes, scored, unpadded)


def _layouts(checkpoint: Checkpoint, is_padded: bool) -> Iterator[Layout]:
    """Yields the layouts to try: as the files say, then with other padding, then without."""
    tokenizer, vocabulary = checkpoint.tokenizer, checkpoint.vocabulary or NO_LIMIT
    other: Mapping[str, PaddingSide] = {"left": "right", "right": "left"}
    named = (of_config(checkpoint.config, "pad_token_id"), tokenizer.pad_token_id, 0)
    pads = dict.fromkeys(pad for pad in named if isinstance(pad, int) and 0 <= pad < vocabulary)
    if is_padded:
        sides = (tokenizer.padding_side, other[tokenizer.padding_side])
        for side in [only] if (only := checkpoint.task.padding_side) else sides:
            for pad in pads:
                yield replace(checkpoint.layout, padding_side=side, pad_id=pad)
    yield replace(checkpoint.layout, shared="equal length")
    yield replace(checkpoint.layout, shared="nothing")


def _problem(
    model: RunningModel, probes: Probes, alone: pa.RecordBatch, scored: pa.RecordBatch
) -> str:
    """Returns how scores in batches differ from those of each text alone; empty if they do not."""
    expected = probing.expected_in_batches(model, probes, alone)
    largest, reason = probing.difference(model, expected, scored)
    if reason:
        return f"a batch {reason} where a text alone is"
    if not largest <= SAME_SCORE:
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


def _growing_frequencies(module: Any, longest: int) -> dict[str, int]:
    """Returns the rotary parts that take other frequencies for texts of up to this length.

    By name, with the tokens beyond which they do; whatever shares a batch with such a text is
    turned likewise. Source: `dynamic_rope_update` in `modeling_rope_utils` of transformers.
    """
    found = {}
    for name, part in module.named_modules():
        kinds = getattr(part, "rope_type", None)
        kinds = list(kinds.values()) if isinstance(kinds, Mapping) else [kinds]
        if any(kind == "longrope" or "dynamic" in str(kind) for kind in kinds):
            ordinary = _ordinary_length(part)
            if ordinary < longest:
                found[name] = ordinary
    return found


def _ordinary_length(part: Any) -> int:
    """Returns the tokens up to which a rotary part keeps its frequencies; 0 if it does not say."""
    config = part.config
    named = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_layer = [item for item in named.values() if isinstance(item, Mapping)]
    key = "original_max_position_embeddings"
    lengths = [item[key] for item in (named, *by_layer) if item.get(key)]
    whole = getattr(config, key, None) or getattr(part, "original_max_seq_len", None)
    return int(min(lengths, default=whole or 0))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
