"""Generates with `model.generate`: beams, penalties, and whatever else a model's files ask for."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from packaging.specifiers import SpecifierSet

from sparkinfer.models.generation.draws import Draws
from sparkinfer.models.generation.made import LENGTH, STOP, Made, StopTexts
from sparkinfer.models.generation.settings import Settings

_NO_TOKEN = -1
"""Ends no row."""

_BEAMS_MIX = SpecifierSet(">=4.50,<4.57")
"""Releases of transformers whose beam search makes of a row something else in a batch than alone.

A row's search goes on as long as that of any other. Found by comparing the two: 4.49 and 4.57 make
the same, 4.50, 4.51, 4.52 and 4.53 do not.
"""


def generate(
    module: Any,
    ids: Any,
    mask: Any,
    keys: npt.NDArray[np.int64],
    settings: Settings,
    tokenizer: Any,
) -> Made:
    """Returns what `model.generate` makes of a batch.

    Args:
        module: the model.
        ids: tokens of the prompts, int64 (rows, longest), on the module's device.
        mask: 1 for each token that is no padding, as `ids`.
        keys: stand for the rows where tokens are drawn, int64 (rows,).
        settings: how it generates.
        tokenizer: of the model.
    """
    made = Made([[] for _ in keys], [None] * len(keys))
    for rows in _groups(mask, settings):
        part, shown = ids[rows], mask[rows]
        if settings.reads_tokens:
            part = part[shown > 0].reshape(len(rows), -1)
            shown = part.new_ones(part.shape)
        found = _generate(module, part, shown, keys[rows], settings, tokenizer)
        for place, row in enumerate(rows):
            made.tokens[row], made.reasons[row] = found.tokens[place], found.reasons[place]
    return made


def next_logits(module: Any, ids: Any, mask: Any, token: Any) -> Any:
    """Returns the logits that `model.generate` makes of the next token, float32 (rows, vocabulary).

    Args:
        module: see `generate`.
        ids: see `generate`.
        mask: see `generate`.
        token: that the rows have then, after which the next one counts, int64 (rows,); None: the
            first one counts.
    """
    import torch
    from transformers import LogitsProcessorList

    def given(input_ids: Any, scores: Any) -> Any:
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)

    made = module.generate(
        input_ids=ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList([] if token is None else [given]),
        max_new_tokens=1 if token is None else 2,
        eos_token_id=_NO_TOKEN,
        pad_token_id=0,
        stop_strings=None,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.logits[-1].float()


def _groups(mask: Any, settings: Settings) -> list[npt.NDArray[np.int64]]:
    """Returns the rows that may share a batch: where the prompt's tokens count, none is padded."""
    beams = settings.arguments.get("num_beams") or 1
    if beams > 1 and _BEAMS_MIX.contains(version("transformers")):
        return [np.array([row]) for row in range(len(mask))]
    if not settings.reads_tokens:
        return [np.arange(len(mask))]
    lengths = mask.sum(-1).cpu().numpy()
    return [np.flatnonzero(lengths == length) for length in np.unique(lengths)]


def _generate(
    module: Any,
    ids: Any,
    mask: Any,
    keys: npt.NDArray[np.int64],
    settings: Settings,
    tokenizer: Any,
) -> Made:
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    begins = ids.shape[1] if settings.start is None else 1
    watch = _Watch(len(ids), begins, settings, torch.from_numpy(keys).to(ids.device))
    stops = StopTexts(tokenizer, settings.stop)

    def ended(sequences: Any, scores: Any, **_: Any) -> Any:
        found = [stops.end(tokens) for tokens in sequences[:, begins:].tolist()]
        return torch.tensor(found, dtype=torch.bool, device=sequences.device)

    sequences = module.generate(
        input_ids=ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList([watch]),
        stopping_criteria=StoppingCriteriaList([ended] if settings.stop else []),
        stop_strings=None,
        pad_token_id=0,  # follows a row's end, where it is cut off
        **settings.arguments,
    )
    made = Made([], [])
    for row, tokens in enumerate(sequences[:, begins:].tolist()):
        kept, has_ended = _up_to_the_end(tokens, settings, stops)
        made.tokens.append(kept)
        reason = STOP if has_ended else LENGTH
        made.reasons.append(None if row in watch.unusable else reason)
    return made


def _up_to_the_end(
    tokens: list[int], settings: Settings, stops: StopTexts
) -> tuple[list[int], bool]:
    """Returns a row's tokens without what is behind their end, and whether they ended by it."""
    for place, token in enumerate(tokens):
        if token in settings.ends:
            # One that is forced at the most tokens is no end of the model's.
            is_forced = place + 1 == settings.max_new_tokens and settings.forces_end
            return tokens[: place + 1], not is_forced
        if stops.end(tokens[: place + 1]):
            return tokens[: place + 1], True
    return tokens, False


class _Watch:
    """Draws tokens if they are to be drawn, and looks for rows whose numbers are not finite.

    It comes after the processors of `generate`, which then takes the most probable token.

    Attributes:
        unusable: rows whose numbers are not finite.
    """

    def __init__(self, rows: int, begins: int, settings: Settings, keys: Any) -> None:
        self._rows = rows
        self._begins = begins
        self._keys = keys
        self._draws = Draws(settings) if settings.do_sample else None
        self.unusable: set[int] = set()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Returns the scores of the next token; see `LogitsProcessor` of transformers."""
        import torch

        of_each = len(scores) // self._rows  # beams
        bad = ~torch.isfinite(scores.max(dim=-1).values)
        if bad.any():
            self.unusable |= {int(row) // of_each for row in torch.nonzero(bad)}
            scores = torch.where(bad[:, None], torch.zeros_like(scores), scores)
        if self._draws is None:
            return scores
        tokens = self._draws.pick(scores, self._keys, input_ids.shape[1] - self._begins)
        drawn = torch.full_like(scores, -torch.inf)
        return drawn.scatter(1, tokens[:, None], 0.0)
