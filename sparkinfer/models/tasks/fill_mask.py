"""Fills in masked tokens: for each mask of a text the most likely tokens, with their probabilities.

The numbers are those of transformers' pipeline, alone and with `targets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.encoded import Inputs
from sparkinfer.models.tasks.base import (
    ModelFiles,
    ModelTask,
    Runtime,
    Task,
    Tensors,
    float_lists,
    without_rows,
)
from sparkinfer.models.tokens import Encoder
from sparkinfer.validation import Options, at_least

PREDICTION = pa.struct(
    [
        ("score", pa.float32()),
        ("token", pa.int32()),
        ("token_str", pa.string()),
        ("sequence", pa.string()),
    ]
)


@dataclass(frozen=True, init=False)
class FillMaskOptions(Options):
    """What is asked of a model for each mask."""

    top_k: int = field(default=5, metadata=at_least(1))
    """Most likely tokens that are returned for each mask."""
    targets: tuple[str, ...] | None = None
    """Words among which the model chooses, each one token of its vocabulary; None: all tokens."""


class FillMask(Task):
    """Masked language models.

    `predictions` holds a list for each mask of the text, in order: one list for the usual text with
    one mask. Each has the most likely tokens, the likeliest first, and the text with that token in
    place of the mask. Where a text has several masks, each is filled in alone; the others stay.
    """

    name = "fill-mask"
    pipeline = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    heads = ("ForMaskedLM", "ForPreTraining", "WithLMHeadModel")
    options_class = FillMaskOptions

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """For each mask the most likely tokens."""
        return (pa.field("predictions", pa.list_(pa.list_(PREDICTION))),)

    def of_model(self, files: ModelFiles) -> ModelTask:
        """Returns the task with the model's mask; see `Task`."""
        if files.tokenizer.mask_token_id is None:
            raise ModelLoadError(
                f"model {str(files.path)!r} has no mask token, which task='fill-mask' looks for in "
                "the texts; give a masked language model with its own tokenizer"
            )
        targets = None
        if self.options.targets is not None:
            targets = target_ids(files.tokenizer, self.options.targets)
        self._check_top_k(files.config)
        return _ModelTask(self, files.tokenizer, targets)

    def _check_top_k(self, model_config: Any) -> None:
        tokens = getattr(model_config, "vocab_size", None)
        if tokens is not None and self.options.top_k > tokens:
            raise ConfigError(
                f"task.top_k={self.options.top_k}: the model has {tokens} tokens; ask for fewer"
            )


