"""What a scorer did and where its time went; can be summed over workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class ScoringStatistics:
    """Counts and seconds of one scorer, or the sum over several.

    Attributes:
        rows: rows yielded, rows with an error included.
        rows_in_window: rows of the current window that are done, by share of tokens, but not yet
            yielded.
        errors: rows among `rows` that have an error.
        truncated: rows among `rows` whose text was truncated.
        forward_rows: sequences that went through the model; fewer than `rows` if texts repeat.
        tokens: tokens of these, padding excluded.
        padded_tokens: tokens of these, padding included.
        batches: forward passes that succeeded, or calls of a user's function.
        errored_batches: calls of a user's function that failed over a row, at least.
        out_of_memory: times the device ran out of memory and the budget was halved.
        load_s: seconds until the model was ready.
        read_s: seconds until rows came from the input, in parallel with the forward pass.
        tokenize_s: seconds spent tokenising and padding, likewise.
        wait_s: seconds in which the forward pass waited for tokens or input.
        forward_s: seconds in the forward pass, until its output was on the CPU; where two of them
            overlap, each second once.
        decode_s: seconds spent making columns of outputs, while no forward pass was under way.
        write_s: seconds spent writing files, in parallel with the forward pass.
        write_wait_s: seconds in which scored rows waited for those before them to be written.
    """

    rows: int = 0
    rows_in_window: int = 0
    errors: int = 0
    truncated: int = 0
    forward_rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    errored_batches: int = 0
    out_of_memory: int = 0
    load_s: float = 0.0
    read_s: float = 0.0
    tokenize_s: float = 0.0
    wait_s: float = 0.0
    forward_s: float = 0.0
    decode_s: float = 0.0
    write_s: float = 0.0
    write_wait_s: float = 0.0

    @property
    def padding_share(self) -> float:
        """Share of the model's tokens that are padding, 0 to 1."""
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    @property
    def bottleneck(self) -> tuple[str, float] | None:
        """The step for which the others waited, and its share of the time; None before any."""
        steps = {
            "reading": self.read_s,
            "tokenising": self.tokenize_s,
            "forward": self.forward_s,
            "decoding": self.decode_s,
            "writing": self.write_s,
        }
        elapsed_s = self.wait_s + self.forward_s + self.decode_s + self.write_wait_s
        if not elapsed_s:
            return None
        slowest = max(steps, key=lambda name: steps[name])
        return slowest, min(1.0, steps[slowest] / elapsed_s)

    def add(self, other: ScoringStatistics) -> None:
        """Adds the figures of another scorer to these."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def since(self, earlier: ScoringStatistics) -> ScoringStatistics:
        """Returns what was added to the figures since an earlier moment."""
        names = (item.name for item in fields(self))
        return ScoringStatistics(**{n: getattr(self, n) - getattr(earlier, n) for n in names})

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures by name."""
        return asdict(self)

    def state(self) -> dict[str, Any]:
        """Returns the figures that are not 0 as JSON values; seconds in whole microseconds."""
        return {name: round(value, 6) for name, value in self.as_dict().items() if value}


def read_statistics(state: Mapping[str, Any]) -> ScoringStatistics:
    """Returns the statistics of a state; figures that it lacks are 0, unknown ones are left out."""
    names = {item.name for item in fields(ScoringStatistics)}
    return ScoringStatistics(**{name: state[name] for name in names & state.keys()})
