"""What a run is at, from the call to the end, and how long each part takes."""

from __future__ import annotations

CHECKS, SESSION, WORKERS, MODEL, GATE = "checks", "session", "workers", "model", "gate"
"""Before anything is written: options, input and output are checked, Spark's session starts,
workers are counted, the model's files found or fetched, and the model is tried out."""

INPUT, PREPARE, START = "input", "prepare", "start"
"""Before the first row: the input is cut into chunks and copied where needed, tokenised for ranks,
and ranks are started."""

LOAD, SCORE, PUBLISH = "load", "score", "publish"
"""Workers load the model, rows go through it, and the output is completed."""

MEASURE = "measure"
"""Settings are measured, in place of all that."""

PHRASES = {
    CHECKS: "checking options, input and output",
    SESSION: "starting Spark",
    WORKERS: "counting the workers",
    MODEL: "finding the model's files",
    GATE: "trying the model out",
    INPUT: "cutting the input into chunks",
    PREPARE: "tokenising the input",
    START: "starting the workers",
    LOAD: "loading the model",
    SCORE: "scoring the first rows",
    PUBLISH: "completing the output",
    MEASURE: "measuring settings",
}
"""What a run is at, for people."""


class Phases:
    """Seconds of each phase by name; one that is entered twice has the sum."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._current: tuple[str, float] | None = None

    def enter(self, name: str, now: float) -> None:
        """Ends the current phase and starts another."""
        self.end(now)
        self._current = (name, now)
        self._seconds.setdefault(name, 0.0)

    def end(self, now: float) -> None:
        """Ends the current phase."""
        self._seconds = self.seconds(now)
        self._current = None

    def seconds(self, now: float) -> dict[str, float]:
        """Returns the seconds of each phase so far, in the order of their start."""
        return {
            name: seconds + (self.current_s(now) if name == self.current else 0.0)
            for name, seconds in self._seconds.items()
        }

    @property
    def current(self) -> str:
        """Name of the current phase, empty if there is none."""
        return self._current[0] if self._current else ""

    def current_s(self, now: float) -> float:
        """Returns the seconds since the current phase began; 0 if there is none."""
        return now - self._current[1] if self._current else 0.0