class _ModelTask(ModelTask):
    def __init__(self, task: Task, tokenizer: Any, targets: npt.NDArray[np.int64] | None) -> None:
        super().__init__(task)
        self._tokenizer = tokenizer
        self._targets = targets
        self._top_k = (
            task.options.top_k if targets is None else min(len(targets), task.options.top_k)
        )

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        encoded = encoder.encode(columns[0])
        are_masks = encoded.columns["input_ids"] == self._tokenizer.mask_token_id
        ends = np.concatenate([[0], np.cumsum(are_masks)])
        masks = ends[encoded.starts + encoded.n_tokens] - ends[encoded.starts]
        for row in np.flatnonzero(masks == 0).tolist():
            encoded.errors.setdefault(row, self._without_mask(bool(encoded.truncated[row])))
        return Inputs.of_one_sequence_each(encoded)

    def encode_probes(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        return Inputs.of_one_sequence_each(encoder.encode(*columns))  # with or without a mask

    def _without_mask(self, is_truncated: bool) -> str:
        mask = self._tokenizer.mask_token
        left = " in what is left of it after truncation" if is_truncated else ""
        return f"fill-mask: the text has no {mask}{left}"

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        import torch

        def most_likely(outputs: Any, placed: Tensors) -> dict[str, Any]:
            likely = _probabilities(outputs, self._are_masks(placed))
            if self._targets is not None:
                likely = likely[:, torch.from_numpy(self._targets).to(likely.device)]
            scores, tokens = likely.topk(self._top_k)
            return {"scores": scores, "tokens": tokens}

        return runtime.forward(tensors, most_likely)

    def decode(self, output: Any, tensors: Tensors) -> pa.RecordBatch:
        ids = tensors["input_ids"].numpy()
        are_masks = self._are_masks(tensors).numpy()
        counts = are_masks.sum(axis=1)
        scores, tokens = output["scores"].numpy(), output["tokens"].numpy()
        if self._targets is not None:
            tokens = self._targets[tokens]
        sequences = [
            text
            for (row, place), of_mask in zip(np.argwhere(are_masks), tokens, strict=True)
            for text in self._filled(ids[row], place, of_mask, counts[row] == 1)
        ]
        names = [self._tokenizer.decode([token]) for token in tokens.ravel().tolist()]
        columns = [scores.ravel(), tokens.ravel(), names, sequences]
        typed = [pa.array(one, kind.type) for one, kind in zip(columns, PREDICTION, strict=True)]
        found = pa.StructArray.from_arrays(typed, fields=list(PREDICTION))
        per_mask = pa.ListArray.from_arrays(_offsets([self._top_k] * len(scores)), found)
        per_row = pa.ListArray.from_arrays(_offsets(counts), per_mask)
        decoded = pa.RecordBatch.from_arrays([per_row], schema=self.schema)
        is_finite = np.isfinite(scores).all(axis=1)
        unusable = np.isin(np.arange(len(ids)), np.argwhere(are_masks)[~is_finite, 0])
        return without_rows(decoded, unusable)

    def _filled(self, ids: Any, place: int, tokens: Sequence[int], is_only_mask: bool) -> list[str]:
        """Returns the text with each of some tokens in place of the mask.

        Other masks would vanish with the special tokens. Source: `FillMaskPipeline.postprocess`.
        """
        texts = []
        for token in tokens:
            filled = ids.copy()
            filled[place] = token
            filled = filled[filled != self._tokenizer.pad_token_id]
            texts.append(self._tokenizer.decode(filled, skip_special_tokens=is_only_mask))
        return texts

    def _are_masks(self, tensors: Tensors) -> Any:
        """Returns which tokens are masks, bool (sequences, longest)."""
        return tensors["input_ids"] == self._tokenizer.mask_token_id

    def try_out(self, runtime: Runtime, tensors: Tensors) -> pa.RecordBatch:
        """Returns the probabilities of all tokens in the middle of each sequence, masked there."""
        middle = _middles(tensors)
        masked = tensors["input_ids"].masked_fill(middle, self._tokenizer.mask_token_id)

        def everything(outputs: Any, placed: Tensors) -> dict[str, Any]:
            return {"scores": _probabilities(outputs, middle.to(outputs["logits"].device))}

        found = runtime.forward({**tensors, "input_ids": masked}, everything)["scores"].numpy()
        scored = pa.RecordBatch.from_arrays([float_lists(found)], names=["scores"])
        return without_rows(scored, ~np.isfinite(found).all(axis=1))


def target_ids(tokenizer: Any, targets: Sequence[str]) -> npt.NDArray[np.int64]:
    """Returns the tokens of some words, sorted, each once, int64 (targets,).

    Source: `FillMaskPipeline.get_target_ids`, which takes the first token of a word of several.

    Raises:
        ConfigError: there are none, or one is not exactly one token.
    """
    vocabulary = tokenizer.get_vocab()
    found = set()
    for target in targets:
        if target in vocabulary:
            found.add(vocabulary[target])
            continue
        ids = tokenizer(target, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            tokens = tokenizer.convert_ids_to_tokens(ids)
            raise ConfigError(
                f"task.targets with {target!r}: expected words that are one token of the model, "
                f"but this is {tokens}; leave it out, or give one of its tokens"
            )
        found.add(ids[0])
    if not found:
        raise ConfigError("task.targets=[]: expected at least one word; leave it out for all")
    return np.array(sorted(found), np.int64)


def _probabilities(outputs: Any, places: Any) -> Any:
    """Returns the probabilities of all tokens at some places, float32 (places, tokens)."""
    return outputs["logits"][places].float().softmax(dim=-1)


def _middles(tensors: Tensors) -> Any:
    """Returns the middle token of each sequence, bool (sequences, longest)."""
    import torch

    ids = tensors["input_ids"]
    real = tensors.get("attention_mask", torch.ones_like(ids))
    place = real.cumsum(dim=1)
    middle = (real.sum(dim=1, keepdim=True) + 1) // 2
    return (place == middle) & (real > 0)


def _offsets(counts: Sequence[int] | npt.NDArray[Any]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
