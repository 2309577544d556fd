"""`sparkinfer tune`: what is measured, what is chosen, and the file that a run takes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import sparkinfer
from sparkinfer import ScoringConfig
from sparkinfer.cli import main
from sparkinfer.exceptions import ConfigError, InputError, JobError, ModelLoadError
from sparkinfer.models.backends import AUTOMATIC, BACKENDS, PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.torch import PipelineRuntime, TorchBackend
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.tuning import bench, ceiling, sample
from sparkinfer.tuning.asked import asked_ways, splits_of
from sparkinfer.tuning.call import Tuned
from sparkinfer.tuning.found import Findings, Setting, Tried, fastest
from sparkinfer.tuning.replicas import Job, Rates, ReplicaError, score_at_once
from sparkinfer.tuning.sample import Timed
from sparkinfer.tuning.settings_file import options_of
from tests.model_options import options_of as model_options
from tests.tiny_models import WORDS

TEXTS = [*(f"{one} {two} film" for one in WORDS[:6] for two in WORDS[:6]), None, "good " * 8]

EARLY, LATE = (Acceleration(name, "float32") for name in ("early", "late"))


class MadeUp(TorchBackend):
    """A backend that is the plain one by another name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Wrong:
    """A runtime whose output has the wrong sign."""

    module = None

    def __init__(self, inner: PipelineRuntime) -> None:
        self._inner = inner

    def forward(self, *args: Any) -> Any:
        return {"logits": -self._inner.forward(*args)["logits"]}


class MadeUpRates:
    """In place of measured ones: tokens per second by backend, of a budget, of processes.

    Attributes:
        of_way: by the name of a backend.
        of_tokens: by which that is multiplied with a budget.
        of_processes: by which the best is multiplied with so many processes.
    """

    def __init__(self) -> None:
        self.of_way = {"early": 100.0, "none": 90.0, "late": 80.0}
        self.of_tokens: dict[int, float] = {}
        self.of_processes: dict[int, float] = {}
        self.loaded = ""

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> RunningModel:
        self.loaded = way.backend
        return load_way(checkpoint, way)

    def timed(
        self, model: RunningModel, options: ModelOptions, rows: pa.RecordBatch, least_s: float = 0
    ) -> Timed:
        found = sample.measured(model, options, rows, least_s=0.0)
        rate = self._rate(self.loaded, options)
        return replace(found, rows_per_s=rate / 10, tokens_per_s=rate)

    def together(self, job: Job, processes: int, within_s: float) -> Rates:
        rate = self._rate(job.way.backend, job.options) * self.of_processes.get(processes, 0.5)
        return Rates(rate / 10, rate, 1e9, 2**20 * processes)

    def _rate(self, backend: str, options: ModelOptions) -> float:
        tokens = options.batching.max_batch_tokens or 0
        return self.of_way[backend] * self.of_tokens.get(tokens, 1.0)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[MadeUpRates]:
    """Rates of two made-up backends beside the plain one, in float32, on four cores."""
    made = MadeUpRates()
    for name in ("early", "late"):
        monkeypatch.setitem(BACKENDS, name, MadeUp(name))
    monkeypatch.setitem(AUTOMATIC, "cpu", ("early", "none", "late"))
    monkeypatch.setattr("sparkinfer.models.gate.load_way", made.load)
    monkeypatch.setattr(bench, "load_way", made.load)
    monkeypatch.setattr(bench, "measured", made.timed)
    monkeypatch.setattr(bench, "score_at_once", made.together)
    monkeypatch.setattr(ceiling, "MEASURED_S", 0.0)
    monkeypatch.setattr("sparkinfer.tuning.peak.release_memory", lambda _: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    yield made
    torch.set_num_threads(threads)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path)
    return path


@pytest.fixture
def tuned(source: Path, classifier: Path) -> Callable[..., Tuned]:
    """Tunes that model on that input."""

    def call(budget_s: float = 600, **options: Any) -> Tuned:
        given = {"input": str(source), "input_col": "text", "model": str(classifier)}
        given |= {"engine": "local", "device": "cpu", "dtype": "float32"}
        return sparkinfer.tune(ScoringConfig(**{**given, **options}), budget_s)

    return call


