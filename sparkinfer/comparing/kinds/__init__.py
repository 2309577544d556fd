"""What is compared of results, by task. To add one, add a file here and a line in `KINDS`."""

from __future__ import annotations

from collections.abc import Callable

from sparkinfer.comparing.kinds.base import ResultComparison
from sparkinfer.comparing.kinds.columns import ColumnComparison
from sparkinfer.comparing.kinds.entities import EntityComparison
from sparkinfer.comparing.kinds.labels import LabelComparison, ZeroShotComparison
from sparkinfer.comparing.kinds.texts import TextComparison
from sparkinfer.comparing.kinds.vectors import VectorComparison
from sparkinfer.comparing.outputs import ScoredModel
from sparkinfer.exceptions import InputError

KINDS: dict[str, Callable[[ScoredModel, ScoredModel], ResultComparison]] = {
    "text-classification": LabelComparison,
    "zero-shot-classification": ZeroShotComparison,
    "embedding": VectorComparison,
    "token-classification": EntityComparison,
    "text-generation": TextComparison,
    "text2text-generation": TextComparison,
}
"""By the task's own name; what others give is compared column by column."""


def comparison_of(a: ScoredModel, b: ScoredModel) -> ResultComparison:
    """Returns what compares the results of two models.

    Raises:
        InputError: they are of different tasks, or have no results in common.
    """
    if a.task != b.task:
        raise InputError(
            f"{a.task} and {b.task} have different results: compare outputs of one task, or name "
            "the models with --model-a and --model-b"
        )
    return KINDS.get(a.task, ColumnComparison)(a, b)
