"""The contract of `torch_batch_process`, with ranks that are threads; see `RanksInThreads`."""

from __future__ import annotations

import logging
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparkinfer
from sparkinfer.batch_process import commits
from sparkinfer.batch_process.reducers import FunctionReducer
from sparkinfer.engines.horovod import rank_beat, supervision
from sparkinfer.exceptions import ConfigError, JobError, OutputError, ResumeError
from sparkinfer.jobs.lease import Lease
from tests.made_up_processor import Journal, Mean, Numbers, Quiet, Recorder, handed_in
from tests.ranks_in_threads import RanksInThreads

ROWS, BATCH, RANKS = 47, 4, 3
STEPS = 4
"""Twelve batches: the last one is of three rows."""


@pytest.fixture(autouse=True)
def _ranks_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkinfer.api.processor.LocalLauncher", RanksInThreads)
    for module in (rank_beat, supervision):
        monkeypatch.setattr(module, "beat_interval_s", lambda _: 0.02)
    monkeypatch.setattr("sparkinfer.batch_process.rank._limit_threads", lambda _: None)


Call = Callable[..., sparkinfer.BatchRun]


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def call(output: str, journal: Journal) -> Call:
    def torch_batch_process(
        kind: Any = Recorder, rows: int = ROWS, **options: Any
    ) -> sparkinfer.BatchRun:
        hparams = {"journal": str(journal.folder), **options.pop("hparams", {})}
        given = {"batch_size": BATCH, "num_workers": RANKS, "checkpoint_interval": 2}
        return sparkinfer.torch_batch_process(
            kind, Numbers(rows), **{**given, "output": output, "hparams": hparams, **options}
        )

    return torch_batch_process


def test_a_rank_gets_each_nth_batch_and_counts_its_own_steps(call: Call, journal: Journal) -> None:
    run = call()
    for rank in range(RANKS):
        expected = [
            (step, [*range(first, min(first + BATCH, ROWS))])
            for step, first in enumerate(range(rank * BATCH, ROWS, RANKS * BATCH))
        ]
        assert journal.batches(rank) == expected
    assert run.finished
    assert run.steps == (STEPS,) * RANKS


def test_checkpoints_come_every_interval_and_after_the_last_step(
    call: Call, journal: Journal
) -> None:
    call(checkpoint_interval=3)
    for rank in range(RANKS):
        kinds = [event[0] for event in journal.events(rank)]
        assert kinds == ["init", *["batch"] * 3, "checkpoint", "batch", "checkpoint", "finish"]


def test_a_rank_without_a_batch_takes_part_in_what_all_do(call: Call, journal: Journal) -> None:
    run = call(rows=9)
    assert run.steps == (1, 1, 1)
    call_order = [[event[0] for event in journal.events(rank)] for rank in range(RANKS)]
    assert call_order[0] == ["init", "batch", "checkpoint", "finish"]
    assert handed_in(run.output) == list(range(9))


def test_more_ranks_than_batches(call: Call, journal: Journal, output: str) -> None:
    call(rows=5)
    assert [[one[0] for one in journal.events(rank)] for rank in range(RANKS)] == [
        ["init", "batch", "checkpoint", "finish"],
        ["init", "batch", "checkpoint", "finish"],
        ["init", "checkpoint", "finish"],
    ]
    assert handed_in(output) == list(range(5))


def test_a_dataset_without_rows_is_finished(call: Call, journal: Journal) -> None:
    run = call(Quiet, rows=0)
    assert run.finished
    assert run.steps == (0, 0, 0)


def test_the_batch_size_is_1_by_default_or_the_loaders(call: Call, journal: Journal) -> None:
    call(rows=3, batch_size=None)
    assert journal.batches(0) == [(0, [0])]
    call(rows=3, batch_size=None, dataloader_kwargs={"batch_size": 3}, output=f"{journal.folder}2")
    assert journal.batches(0)[1:] == [(0, [0, 1, 2])]