def of_ways(findings: Findings) -> dict[str, Tried]:
    """Returns what was found of each way with the default budget in one process."""
    return {
        one.setting.way.backend: one
        for one in findings.tried
        if (one.setting.batch_tokens, one.setting.processes) == (findings.default_tokens, 1)
    }


@pytest.mark.parametrize(
    ("measured", "fastest"),
    [
        ({"early": 100, "none": 120, "late": 80}, "none"),
        ({"early": 100, "none": 90, "late": 150}, "late"),
    ],
)
def test_the_fastest_way_is_chosen_and_each_is_in_the_table(
    tuned: Callable[..., Tuned], rates: MadeUpRates, measured: dict[str, float], fastest: str
) -> None:
    rates.of_way = measured
    found = tuned()
    assert found.options == {"acceleration": fastest, "dtype": "float32"}
    assert {name: one.tokens_per_s for name, one in of_ways(found.findings).items()} == measured
    lines = str(found).splitlines()
    assert all(any(f"{name} in float32" in line for line in lines) for name in measured)
    assert [line.split()[1] for line in lines if line.startswith("*  ")] == [fastest]


def test_a_wrong_way_is_shown_as_rejected_and_never_chosen(
    tuned: Callable[..., Tuned], rates: MadeUpRates, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates.of_way["late"] = 1e9

    def load(self: MadeUp, checkpoint: Checkpoint, way: Acceleration) -> Any:
        runtime = TorchBackend.load(self, checkpoint, way)
        return Wrong(runtime) if self.name == "late" else runtime

    monkeypatch.setattr(MadeUp, "load", load)
    found = tuned()
    assert found.options["acceleration"] == "early"
    assert of_ways(found.findings)["late"].rejected.startswith("differs from float32 by")
    assert "not used: differs from float32 by" in str(found)


def test_a_way_that_is_wrong_for_the_rows_alone_is_rejected(
    tuned: Callable[..., Tuned], rates: MadeUpRates, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates.of_way["late"] = 1e9

    def timed(model: RunningModel, *args: Any, **more: Any) -> Timed:
        found = rates.timed(model, *args, **more)
        if rates.loaded != "late":
            return found
        columns = dict(zip(found.scored.schema.names, found.scored.columns, strict=True))
        flipped = pa.array([x and x[::-1] for x in columns["probabilities"].to_pylist()])
        columns["probabilities"] = flipped.cast(found.scored.schema.field("probabilities").type)
        columns["prediction"] = pa.array(["POSITIVE"] * len(flipped))
        return replace(found, scored=pa.RecordBatch.from_pydict(columns, found.scored.schema))

    monkeypatch.setattr(bench, "measured", timed)
    found = tuned()
    late = of_ways(found.findings)["late"]
    assert "on the sample" in late.rejected
    assert late.changed is not None
    assert late.changed > 0
    assert found.options["acceleration"] == "early"


def test_a_way_that_fails_on_rows_is_rejected(
    tuned: Callable[..., Tuned], rates: MadeUpRates, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates.of_way["late"] = 1e9
    plain = PipelineRuntime.forward

    def forward(self: PipelineRuntime, tensors: Any, *more: Any) -> Any:
        if rates.loaded == "late" and tensors["input_ids"].shape[1] == 10:
            raise RuntimeError("not this length")
        return plain(self, tensors, *more)

    monkeypatch.setattr(PipelineRuntime, "forward", forward)
    found = tuned()
    assert "rows that have a score in float32" in of_ways(found.findings)["late"].rejected
    assert found.options["acceleration"] == "early"


def test_a_faster_budget_and_more_processes_are_written(
    tuned: Callable[..., Tuned], rates: MadeUpRates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "LEAST_ROWS", len(TEXTS))
    monkeypatch.setattr("sparkinfer.models.scorer.DEFAULT_BATCH_TOKENS", {"cpu": 40})
    rates.of_tokens = {20: 0.9, 80: 1.5}
    rates.of_processes = {2: 1.2, 4: 1.1}
    found = tuned()
    assert found.options == {
        "acceleration": "early",
        "dtype": "float32",
        "batching": {"max_batch_tokens": 80},
        "num_workers": 2,
    }
    budgets = {(one.setting.way.backend, one.setting.batch_tokens) for one in found.findings.tried}
    assert budgets == {("none", 40), ("early", 40), ("late", 40)} | {
        (name, tokens) for name in ("early", "none") for tokens in (20, 80)
    }


def test_what_is_given_is_kept(tuned: Callable[..., Tuned], rates: MadeUpRates) -> None:
    rates.of_way["none"] = 1e9
    found = tuned(acceleration="late", num_workers=1, batching={"max_batch_tokens": 64})
    assert found.options == {"acceleration": "late", "dtype": "float32"}
    assert {one.setting.way for one in found.findings.tried} == {PLAIN, LATE}
    assert {one.setting.batch_tokens for one in found.findings.tried} == {64}
    said = " ".join(found.findings.unmeasured)
    assert "num_workers=1 is given" in said
    assert "max_batch_tokens is given" in said


def test_what_there_is_no_time_for_is_told(tuned: Callable[..., Tuned], rates: MadeUpRates) -> None:
    found = tuned(budget_s=1e-6)
    assert found.options == {"acceleration": "none", "dtype": "float32"}
    assert [one.setting.way for one in found.findings.tried] == [PLAIN]
    [late] = [one for one in found.findings.unmeasured if one.startswith("for lack of time")]
    assert "early in float32" in late
    assert "late in float32" in late


def test_what_was_not_asked_for_is_not_chosen_for_lack_of_time(
    tuned: Callable[..., Tuned], rates: MadeUpRates
) -> None:
    with pytest.raises(JobError, match="not measured: late in float32.*--budget-s"):
        tuned(budget_s=1e-6, acceleration="late")


def test_score_takes_the_file(
    source: Path,
    classifier: Path,
    rates: MadeUpRates,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = f"--input {source} --input-col text --model {classifier} --engine local --device cpu"
    file, output = tmp_path / "tuned.yaml", tmp_path / "out"
    tuned = ["tune", *job.split(), "--dtype", "float32", "--save", str(file)]
    assert main(tuned) == 0
    assert yaml.safe_load(file.read_text()) == {"acceleration": "early", "dtype": "float32"}
    assert "early in float32" in capsys.readouterr().out
    assert main(["score", *job.split(), "--config", str(file), "--output", str(output)]) == 0
    assert pads.dataset(output, format="parquet").count_rows() == len(TEXTS)
    assert main(tuned) == 2
    assert "it exists already" in capsys.readouterr().err


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf"), "soon", True, None])
def test_a_budget_that_is_no_time_is_refused(tuned: Callable[..., Tuned], budget: Any) -> None:
    with pytest.raises(ConfigError, match="budget_s=.*expected a number of seconds above 0"):
        tuned(budget_s=budget)


def test_a_budget_in_words_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "--budget-s", "soon"])
    assert ended.value.code == 2
    assert "--budget-s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output": "out"}, "output"),
        ({"carry_cols": ["text"]}, "carry_cols"),
        ({"max_error_rows": "1%"}, "max_error_rows"),
        ({"gate": {"measure": "never"}}, "gate.measure"),
        ({"models": {"a": "m"}, "model": None}, "models"),
    ],
)
def test_an_option_without_effect_is_refused(
    tuned: Callable[..., Tuned], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"{named} with tune"):
        tuned(**options)


