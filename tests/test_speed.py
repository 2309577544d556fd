"""Which way of running a model is taken, where the job is long enough to measure them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.models import speed
from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.models.backends import AUTOMATIC, BACKENDS, PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.torch import PipelineRuntime
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import run_gate
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.speed import SpeedTrial
from sparkinfer.option_groups import GateConfig
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of

LONG = RowsAhead(text_bytes=10**12)


class MadeUp:
    """A backend that is the plain one by another name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def problem(self) -> None:
        return None

    def check(self, options: ModelOptions) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        return [Acceleration(self.name, dtype)]

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> PipelineRuntime:
        return PipelineRuntime(checkpoint.pipeline(checkpoint.take_module(way.dtype)))


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Tokens per second that ways are measured to have, by their backend."""
    found: dict[str, float] = {}
    for name in ("early", "late"):
        monkeypatch.setitem(BACKENDS, name, MadeUp(name))
    monkeypatch.setitem(AUTOMATIC, "cpu", ("early", "none", "late"))
    loaded: list[str] = []

    def rate(self: SpeedTrial, model: RunningModel) -> float:
        return found[loaded[-1]]

    def load(checkpoint: Checkpoint, way: Acceleration) -> RunningModel:
        loaded.append(way.backend)
        return load_way(checkpoint, way)

    monkeypatch.setattr(SpeedTrial, "_rate", rate)
    monkeypatch.setattr("sparkinfer.models.gate.load_way", load)
    return found


def accepted(folder: Path, ahead: RowsAhead, **options: Any) -> tuple[Acceleration, list[str]]:
    """Returns the way that is taken, and those that were measured."""
    asked = options_of(dtype="float32", **options)
    model, verdict = run_gate(folder, asked, WorkerSlot("cpu"), ahead)
    assert model.runtime is not None
    return verdict.accepted, [name for name, _ in verdict.speeds]


@pytest.mark.parametrize(
    ("measured", "fastest"),
    [
        ({"early": 100, "none": 90, "late": 80}, "early"),
        ({"early": 100, "none": 120, "late": 80}, "none"),
        ({"early": 100, "none": 90, "late": 150}, "late"),
        ({"early": 100, "none": 102, "late": 102.9}, "early"),  # as good as the same
    ],
)
def test_the_fastest_way_is_taken(
    classifier: Path, rates: dict[str, float], measured: dict[str, float], fastest: str
) -> None:
    rates.update(measured)
    way, names = accepted(classifier, LONG)
    assert way == Acceleration(fastest, "float32")
    assert names == [f"{name} in float32" for name in ("early", "none", "late")]


def test_a_short_job_and_an_unknown_one_take_the_preferred_way_unmeasured(
    classifier: Path, rates: dict[str, float]
) -> None:
    for ahead in (RowsAhead(text_bytes=speed.LEAST_BYTES - 1), NOTHING_KNOWN):
        assert accepted(classifier, ahead) == (Acceleration("early", "float32"), [])


def test_what_is_asked_for_by_name_is_taken_unmeasured(
    classifier: Path, rates: dict[str, float]
) -> None:
    assert accepted(classifier, LONG, acceleration="late") == (
        Acceleration("late", "float32"),
        [],
    )
    assert accepted(classifier, LONG, way=PLAIN) == (PLAIN, [])


def test_measuring_can_be_asked_for_and_forbidden(
    classifier: Path, rates: dict[str, float]
) -> None:
    rates.update({"early": 100, "none": 200, "late": 100})
    always, never = GateConfig(measure="always"), GateConfig(measure="never")
    assert accepted(classifier, NOTHING_KNOWN, gate=always)[0] == PLAIN
    assert accepted(classifier, LONG, gate=never) == (Acceleration("early", "float32"), [])


def test_only_as_many_ways_are_measured_as_the_job_has_time_for(
    classifier: Path, rates: dict[str, float]
) -> None:
    rates.update({"early": 1e9, "none": 2e9, "late": 3e9})
    # A job that takes less than a second at this rate is none to try others for.
    assert accepted(classifier, RowsAhead(text_bytes=speed.LEAST_BYTES)) == (
        Acceleration("early", "float32"),
        ["early in float32"],
    )


def test_a_wrong_way_is_not_taken_however_fast(
    classifier: Path, rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates.update({"early": 100, "none": 10, "late": 10})
    keep = PipelineRuntime.forward

    def spoiled(self: Any, *args: Any) -> Any:
        found = keep(self, *args)
        return {"logits": -found["logits"]} if self.is_early else found

    def load(self: MadeUp, checkpoint: Checkpoint, way: Acceleration) -> PipelineRuntime:
        runtime: Any = PipelineRuntime(checkpoint.pipeline(checkpoint.take_module(way.dtype)))
        runtime.is_early = self.name == "early"
        return runtime

    monkeypatch.setattr(PipelineRuntime, "is_early", False, raising=False)
    monkeypatch.setattr(PipelineRuntime, "forward", spoiled)
    monkeypatch.setattr(MadeUp, "load", load)
    way, names = accepted(classifier, LONG)
    assert way == PLAIN
    assert "early in float32" not in names


def test_what_is_measured_has_the_lengths_of_the_jobs_texts(classifier: Path) -> None:
    texts = ["x" * 3, None, "x" * 200] * 200
    rows = pa.RecordBatch.from_pydict({"text": texts, "more": ["y"] * 600})
    found = speed._lengths(options_of(), RowsAhead(first=lambda: [rows, rows]))
    assert len(found) == speed.SAMPLED_ROWS * 2 // 3 + 1
    assert set(found) == {3, 200}

    def damaged() -> list[pa.RecordBatch]:
        raise pa.ArrowInvalid("no rows here")

    assert len(speed._lengths(options_of(), RowsAhead(first=damaged))) > 100
    made = speed._texts(found)
    assert len(set(made)) == len(made)
    assert all(abs(len(text) - size) < 20 for text, size in zip(made, found, strict=True))


def test_a_rate_is_measured(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MEASURED_S", 0.01)
    options = options_of()
    trial = SpeedTrial(options, LONG)
    model = load_way(Checkpoint(classifier, options, "cpu"), PLAIN)
    assert trial.measure(model, 0.0).tokens_per_s > 0
    assert trial.measure(model, 2.0).cost_s > 2.0
