"""Labels with probabilities, or with numbers of a regression, which has no label."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.comparing.differences import DifferenceSums
from sparkinfer.comparing.kinds.base import Summary, Unlike, count_changes
from sparkinfer.comparing.kinds.scores import (
    LabelNumbers,
    Scores,
    label_numbers,
    largest_of_rows,
    of_label,
    scores_of,
    unlike_scores,
)
from sparkinfer.comparing.outputs import ScoredModel
from sparkinfer.exceptions import InputError

PREDICTED, WHOLE, NUMBER = "of the predicted label", "of any label", "of any number"


class LabelComparison:
    """Compares labels by name, and the probabilities of those that both models have.

    Args:
        a: the one model.
        b: the other.
    """

    columns: tuple[str, ...] = ("prediction", "probabilities")

    def __init__(self, a: ScoredModel, b: ScoredModel) -> None:
        self._labels = a.labels, b.labels
        self._numbers = LabelNumbers()
        self._of_models = [self._numbers.of_names(labels) for labels in self._labels]
        if len(a.labels) == len(b.labels) == 1:
            self._of_models[1] = self._of_models[0]  # whatever its name is, it is the one number
        self._changes: Counter[tuple[str, str]] = Counter()
        self._predicted, self._whole = DifferenceSums(), DifferenceSums()
        self._labelled = [0, 0]
        self._rows = 0

    def add(self, a: pa.Table, b: pa.Table) -> Unlike:
        """Compares rows; the difference is the largest of any label."""
        self._rows += len(a)
        for side, table in enumerate((a, b)):
            self._labelled[side] += len(table) - table["prediction"].null_count
        named = [self._numbers.of_column(table["prediction"]) for table in (a, b)]
        changed = named[0] != named[1]
        mask = pa.array(changed)
        count_changes(self._changes, a["prediction"].filter(mask), b["prediction"].filter(mask))
        unlike = unlike_scores(self._scores(0, a), self._scores(1, b))
        whole, predicted = largest_of_rows(unlike, len(a)), of_label(unlike, named[0])
        self._whole.add(whole[~np.isnan(whole)])
        self._predicted.add(predicted[~np.isnan(predicted)])
        return Unlike(changed, np.nan_to_num(whole))

    def _scores(self, side: int, rows: pa.Table) -> Scores:
        lists, names = rows["probabilities"], self._of_models[side]
        lengths = pc.unique(pc.drop_null(pc.list_value_length(lists))).to_pylist()
        if lengths not in ([], [len(names)]):
            raise InputError(
                f"rows have {lengths} probabilities, but the output's manifest names "
                f"{len(names)} labels: {', '.join(self._labels[side])}"
            )
        return scores_of(lists, label_numbers(lists, names))

    def summary(self) -> Summary:
        """Returns label changes, and how far probabilities are apart."""
        with_labels = [count > 0 for count in self._labelled]
        if with_labels[0] != with_labels[1]:
            raise InputError(
                "one model predicts labels, the other numbers without labels: they have nothing in "
                "common; compare outputs of one kind"
            )
        found = {PREDICTED: self._predicted.result(), WHOLE: self._whole.result()}
        is_regression = self._rows > 0 and not with_labels[0]
        if is_regression:
            found = {NUMBER: found[WHOLE]}
        only = [
            tuple(name for name in self._labels[one] if name not in self._labels[other])
            for one, other in ((0, 1), (1, 0))
        ]
        return Summary(
            changed=None if is_regression else sum(self._changes.values()),
            measure=f"the largest difference {NUMBER if is_regression else WHOLE}",
            changes=dict(self._changes),
            differences={name: one for name, one in found.items() if one is not None},
            only_a=only[0],
            only_b=only[1],
        )


class ZeroShotComparison(LabelComparison):
    """Does the same where each row has its labels beside their scores."""

    columns = ("prediction", "labels", "scores")

    def _scores(self, side: int, rows: pa.Table) -> Scores:
        return scores_of(rows["scores"], self._numbers.of_column(pc.list_flatten(rows["labels"])))
