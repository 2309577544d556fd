"""Makes entities of tokens with scores, by the methods of transformers' own pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Strategy = Literal["none", "simple", "first", "average", "max"]

ENTITY = pa.struct(
    [
        pa.field("entity", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("word", pa.string()),
    ]
)


@dataclass(frozen=True)
class Window:
    """The tokens of a text, or of a part of it.

    Attributes:
        ids: of the tokens.
        offsets: the first character of each in the text and the one after its last; None if the
            tokenizer does not say.
        scores: of each label, float32 (tokens, labels).
    """

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]] | None
    scores: npt.NDArray[np.float32]


class EntityMaker:
    """Groups tokens to entities.

    Args:
        tokenizer: that made the tokens, of transformers.
        labels: of the model, in the order of their ids.
        strategy: by which they are grouped.
        ignored: labels, or groups of them, that are no entities.
    """

    def __init__(
        self, tokenizer: Any, labels: Sequence[str], strategy: Strategy, ignored: Sequence[str]
    ) -> None:
        from transformers import TokenClassificationPipeline
        from transformers.pipelines.token_classification import AggregationStrategy

        # What its methods read that follow the model; to be made as usual it takes a model.
        self._pipeline = TokenClassificationPipeline.__new__(TokenClassificationPipeline)
        self._pipeline.tokenizer = tokenizer
        self._pipeline.model = SimpleNamespace(config=SimpleNamespace(id2label=labels))
        self._pipeline.framework = "pt"  # of transformers 4
        self._strategy = AggregationStrategy(strategy)
        self._ignored = frozenset(ignored)
        self._is_plain = np.array([label in self._ignored and "-" not in label for label in labels])

    def entities(self, text: str, windows: Sequence[Window]) -> list[Mapping[str, Any]]:
        """Returns the entities of a text as the fields of `ENTITY`, in the pipeline's order.

        Source: `TokenClassificationPipeline.postprocess` of transformers.
        """
        found = [entity for window in windows for entity in self._of_window(text, window)]
        if len(windows) > 1:
            found = self._pipeline.aggregate_overlapping_entities(found)
        return [_fields(entity) for entity in found]

    def _of_window(self, text: str, window: Window) -> Iterator[dict[str, Any]]:
        with warnings.catch_warnings():
            # For each token, if the tokenizer does not say where words begin.
            warnings.filterwarnings("ignore", "Tokenizer does not support real words")
            tokens = self._pipeline.gather_pre_entities(
                text,
                window.ids,
                window.scores,
                window.offsets,
                self._without_effect(window),
                self._strategy,
            )
            grouped = self._pipeline.aggregate(tokens, self._strategy)
        return (entity for entity in grouped if _label(entity) not in self._ignored)

    def _without_effect(self, window: Window) -> npt.NDArray[np.bool_]:
        """Returns which tokens may be left out: of those between two entities all but the last.

        Where tokens make words, each may belong to one.
        """
        if self._strategy.value not in ("none", "simple"):
            return np.zeros(len(window.ids), np.bool_)
        is_ignored = self._is_plain[window.scores.argmax(axis=-1)]
        left_out: npt.NDArray[np.bool_] = is_ignored & np.append(is_ignored[1:], True)
        return left_out


def _label(entity: Mapping[str, Any]) -> Any:
    return entity["entity"] if "entity" in entity else entity["entity_group"]


def _fields(entity: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: entity[name] for name in ("score", "start", "end", "word")}
    return {"entity": _label(entity), **fields}
