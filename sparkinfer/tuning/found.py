"""What was tried, and what was found of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.speed import MARGIN


@dataclass(frozen=True)
class Setting:
    """How rows may be scored.

    Attributes:
        way: of running the model.
        batch_tokens: most tokens of a batch, padding included.
        processes: replicas that score at the same time on one host.
        threads: of each.
    """

    way: Acceleration
    batch_tokens: int
    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.way}, {self.batch_tokens} tokens, {self.split}"

    @property
    def split(self) -> str:
        """How the host's cores are shared out."""
        return f"{self.processes} x {self.threads} threads"


@dataclass(frozen=True)
class Tried:
    """What was found of one setting.

    Attributes:
        setting: which.
        rejected: why it may not score rows; empty if it may.
        rows_per_s: of all its processes together, tokenising excluded.
        tokens_per_s: the same in tokens, padding excluded.
        of_ceiling: share of the measured rate of matrix products that the model's make up; None:
            not known.
        difference: largest difference of the task's numbers from the reference; None: not known.
        changed: share of the sample's rows with another label, or another error.
        memory_bytes: that the model and its batches take, in all processes; None: not known.
    """

    setting: Setting
    rejected: str = ""
    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0
    of_ceiling: float | None = None
    difference: float | None = None
    changed: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Findings:
    """All that one worker has found; picklable.

    Attributes:
        tried: in the order in which it was.
        chosen: the fastest that may score rows.
        as_is: how a run shares out the cores if nothing says otherwise.
        default_tokens: most tokens of a batch if nothing says otherwise.
        unmeasured: what was not measured, and why.
        reference: what others were compared with.
        device_model: what it ran on.
        rows: of the sample.
        row_tokens: of a row of it, in the mean.
    """

    tried: tuple[Tried, ...]
    chosen: Tried
    as_is: tuple[int, int]
    default_tokens: int
    unmeasured: tuple[str, ...]
    reference: str
    device_model: str
    rows: int
    row_tokens: float

    @property
    def is_split_otherwise(self) -> bool:
        """Whether sharing out the cores in another way than a plain run was measured as faster."""
        setting = self.chosen.setting
        split = (setting.processes, setting.threads)
        is_of_host = setting.processes * setting.threads == math.prod(self.as_is)
        return is_of_host and split != self.as_is


def fastest(tried: Sequence[Tried]) -> Tried | None:
    """Returns the fastest of those that are not rejected, None if all are.

    Args:
        tried: the preferred one first: it stays unless another one is clearly faster.
    """
    best: Tried | None = None
    for one in tried:
        if not one.rejected and (best is None or one.tokens_per_s > best.tokens_per_s * MARGIN):
            best = one
    return best
