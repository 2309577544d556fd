"""Draws tokens so that a row's are its own: by a hash of seed, prompt and position.

No generator has a state, so neither the rows that share a batch nor those before it matter. Equal
prompts get equal texts.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sparkinfer.models.generation.settings import Settings

_STEP, _FIRST, _SECOND = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd constants of 64 bits, as int64. Source: SplitMix64 (Steele, Lea, Flood, 2014)."""


def keys_of(prompts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Returns a number that represents each prompt, made of its tokens, int64 (rows,)."""
    digests = [
        hashlib.blake2b(prompt.astype("<i8").tobytes(), digest_size=8).digest()
        for prompt in prompts
    ]
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


class Draws:
    """Draws the next token of each row of a batch.

    Args:
        settings: temperature, top_k, top_p and the seed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def pick(self, logits: Any, keys: Any, position: int) -> Any:
        """Returns a token for each row, int64 (rows,).

        Gumbel's way: the largest sum of a log-probability and noise is drawn with its probability;
        only where two sums are almost equal does rounding decide.

        Args:
            logits: float32 (rows, vocabulary).
            keys: stand for the rows, int64 (rows,).
            position: number of the token in the generated text.
        """
        import torch

        for warper in self._warpers:
            logits = warper(None, logits)
        rows, tokens = torch.nonzero(logits > -torch.inf, as_tuple=True)
        seed, place = (torch.full_like(keys, n) for n in (self._settings.seed, position))
        of_rows = _mixed(_mixed(keys ^ _mixed(seed)) + place * _STEP)
        noise = _gumbel(_mixed(of_rows[rows] + (tokens + 1) * _STEP))
        sums = torch.full(logits.shape, -torch.inf, dtype=torch.float64, device=logits.device)
        sums[rows, tokens] = logits[rows, tokens].double() + noise
        return sums.argmax(dim=-1)

    @cached_property
    def _warpers(self) -> list[Any]:
        """What transformers applies before it samples, in its order."""
        from transformers.generation import logits_process as by

        wanted = self._settings
        found: list[Any] = []
        if wanted.temperature != 1.0:
            found.append(by.TemperatureLogitsWarper(wanted.temperature))
        if wanted.top_k:
            found.append(by.TopKLogitsWarper(wanted.top_k))
        if wanted.top_p < 1.0:
            found.append(by.TopPLogitsWarper(wanted.top_p))
        return found


def _mixed(state: Any) -> Any:
    """Returns numbers that look unlike each other however alike they were, int64 tensors."""
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Any, bits: int) -> Any:
    """Returns numbers shifted to the right as if they had no sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _gumbel(bits: Any) -> Any:
    """Returns noise of the standard Gumbel distribution, float64, of evenly distributed bits."""
    uniform = (_shifted(bits, 12).double() + 0.5) * 2.0**-52
    return -(-uniform.log()).log()