def test_an_input_is_needed(classifier: Path) -> None:
    config = ScoringConfig(model=str(classifier), input_col="text", engine="local")
    with pytest.raises(ConfigError, match="'input' is required"):
        sparkinfer.tune(config)


@pytest.mark.parametrize(("texts", "said"), [([], "no rows"), ([None, None], "none of the first")])
def test_an_input_without_texts_is_refused(
    tuned: Callable[..., Tuned], source: Path, texts: list[None], said: str
) -> None:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), source)
    with pytest.raises(InputError, match=said):
        tuned()


def test_a_model_that_fails_is_a_clear_error(
    tuned: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: PipelineRuntime, *args: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(PipelineRuntime, "forward", forward)
    with pytest.raises(ModelLoadError, match=r"fails in plain float32.*no such kernel"):
        tuned()


def test_a_model_that_fails_on_every_row_is_a_clear_error(
    tuned: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: PipelineRuntime, *args: Any) -> Any:
        raise RuntimeError("not these")

    def affordable(*args: Any) -> Any:
        monkeypatch.setattr(PipelineRuntime, "forward", forward)  # what comes after the gate's
        return sample.affordable(*args)

    monkeypatch.setattr(bench, "affordable", affordable)
    with pytest.raises(JobError, match=r"fails on all of the first \d+ rows.*not these"):
        tuned()


def test_every_number_format_that_the_device_computes_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(AUTOMATIC, "cpu", ("none",))
    monkeypatch.setattr("sparkinfer.tuning.asked.native_dtypes", lambda _: ["bfloat16"])
    plain_only, kept = model_options(), model_options(dtype="bfloat16")
    assert asked_ways(plain_only, "cpu") == [Acceleration("none", "bfloat16"), PLAIN]
    assert asked_ways(kept, "cpu") == [Acceleration("none", "bfloat16")]


def test_cores_are_shared_out_evenly_as_by_a_plain_run_first() -> None:
    splits = splits_of(Setting(PLAIN, 64, 1, 12), 12, as_is=4)
    assert [(one.processes, one.threads) for one in splits] == [
        *((4, 3), (1, 12), (2, 6), (3, 4), (6, 2), (12, 1))
    ]


def tried(processes: int, threads: int, rate: float, rejected: str = "") -> Tried:
    return Tried(Setting(PLAIN, 64, processes, threads), rejected, rate, rate)


def test_what_is_rejected_is_not_the_fastest() -> None:
    slow, wrong = tried(1, 2, 10), tried(2, 1, 1000, "wrong")
    assert fastest([slow, wrong]) == slow
    assert fastest([wrong]) is None


def test_what_is_preferred_stays_unless_another_one_is_clearly_faster() -> None:
    preferred = tried(1, 2, 100)
    assert fastest([preferred, tried(2, 1, 102.9)]) == preferred
    assert fastest([preferred, tried(2, 1, 103.1)]) == tried(2, 1, 103.1)


@pytest.mark.parametrize(
    ("split", "as_is", "on_spark", "more"),
    [
        ((2, 2), (4, 1), True, {"spark_conf": {"spark.task.cpus": "2"}}),
        ((4, 1), (1, 4), False, {"num_workers": 4}),
        ((4, 1), (4, 1), True, {}),
        ((1, 1), (4, 1), True, {}),  # measured in one process, the others were not
    ],
)
def test_processes_are_written_as_the_engine_takes_them(
    split: tuple[int, int], as_is: tuple[int, int], on_spark: bool, more: dict[str, Any]
) -> None:
    chosen = tried(*split, 10)
    found = Findings((chosen,), chosen, as_is, 64, (), "float32", "", 1, 1.0)
    options = options_of(found, on_spark)
    assert options == {"acceleration": "none", "dtype": "float32", **more}
    ScoringConfig(model="m", input_col="text", **options)


def job_of(classifier: Path, way: Acceleration) -> Job:
    options = model_options()
    rows = pa.RecordBatch.from_pydict({"text": TEXTS[:8]})
    checkpoint = Checkpoint(classifier, options, "cpu")
    found = (checkpoint.max_length, Layout(), checkpoint.fingerprint)
    return Job(classifier, options, way, *found, threads=1, rows=rows)


def test_two_processes_score_at_the_same_time(classifier: Path) -> None:
    found = score_at_once(job_of(classifier, PLAIN), 2, within_s=300)
    assert found.rows_per_s > 0
    assert found.tokens_per_s > found.rows_per_s
    assert found.flops > 0


def test_a_process_that_fails_is_told(classifier: Path) -> None:
    with pytest.raises(ReplicaError, match="KeyError"):
        score_at_once(job_of(classifier, Acceleration("no such", "float32")), 1, within_s=300)


def test_processes_that_take_too_long_are_given_up(classifier: Path) -> None:
    with pytest.raises(ReplicaError, match="took longer"):
        score_at_once(job_of(classifier, PLAIN), 1, within_s=0.0)


def test_a_tokens_operations_are_those_of_weights_that_are_not_looked_up() -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(100, 8), torch.nn.Linear(8, 4))
    assert ceiling.flops_of_token(module) == 2 * (8 * 4 + 4)


def test_the_highest_rate_that_was_seen_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([50.0, 200.0, 100.0])
    monkeypatch.setattr(ceiling, "measured_flops", lambda *_: next(seen))
    looked = ceiling.Ceiling("cpu", flops_of_token=2)
    assert looked.share(10.0, "float32") is None
    for _ in range(3):
        looked.look("float32")
    assert looked.share(10.0, "float32") == 0.1
