"""A batch of rows in a model that makes one token after the other.

Rows may leave it, and take their part of the cache with them. What a model is called with is what
`model.generate` calls it with.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any


def can_step(module: Any) -> bool:
    """Returns whether a module's tokens can be made one by one as here.

    It keeps a cache of keys and values, and is called as most are: neither is so of models with a
    state, and of those that prepare their inputs in a way of their own.
    """
    from transformers import GenerationMixin

    takes = inspect.signature(module.forward).parameters
    if getattr(module, "_is_stateful", False) or not {"past_key_values", "use_cache"} <= set(takes):
        return False
    general = GenerationMixin.prepare_inputs_for_generation
    if "input_ids" not in inspect.signature(general).parameters:  # before 4.46 there is none
        return True
    return type(module).prepare_inputs_for_generation is general


def steps_of(module: Any, ids: Any, mask: Any, start: int | None) -> Steps:
    """Returns a batch in a model.

    Args:
        module: of a decoder, or of an encoder-decoder.
        ids: tokens of the prompts, int64 (rows, longest), on the module's device.
        mask: 1 for each token that is no padding, as `ids`.
        start: first token of an encoder-decoder's decoder; None: the model is a decoder.
    """
    return Decoder(module, ids, mask) if start is None else EncoderDecoder(module, ids, mask, start)


class Steps(ABC):
    """A batch of rows."""

    def __init__(self, module: Any, mask: Any) -> None:
        self._module = module
        self._mask = mask
        self._cache: Any = None
        takes = inspect.signature(module.forward).parameters
        named = (name for name in ("logits_to_keep", "num_logits_to_keep") if name in takes)
        self._last_alone = dict.fromkeys(named, 1)
        self._takes_positions = "position_ids" in takes

    @abstractmethod
    def first(self) -> Any:
        """Returns the logits of the first new token, float32 (rows, vocabulary)."""

    @abstractmethod
    def next(self, tokens: Any) -> Any:
        """Returns the logits of the next token.

        Args:
            tokens: that the rows have now, int64 (rows,).
        """

    def keep(self, rows: Any) -> None:
        """Has only some of the rows stay.

        Args:
            rows: their places, int64 (rows,).
        """
        self._mask = self._mask[rows]
        if hasattr(self._cache, "reorder_cache"):
            self._cache.reorder_cache(rows)
        else:  # tuples of tensors, in some models before transformers 4.50
            self._cache = self._module._reorder_cache(self._cache, rows)

    def _call(self, **inputs: Any) -> Any:
        outputs = self._module(
            **inputs,
            **self._last_alone,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        )
        self._cache = outputs.past_key_values
        if self._cache is None:
            raise TypeError("it keeps no keys and values, expected a decoder (is_decoder)")
        return outputs.logits[:, -1].float()


class Decoder(Steps):
    """Rows of a model that continues its prompts, which are padded on the left."""

    def __init__(self, module: Any, ids: Any, mask: Any) -> None:
        super().__init__(module, mask)
        self._ids = ids

    def first(self) -> Any:
        """Returns the first logits; see `Steps`."""
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        return self._call(
            input_ids=self._ids, attention_mask=self._mask, **self._positions(positions)
        )

    def next(self, tokens: Any) -> Any:
        """Returns the next logits; see `Steps`."""
        import torch

        self._mask = torch.cat([self._mask, torch.ones_like(tokens)[:, None]], dim=-1)
        positions = self._mask.sum(-1, keepdim=True) - 1
        return self._call(
            input_ids=tokens[:, None], attention_mask=self._mask, **self._positions(positions)
        )

    def _positions(self, positions: Any) -> dict[str, Any]:
        return {"position_ids": positions} if self._takes_positions else {}


class EncoderDecoder(Steps):
    """Rows of a model that reads its inputs at once and then writes."""

    def __init__(self, module: Any, ids: Any, mask: Any, start: int) -> None:
        super().__init__(module, mask)
        encoder = module.get_encoder()
        self._encoded = encoder(input_ids=ids, attention_mask=mask, return_dict=True)
        self._start = ids.new_full((len(ids),), start)

    def first(self) -> Any:
        """Returns the first logits; see `Steps`."""
        return self.next(self._start)

    def next(self, tokens: Any) -> Any:
        """Returns the next logits; see `Steps`."""
        return self._call(
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            decoder_input_ids=tokens[:, None],
        )

    def keep(self, rows: Any) -> None:
        """Has only some of the rows stay; see `Steps`."""
        super().keep(rows)
        hidden = self._encoded.last_hidden_state[rows]
        self._encoded = type(self._encoded)(last_hidden_state=hidden)
