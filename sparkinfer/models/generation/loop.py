"""Generates token by token, greedily or by drawing; rows that ended leave the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparkinfer.models.generation.draws import Draws
from sparkinfer.models.generation.made import LENGTH, STOP, Made, StopTexts
from sparkinfer.models.generation.settings import Settings
from sparkinfer.models.generation.steps import Steps

MOST_IDLE = 0.125
"""Share of a batch's rows that may have ended: to let rows go copies the cache of the others."""


def generate(
    steps: Steps, keys: npt.NDArray[np.int64], settings: Settings, stops: StopTexts
) -> Made:
    """Returns what a model generates for a batch.

    Args:
        steps: the batch in the model.
        keys: stand for the rows where tokens are drawn, int64 (rows,).
        settings: how it generates.
        stops: texts that end a row.
    """
    batch = _Batch(steps, keys, settings, stops)
    logits = steps.first()
    for position in range(settings.max_new_tokens):
        tokens = batch.take(logits, position)
        tokens = batch.shrink(tokens)
        if not len(batch.rows) or position + 1 == settings.max_new_tokens:
            break
        logits = steps.next(tokens)
    return batch.made


class _Batch:
    """The rows of a batch that are still in the model, some of which may have ended.

    Attributes:
        rows: their places in the whole batch, int64.
        made: what was generated for the whole batch.
    """

    def __init__(
        self, steps: Steps, keys: npt.NDArray[np.int64], settings: Settings, stops: StopTexts
    ) -> None:
        self._steps = steps
        self._keys = keys
        self._settings = settings
        self._stops = stops
        self._draws = Draws(settings) if settings.do_sample else None
        self.rows = np.arange(len(keys))
        self._is_going = np.ones(len(keys), np.bool_)
        self.made = Made([[] for _ in keys], [LENGTH] * len(keys))

    def take(self, logits: Any, position: int) -> Any:
        """Returns the next token of each row, and keeps it where the row has not ended.

        Args:
            logits: float32 (rows, vocabulary).
            position: number of the token in the generated text.
        """
        import torch

        is_finite = torch.isfinite(logits.max(dim=-1).values)
        if position < self._settings.min_new_tokens:
            known = [token for token in self._settings.ends if token < logits.shape[-1]]
            logits[:, known] = -torch.inf
        if self._draws is None:
            tokens = logits.argmax(dim=-1)
        else:
            keys = torch.from_numpy(self._keys[self.rows]).to(logits.device)
            tokens = self._draws.pick(logits, keys, position)
        chosen, usable = torch.stack([tokens, is_finite.long()]).tolist()
        for place in np.flatnonzero(self._is_going):
            self._keep(int(place), chosen[place], bool(usable[place]))
        return tokens

    def _keep(self, place: int, token: int, is_usable: bool) -> None:
        row = self.rows[place]
        tokens = self.made.tokens[row]
        if is_usable:
            tokens.append(token)
        if is_usable and token not in self._settings.ends and not self._stops.end(tokens):
            return
        self.made.reasons[row] = STOP if is_usable else None
        self._is_going[place] = False

    def shrink(self, tokens: Any) -> Any:
        """Lets rows go that have ended, if they are many; returns the tokens of the others."""
        import torch

        idle = len(self.rows) - int(self._is_going.sum())
        if idle < len(self.rows) and idle <= MOST_IDLE * len(self.rows):
            return tokens
        going = np.flatnonzero(self._is_going)
        self.rows, self._is_going = self.rows[going], self._is_going[going]
        if not len(going):
            return tokens
        kept = torch.from_numpy(going).to(tokens.device)
        self._steps.keep(kept)
        return tokens[kept]
