"""One batch on the device while the one before is decoded: the rows are those of one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkinfer.exceptions import DeviceError
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.in_flight import one_in_flight
from sparkinfer.models.layout import Layout
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import NULL_TEXT, Scorer
from sparkinfer.option_groups import BatchingConfig
from sparkinfer.workers.suspects import Attempt, Known, Suspects, read_known
from sparkinfer.workers.watchdog import ForwardPass
from tests.fake_device import Events, Fails, FakeDevice, on_fake_device, on_stand_in
from tests.model_options import options_of
from tests.sentence_models import make_encoder
from tests.test_scorer import as_rows
from tests.test_statistics import Clock
from tests.tiny_models import WORDS, make_bert, make_entailer, make_tagger, sentences

OPTIONS = options_of()
LIMIT = 64


@pytest.fixture(scope="module")
def loaded(classifier: Path) -> tuple[Checkpoint, RunningModel]:
    """The classifier's files, and the model as the CPU runs it."""
    checkpoint = Checkpoint(classifier, OPTIONS, "cpu")
    return checkpoint, load_way(checkpoint, PLAIN)


@pytest.fixture
def place(
    loaded: tuple[Checkpoint, RunningModel],
) -> Iterator[Callable[..., tuple[RunningModel, FakeDevice]]]:
    """Puts the classifier on a fake device where some batches fail."""
    with ExitStack() as stack:

        def placed(fails: Fails = lambda stage, ids: None) -> tuple[RunningModel, FakeDevice]:
            model, device = on_fake_device(loaded[0], loaded[1].runtime, fails)
            return model, stack.enter_context(device)

        yield placed


def scorer_of(model: RunningModel, **batching: int) -> Scorer:
    return Scorer(model, replace(OPTIONS, batching=BatchingConfig(**batching)))


def rows_of(scorer: Scorer, texts: Sequence[str | None]) -> list[dict[str, Any]]:
    return [row for batch in scorer.process([as_rows(texts)]) for row in batch.to_pylist()]


def id_of(model: RunningModel, word: str) -> int:
    return int(model.encoder.tokenizer.convert_tokens_to_ids(word))


def in_batches_of_one(count: int) -> list[str]:
    """Returns texts, the longest first, each of which is a batch with `max_batch_rows=1`."""
    return ["good " * (40 - number) for number in range(count)]