def test_the_loader_gets_its_arguments(call: Call, journal: Journal) -> None:
    def doubled(rows: list[int]) -> torch.Tensor:
        return torch.tensor(rows) * 2

    call(rows=4, dataloader_kwargs={"collate_fn": doubled, "shuffle": False})
    assert journal.batches(0) == [(0, [0, 2, 4, 6])]


def test_a_short_last_batch_is_left_out_where_asked_for(call: Call, output: str) -> None:
    call(dataloader_kwargs={"drop_last": True})
    assert handed_in(output) == list(range(ROWS // BATCH * BATCH))


def test_max_batches_limits_the_steps_of_each_rank(call: Call, output: str) -> None:
    run = call(max_batches=3)
    assert run.steps == (3, 3, 3)
    assert handed_in(output) == list(range(3 * RANKS * BATCH))


@pytest.mark.parametrize("most", [0, -2, STEPS + 1])
def test_max_batches_that_means_nothing_is_ignored_with_a_warning(call: Call, most: int) -> None:
    with pytest.warns(UserWarning, match=f"max_batches={most} is ignored: expected"):
        assert call(max_batches=most).steps == (STEPS,) * RANKS


def test_what_is_done_is_not_done_again(call: Call, journal: Journal) -> None:
    first = call()
    before = [journal.events(rank) for rank in range(RANKS)]
    assert call() == first
    assert [journal.events(rank) for rank in range(RANKS)] == before


def test_metrics_are_over_all_ranks(call: Call) -> None:
    run = call()
    [validation] = [one for one in run.metrics if one.group == "validation"]
    assert validation.steps_completed == STEPS
    assert validation.metrics == {"mean": sum(range(ROWS)) / ROWS, "count": 47, "distinct": 47}


def test_every_rank_has_the_whole_in_on_finish(call: Call, journal: Journal) -> None:
    call()
    said = {" ".join(*journal.events(rank, "finish")) for rank in range(RANKS)}
    assert said == {"finish {'mean': 23.0, 'count': 47, 'distinct': 47}"}


def test_a_failure_is_told_with_its_trace_and_the_same_call_goes_on(
    call: Call, journal: Journal, output: str
) -> None:
    at = {"batch:1:3": "fail"}
    with pytest.raises(JobError, match="rank 1 .*failed: ValueError: told to fail") as failed:
        call(kind=failing(at))
    assert "process_batch" in str(failed.value.__cause__)
    call(kind=failing(at))
    assert handed_in(output) == list(range(ROWS))
    for rank in range(RANKS):
        assert [step for step, _ in journal.batches(rank)][:2] == [0, 1]
        assert [step for step, _ in journal.batches(rank)].count(0) == 1


def test_reducers_go_on_with_what_was_committed(call: Call, journal: Journal) -> None:
    at = {"checkpoint:1:3": "fail"}
    with pytest.raises(JobError):
        call(kind=failing(at))
    run = call(kind=failing(at))
    [validation] = [one for one in run.metrics if one.group == "validation"]
    assert validation.metrics == {"mean": 23.0, "count": 47, "distinct": 47}
    assert [one.metrics["rows"] for one in run.metrics if one.group == "progress"] == [
        *[8] * 3,
        *(8, 8, 7),
    ]


def failing(at: dict[str, str]) -> type[Recorder]:
    """Returns the same processor, of the same name, to which something happens."""

    class Failing(Recorder):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            self.hparams = {**self.hparams, "at": at}

    return Failing


class DiedError(Exception):
    """The driver, for a test."""


def test_wherever_the_driver_dies_while_it_commits_files_are_published_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of the disk by the driver is its last one, once."""
    changes = ("create_exclusively", "move", "remove", "replace_text")
    real = {name: getattr(commits, name) for name in changes}
    left = [0]

    def dies_before(name: str) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise DiedError(name)
            return real[name](*args, **kwargs)

        return change

    for name in changes:
        monkeypatch.setattr(commits, name, dies_before(name))
    deaths = 0
    while True:
        place = tmp_path / str(deaths)
        place.mkdir()
        options = {
            "batch_size": 8,
            "num_workers": 2,
            "checkpoint_interval": 1,
            "output": str(place / "out"),
            "hparams": {"journal": str(place / "journal")},
        }
        left[0] = deaths + 1
        try:
            sparkinfer.torch_batch_process(Recorder, Numbers(31), **options)
        except DiedError:
            left[0] = 0
            run = sparkinfer.torch_batch_process(Recorder, Numbers(31), **options)
            assert run.finished
            assert handed_in(options["output"]) == list(range(31))
            groups = [one.group for one in run.metrics]
            assert groups.count("validation") == 1
            assert groups.count("progress") == 4
            [whole] = [one.metrics for one in run.metrics if one.group == "validation"]
            assert whole == {"mean": 15.0, "count": 31, "distinct": 31}
            deaths += 1
        else:
            break
    assert deaths > 15


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"rows": 48}, "dataset length 47, this call has 48"),
        ({"batch_size": 8}, "batch_size 4, this call has 8"),
        ({"num_workers": 2}, "num_workers 3, this call has 2"),
        ({"kind": Quiet}, "Recorder', this call has .*Quiet'"),
        ({"max_batches": 2}, "steps of each rank 4, this call has 2"),
        ({"hparams": {"more": 1}}, "hparams"),
    ],
)
def test_a_run_is_not_gone_on_with_as_another(
    call: Call, other: dict[str, Any], message: str
) -> None:
    call()
    with pytest.raises(ResumeError, match=f"{message}.*name another output"):
        call(**other)


def test_a_changed_record_is_not_gone_on_with(call: Call, output: str) -> None:
    call()
    [*_, last] = sorted(Path(output, "_sparkinfer/processor/commits").iterdir())
    last.write_text(last.read_text().replace('"steps": 4', '"steps": 3'))
    with pytest.raises(ResumeError, match="is damaged .*checksum.*restore it"):
        call()


def test_what_is_published_is_the_users(call: Call, output: str) -> None:
    """As where the chief has taken it elsewhere, and dies before `on_finish` has returned."""
    with pytest.raises(JobError):
        call(kind=failing({"batch:0:2": "fail"}))
    Path(output, "rank_1", "rows-1.txt").unlink()
    assert call(kind=failing({})).finished


def test_a_file_that_is_gone_before_it_is_published_is_told(
    call: Call, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses(source: str, target: str) -> None:
        Path(source).unlink()
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(commits, "move", loses)
        with pytest.raises(DiedError):
            call()
    with pytest.raises(JobError, match="rows-1.txt' of 19 bytes is committed and gone: restore it"):
        call()


class Uploader(Quiet):
    """Hands in files in several ways."""

    def __init__(self, context: sparkinfer.TorchBatchProcessorContext) -> None:
        self.context = context

    def process_batch(self, batch: Any, batch_idx: int) -> None:
        name = self.context.get_tensorboard_path() / "events"
        with name.open("a") as events:
            events.write(f"{batch_idx}\n")
        with self.context.upload_path() as folder:
            assert [*folder.iterdir()] == []
            (folder / "within").mkdir()
            (folder / "within" / f"{batch_idx}.txt").write_text("kept")
            (folder / "last.txt").write_text(str(batch_idx))
        with suppress(ValueError), self.context.upload_path() as folder:
            (folder / "never.txt").touch()
            raise ValueError("told to fail")

    def on_finish(self) -> None:
        with self.context.upload_path() as folder:
            (folder / "finished").touch()


def test_files_are_kept_per_rank_and_later_ones_replace_earlier_ones(
    call: Call, output: str
) -> None:
    call(Uploader)
    for rank in range(RANKS):
        folder = Path(output, f"rank_{rank}")
        names = {file.relative_to(folder).as_posix() for file in folder.rglob("*.*")}
        assert names == {"last.txt", *(f"within/{step}.txt" for step in range(STEPS))}
        assert (folder / "last.txt").read_text() == "3"
        assert (folder / "tensorboard" / "events").read_text() == "0\n1\n2\n3\n"
        assert (folder / "finished").exists()


class Reporter(Quiet):
    def __init__(self, context: sparkinfer.TorchBatchProcessorContext) -> None:
        self.context = context
        context.report_task_using_checkpoint("uuid-1")
        version = namedtuple("ModelVersion", ["name", "version"])
        context.report_task_using_model_version(version("encoder", 3))

    def on_finish(self) -> None:
        self.context.report_metrics(
            "inference", 2, {"a": np.float32(0.5), "b": torch.tensor(2), "c": [1], "d": None}
        )


def test_reports_are_kept_as_plain_values(call: Call) -> None:
    run = call(Reporter, num_workers=1)
    assert [one.metrics for one in run.metrics] == [{"a": 0.5, "b": 2, "c": [1], "d": None}]
    assert run.uses == (
        {"kind": "checkpoint", "name": "uuid-1"},
        {"kind": "model_version", "name": "encoder", "version": 3},
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a.b", 1, {}), "group='a.b', expected a name without dots"),
        (("a", -1, {}), "steps_completed=-1, expected a whole number from 0"),
        (("a", 1, [1]), "metrics=.*expected a dict by name"),
        (("a", 1, {"x": object()}), "object is no number; expected what JSON can hold"),
    ],
)
def test_reports_of_another_kind_are_refused(context: Any, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        context.report_metrics(*given)


@pytest.fixture
def context() -> sparkinfer.TorchBatchProcessorContext:
    """That of a lone rank without a checkpoint."""
    from sparkinfer.batch_process.context import TorchBatchProcessorContext
    from sparkinfer.batch_process.reducers import Reducers
    from sparkinfer.batch_process.uploads import Uploads

    uploads = Uploads("memory://bucket/out", "staging", "rank_0")
    return TorchBatchProcessorContext("cpu", 0, 1, {"a": 1}, Reducers(0, lambda: []), uploads)


def test_data_goes_to_the_device_through_what_holds_it(
    context: sparkinfer.TorchBatchProcessorContext, caplog: pytest.LogCaptureFixture
) -> None:
    pair = namedtuple("Pair", ["left", "right"])
    given = {"a": [np.arange(3), (torch.ones(2), "text")], "b": pair(np.array(["x"]), 1), "c": "t"}
    with caplog.at_level(logging.WARNING):
        moved = context.to_device(given)
    assert torch.equal(moved["a"][0], torch.tensor([0, 1, 2]))
    assert isinstance(moved["a"][1], tuple)
    assert moved["a"][1][1] == "text"
    assert isinstance(moved["b"], pair)
    assert moved["b"].right == 1
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "to_device leaves what is of type str as it is",
        "to_device leaves what is of type ndarray as it is",
        "to_device leaves what is of type int as it is",
    ]


def test_a_model_is_prepared(context: sparkinfer.TorchBatchProcessorContext) -> None:
    model = torch.nn.Dropout()
    assert context.prepare_model_for_inference(model) is model
    assert not model.training
    assert context.device == torch.device("cpu")
    assert context.get_hparams() == {"a": 1}
    assert (context.get_distributed_rank(), context.get_distributed_size()) == (0, 1)


def test_a_function_becomes_a_reducer_and_a_reducer_stays_what_it_is(
    context: sparkinfer.TorchBatchProcessorContext,
) -> None:
    mean = Mean()
    assert context.wrap_reducer(mean, "mean", for_training=False) is mean
    total = context.wrap_reducer(sum, name="total", for_validation=False)
    assert isinstance(total, FunctionReducer)
    total.update(3)
    total.update(4)
    mean.update(torch.tensor([1, 2]))
    assert context.reduce_metrics(for_training=True) == {"total": 7}
    assert context.reduce_metrics(for_training=False) == {"mean": 1.5}
    assert context.reduce_metrics() == {"mean": 1.5}


def test_reducers_that_do_not_fit_are_refused(
    context: sparkinfer.TorchBatchProcessorContext,
) -> None:
    mean = context.wrap_reducer(Mean(), name="mean")
    with pytest.raises(ConfigError, match="this Mean was wrapped before"):
        context.wrap_reducer(mean)
    with pytest.raises(ConfigError, match="expected a function or a MetricReducer"):
        context.wrap_reducer(3)
    with pytest.raises(JobError, match=r"Mean \('mean'\): cross_slot_reduce raised ZeroDivision"):
        context.reduce_metrics()


def test_a_name_stands_for_one_metric_and_none_for_several(
    context: sparkinfer.TorchBatchProcessorContext,
) -> None:
    context.wrap_reducer(len)
    with pytest.raises(JobError, match="len returned 0, expected a dict.*has no name"):
        context.reduce_metrics()


def test_a_named_reducer_returns_no_dict(context: sparkinfer.TorchBatchProcessorContext) -> None:
    context.wrap_reducer(lambda values: {}, name="many")
    with pytest.raises(JobError, match="returned a dict, expected one metric, since it has a name"):
        context.reduce_metrics()


def test_values_come_in_the_order_of_the_batches() -> None:
    reducer = FunctionReducer(list)
    assert reducer.cross_slot_reduce([[0, 3, 6], [1, 4], [2, 5]]) == list(range(7))


class Late(Quiet):
    """Wraps its reducer when the first batch comes."""

    def __init__(self, context: sparkinfer.TorchBatchProcessorContext) -> None:
        self.context = context
        self.total: Any = None

    def process_batch(self, batch: Any, batch_idx: int) -> None:
        if self.total is None:
            self.total = self.context.wrap_reducer(sum, name="total")
        self.total.update(int(batch.sum()))
        if batch_idx == 3 and Journal(self.context.get_hparams()["journal"]).once("late"):
            raise ValueError("told to fail")


def test_a_reducer_that_is_wrapped_late_goes_on_too(call: Call) -> None:
    with pytest.raises(JobError):
        call(Late, num_workers=1, batch_size=8, checkpoint_interval=1)
    run = call(Late, num_workers=1, batch_size=8, checkpoint_interval=1)
    assert [one.metrics for one in run.metrics] == [{"total": sum(range(ROWS))}]


class Unpicklable(Quiet):
    def __init__(self, context: sparkinfer.TorchBatchProcessorContext) -> None:
        self.generator = context.wrap_reducer(len, name="length")
        self.generator.update(row for row in range(3))


def test_a_reducer_whose_state_cannot_be_kept_is_told(call: Call) -> None:
    with pytest.raises(JobError, match=r"reducer len \('length'\) cannot be kept.*__getstate__"):
        call(Unpicklable, num_workers=1)


def test_another_run_on_the_same_output_is_refused(call: Call, output: str) -> None:
    lease = Lease(f"{output}/_sparkinfer/lease", beat_s=0.02)
    with lease, pytest.raises(OutputError, match="is being written by"):
        call()


def test_an_output_on_a_store(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setattr("sparkinfer.api.processor.Lease", partial(Lease, settle_s=0.01))

    fsspec.filesystem("memory").store.clear()
    run = call(output="memory://bucket/out", rows=9, num_workers=1, checkpoint_interval=5)
    assert run.finished
    names = list(fsspec.filesystem("memory").find("/bucket/out/rank_0"))
    assert names == ["/bucket/out/rank_0/rows-2.txt"]