def check_rows(
    rows: Sequence[dict[str, Any]], texts: Sequence[str | None], plain: RunningModel
) -> None:
    """Asserts that rows without an error are those of one batch at a time, in order."""
    expected = rows_of(scorer_of(plain), texts)
    assert len(rows) == len(texts)
    for row, wanted in zip(rows, expected, strict=True):
        assert row["n_tokens"] == wanted["n_tokens"]
        if row["error"] is None:
            assert row["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)


# The order of work


@given(st.lists(st.booleans(), max_size=12))
def test_each_batch_lands_once_in_order_while_at_most_the_next_one_is_in_flight(
    launches: list[bool],
) -> None:
    in_flight: list[int] = []

    def launch(number: int) -> int | None:
        assert len(in_flight) <= 1
        if not launches[number]:
            return None
        in_flight.append(number)
        return number

    def land(number: int, launched: int | None, is_followed: bool) -> int:
        if launched is None:
            assert in_flight == []
            assert not is_followed
            return number
        assert launched == in_flight.pop(0) == number
        assert is_followed == bool(in_flight)
        is_last = number == len(launches) - 1
        assert is_followed or is_last or not launches[number + 1]
        return number

    assert list(one_in_flight(range(len(launches)), launch, land)) == [*range(len(launches))]
    assert in_flight == []


def test_a_batch_is_launched_before_the_one_before_is_waited_for_and_decoded(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, device = place()
    decode = model.decode

    def noted(output: Any, tensors: Any) -> Any:
        device.log.append(("decode", tensors["input_ids"]))
        return decode(output, tensors)

    monkeypatch.setattr(model, "decode", noted)
    texts = in_batches_of_one(3)
    rows = rows_of(scorer_of(model, max_batch_rows=1), texts)
    assert [row["error"] for row in rows] == [None] * 3
    lengths = [row["n_tokens"] for row in rows]
    assert [(stage, ids.shape[1]) for stage, ids in device.log] == [
        ("launch", lengths[0]),
        ("launch", lengths[1]),
        ("fetch", lengths[0]),
        ("decode", lengths[0]),
        ("launch", lengths[2]),
        ("fetch", lengths[1]),
        ("decode", lengths[1]),
        ("fetch", lengths[2]),
        ("decode", lengths[2]),
    ]


def test_nothing_is_in_flight_between_two_windows(place: Any) -> None:
    model, device = place()
    scorer = scorer_of(model, max_batch_rows=4, window_rows=16)
    for _ in scorer.process([as_rows(sentences(64))]):
        assert device.in_flight == 0
    assert device.stages.count("launch") == scorer.statistics.batches > 8


def test_batches_are_staged_by_the_thread_that_makes_them(place: Any) -> None:
    model, device = place()
    rows_of(scorer_of(model), sentences(20))
    assert device.staging == {"sparkinfer-lookahead"}


def test_on_a_cpu_no_batch_is_launched_and_none_is_padded_further(
    loaded: tuple[Checkpoint, RunningModel],
) -> None:
    model = loaded[1]
    assert not model.overlaps
    shapes = [
        tuple(tensors["input_ids"].shape)
        for _, tensors in scorer_of(model)
        .cut(scorer_of(model).encoder.encode(as_rows(["good", "a bad film"]), Suspects()))
        .batches
    ]
    assert shapes == [(2, 5)]


def test_a_task_that_makes_tokens_does_not_overlap(
    loaded: tuple[Checkpoint, RunningModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, plain = loaded
    monkeypatch.setattr(checkpoint.task, "made_tokens", 4)
    with FakeDevice(plain.runtime) as device:
        assert not RunningModel(checkpoint, device).overlaps


def test_where_a_text_is_suspected_one_batch_runs_at_a_time(
    place: Any, loaded: tuple[Checkpoint, RunningModel]
) -> None:
    model, device = place()
    scorer = scorer_of(model, max_batch_rows=2)
    scorer.suspects.known = Known(suspected=frozenset({"x"}))
    texts = sentences(20)
    check_rows(rows_of(scorer, texts), texts, loaded[1])
    assert set(device.stages) == {"forward"}


@pytest.mark.parametrize("run_again", [False, True])
def test_what_is_noted_is_what_is_on_the_device(
    place: Any, tmp_path: Path, run_again: bool
) -> None:
    attempt = Attempt(str(tmp_path), "00000000", "a")
    follower = replace(attempt, launch="b")
    noted: list[tuple[str, int]] = []

    def look(stage: str, ids: Any) -> None:
        noted.append((stage, len(read_known(follower).suspected)))
        if run_again and stage == "fetch":
            raise RuntimeError("only in flight")

    model, _ = place(look)
    scorer = scorer_of(model, max_batch_rows=1)
    with Suspects(attempt) as scorer.suspects:
        rows = rows_of(scorer, in_batches_of_one(4))
        assert not read_known(follower).suspected
    assert [row["error"] for row in rows] == [None] * 4
    counts = {stage: [count for name, count in noted if name == stage] for stage, _ in noted}
    assert counts["launch"] == [1, 2, 2, 2]
    # The last is fetched when no other is under way, and the note of the one before still stands.
    assert counts["fetch"] == [2, 2, 2, 2]
    assert counts.get("forward") == ([2, 2, 2, 2] if run_again else None)


# What fails


class Fault:
    """Raises for some batches, and for them alone.

    Args:
        error: what is raised.
        stages: at which.
        is_meant: whether a batch of these token ids is one of them.
    """

    def __init__(
        self, error: Exception, stages: Sequence[str], is_meant: Callable[[Any], bool]
    ) -> None:
        self._error = error
        self._stages = stages
        self._is_meant = is_meant

    def __call__(self, stage: str, ids: Any) -> None:
        if stage in self._stages and self._is_meant(ids):
            raise self._error


@pytest.mark.parametrize("stage", ["launch", "fetch"])
def test_a_failing_batch_is_cut_in_two_and_no_other_is_run_again(
    place: Any, loaded: tuple[Checkpoint, RunningModel], stage: str
) -> None:
    guilty = id_of(loaded[1], "awful")
    fault = Fault(
        ValueError("cannot take this"), (stage, "forward"), lambda ids: bool((ids == guilty).any())
    )
    model, device = place(fault)
    texts = [f"good film {word} {other}" for word in WORDS[:4] for other in WORDS[12:20]]
    texts[13] = "good film the awful"
    scorer = scorer_of(model, max_batch_rows=8)
    rows = rows_of(scorer, texts)
    errors = {number: row["error"] for number, row in enumerate(rows) if row["error"]}
    assert errors == {13: "model: ValueError: cannot take this"}
    check_rows(rows, texts, loaded[1])
    # The whole batch once more, then the halves with it, and the others.
    again = [len(ids) for name, ids in device.log if name == "forward"]
    assert again == [8, 4, 4, 2, 1, 1, 2]
    assert scorer.statistics.forward_rows == len(texts) - 1
    assert device.stages.count("launch") == 4


@pytest.mark.parametrize("stage", ["launch", "fetch"])
def test_what_fails_once_is_run_again_and_lost_no_more_than_doubled(
    place: Any, loaded: tuple[Checkpoint, RunningModel], stage: str
) -> None:
    fault = Fault(RuntimeError("only now"), (stage,), lambda ids: ids.shape[1] == 40)
    model, device = place(fault)
    texts = in_batches_of_one(5)
    scorer = scorer_of(model, max_batch_rows=1)
    rows = rows_of(scorer, texts)
    assert rows[2]["n_tokens"] == 40
    assert [row["error"] for row in rows] == [None] * 5
    check_rows(rows, texts, loaded[1])
    assert scorer.statistics.batches == scorer.statistics.forward_rows == len(device.finished) == 5


@pytest.mark.parametrize("stage", ["launch", "fetch"])
def test_memory_that_runs_out_in_flight_halves_the_budget_and_loses_no_row(
    place: Any, loaded: tuple[Checkpoint, RunningModel], stage: str
) -> None:
    def is_too_much(ids: Any) -> bool:
        return bool(ids.numel() > 200)

    error = torch.cuda.OutOfMemoryError("CUDA out of memory")
    model, device = place(Fault(error, (stage, "forward"), is_too_much))
    scorer = scorer_of(model, max_batch_tokens=800, window_rows=256)
    texts = sentences(500)
    rows = rows_of(scorer, texts)
    assert [row["error"] for row in rows] == [None] * 500
    check_rows(rows, texts, loaded[1])
    assert scorer.statistics.out_of_memory in (1, 2, 3)
    assert scorer.statistics.forward_rows == sum(rows for rows, _ in device.finished)
    assert scorer.statistics.padded_tokens == sum(rows * width for rows, width in device.finished)


def test_what_could_not_be_launched_for_lack_of_memory_is_run_when_nothing_else_is(
    place: Any,
) -> None:
    error = torch.cuda.OutOfMemoryError("CUDA out of memory")
    fault = Fault(error, ("launch",), lambda ids: ids.shape[1] == 41)
    model, device = place(fault)
    rows_of(scorer_of(model, max_batch_rows=1), in_batches_of_one(3))
    assert device.stages == ["launch", "launch", "fetch", "forward", "launch", "fetch"]


@pytest.mark.parametrize("stage", ["launch", "fetch"])
def test_a_broken_device_ends_the_scoring_whichever_batch_shows_it(place: Any, stage: str) -> None:
    broken = RuntimeError("CUDA error: device-side assert triggered\nmore")
    model, device = place(Fault(broken, (stage,), lambda ids: ids.shape[1] == 41))
    with pytest.raises(DeviceError, match="device cuda:0 is broken"):
        rows_of(scorer_of(model, max_batch_rows=1), in_batches_of_one(4))
    assert "forward" not in device.stages


STAGES = st.sampled_from(["launch", "fetch"])


@st.composite
def texts_with_faults(draw: Any) -> tuple[list[str | None], dict[str, Any]]:
    """Returns texts, some with a word that fails, and where and when what fails."""
    words = st.lists(st.sampled_from([*WORDS[:6], "awful"]), min_size=1, max_size=12)
    texts = draw(st.lists(st.one_of(st.none(), words.map(" ".join)), min_size=1, max_size=40))
    return texts, {
        "guilty": draw(STAGES),
        "memory": draw(STAGES),
        "tokens": draw(st.sampled_from([24, 48, 1000])),
        "once": draw(st.sets(st.integers(0, 12))),
        "once_at": draw(STAGES),
    }


@settings(max_examples=40)
@given(texts_with_faults(), st.sampled_from([16, 64, 256]), st.sampled_from([8, 100]))
def test_every_row_comes_once_with_its_own_value_or_error_whatever_fails_in_flight(
    loaded: tuple[Checkpoint, RunningModel],
    case: tuple[list[str | None], dict[str, Any]],
    budget: int,
    window: int,
) -> None:
    texts, faults = case
    guilty = id_of(loaded[1], "awful")
    counted: list[int] = []

    def fails(stage: str, ids: Any) -> None:
        if stage == faults["once_at"]:
            counted.append(1)
            if len(counted) in faults["once"]:
                raise RuntimeError("only now")
        is_too_much = len(ids) > 1 and ids.numel() > faults["tokens"]
        if stage in (faults["memory"], "forward") and is_too_much:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        if stage in (faults["guilty"], "forward") and (ids == guilty).any():
            raise ValueError("cannot take this")

    model, device = on_fake_device(loaded[0], loaded[1].runtime, fails)
    scorer = scorer_of(model, max_batch_tokens=budget, window_rows=window)
    with device:
        rows = rows_of(scorer, texts)
    check_rows(rows, texts, loaded[1])
    for row, text in zip(rows, texts, strict=True):
        fails_alone = text is not None and "awful" in text.split()
        expected = "model: ValueError: cannot take this" if fails_alone else None
        assert row["error"] == (NULL_TEXT if text is None else expected)
    statistics = scorer.statistics
    assert statistics.rows == len(texts)
    assert statistics.batches == len(device.finished)
    assert statistics.forward_rows == sum(count for count, _ in device.finished)
    assert statistics.padded_tokens == sum(count * width for count, width in device.finished)
    for count, width in device.finished:
        assert count == 1 or (width % 8 == 0 and count * width <= budget)


# The watchdog, and where the time goes


def test_each_stage_of_a_batch_is_an_activity_of_its_own(place: Any) -> None:
    seen: list[tuple[str, Any, Any]] = []

    def look(stage: str, ids: Any) -> None:
        seen.append((stage, ids, scorer.activities()[0]))

    model, _ = place(look)
    scorer = scorer_of(model, max_batch_rows=1)
    rows_of(scorer, in_batches_of_one(3))
    assert [stage for stage, *_ in seen] == [
        *("launch", "launch", "fetch", "launch", "fetch", "fetch")
    ]
    for _, ids, activity in seen:
        assert activity == ForwardPass(1, ids.shape[1])
    assert len({id(activity) for *_, activity in seen}) == len(seen)
    assert scorer.activities()[0] is None


def test_seconds_of_overlapping_batches_are_counted_once(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for module in ("sparkinfer.models.scorer", "sparkinfer.models.window_loop"):
        monkeypatch.setattr(f"{module}.time", clock)
    takes = {"launch": 1.0, "fetch": 10.0}

    def pass_time(stage: str, ids: Any) -> None:
        clock.now += takes[stage]

    model, _ = place(pass_time)
    decode = model.decode

    def slow(output: Any, tensors: Any) -> Any:
        clock.now += 100.0
        return decode(output, tensors)

    monkeypatch.setattr(model, "decode", slow)
    scorer = scorer_of(model, max_batch_rows=1)
    rows_of(scorer, in_batches_of_one(2))
    assert clock.now == 222.0
    # While the first batch was decoded the second was under way.
    assert scorer.statistics.forward_s == 122.0
    assert scorer.statistics.decode_s == 100.0


# What a GPU's runtime does


def make_reader(folder: Path) -> Path:
    return make_bert(folder, "QuestionAnswering", seed=3)


def make_masked(folder: Path) -> Path:
    return make_bert(folder, "MaskedLM", seed=4)


TASKS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "embedding": (make_encoder, {}),
    "token-classification": (make_tagger, {"aggregation_strategy": "simple"}),
    "zero-shot-classification": (make_entailer, {"candidate_labels": ["good", "bad film"]}),
    "fill-mask": (make_masked, {}),
    "question-answering": (make_reader, {}),
}


@pytest.mark.parametrize("task", [*TASKS, "text-classification"])
def test_every_task_of_one_pass_gives_the_rows_of_one_batch_at_a_time(
    task: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, task_options = TASKS.get(task, (lambda _: classifier, {}))
    columns = ("question", "text") if task == "question-answering" else ("text",)
    options = options_of(task, columns, task_options, batching=BatchingConfig(max_batch_rows=4))
    events = Events(monkeypatch)
    plain, model = on_stand_in(make(tmp_path / "model"), options)
    assert model.overlaps
    texts = [f"{text} [MASK]" for text in sentences(30)]
    arrays = [pa.array(texts[::-1]), pa.array(texts)][-len(columns) :]
    batch = pa.RecordBatch.from_arrays(arrays, names=list(columns))
    scorer = Scorer(model, options)
    found = pa.Table.from_batches(scorer.process([batch]))
    assert found == pa.Table.from_batches(Scorer(plain, options).process([batch]))
    assert found["error"].null_count == len(texts)
    assert events.recorded == events.waited == scorer.statistics.batches > 5


def test_outputs_of_a_batch_by_itself_are_waited_for_once_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of("question-answering", ("question", "text"))
    events = Events(monkeypatch)
    _, model = on_stand_in(make_reader(tmp_path / "reader"), options)
    encoded = model.encode([["good ?"], ["a bad film"]]).encoded
    starts, ends = model.run(model.encoder.collate(encoded, np.arange(1)))
    assert (type(starts), type(ends)) == (torch.Tensor, torch.Tensor)
    assert (events.recorded, events.waited) == (1, 1)


def test_where_the_host_pins_no_memory_batches_and_outputs_stay_as_they_are(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Events(monkeypatch)
    _, model = on_stand_in(classifier, OPTIONS)
    runtime: Any = model.runtime

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    tensors = {"input_ids": torch.ones((1, 3), dtype=torch.int64)}
    assert runtime.staged(tensors)["input_ids"] is tensors["input_ids"]
    output = torch.arange(3)
    monkeypatch.setattr(torch.Tensor, "to", refuse)
    assert runtime.copied({"logits": output})()["logits"].tolist() == [0, 1, 2]


# Lengths of batches


def test_batches_on_a_gpu_are_padded_to_multiples_of_eight_that_count(place: Any) -> None:
    model, device = place()
    scorer = scorer_of(model, max_batch_tokens=128)
    rows_of(scorer, sentences(200))
    widths = {width for count, width in device.finished if count > 1}
    assert len(widths) > 2
    assert all(width % 8 == 0 for width in widths)
    assert all(count * width <= 128 for count, width in device.finished if count > 1)
    assert "forward" not in device.stages  # none was planned too large
    assert scorer.statistics.padded_tokens == sum(rows * width for rows, width in device.finished)


@pytest.mark.parametrize("shared", ["equal length", "nothing"])
def test_where_padding_changes_scores_a_gpu_pads_nothing(place: Any, shared: Any) -> None:
    model, device = place()
    scorer = scorer_of(model.in_layout(Layout(shared=shared)))  # as the gate yields it
    rows_of(scorer, sentences(60))
    assert scorer.statistics.padding_share == 0
    assert {width for _, width in device.finished} - {8, 16, 24, 32, 40}
