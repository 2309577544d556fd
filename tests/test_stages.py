"""Functions over streams of rows: batches, failures, several one after the other."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.functions.pipeline import OpenFunctions
from sparkinfer.functions.stages import FailedRows, FunctionStage, Item
from sparkinfer.functions.user_function import Arguments, UserFunction
from sparkinfer.workers.devices import as_visible
from sparkinfer.workers.slot import WorkerSlot
from tests import made_up_functions as functions


def rows(first: int, last: int, bad: tuple[int, ...] = ()) -> pa.RecordBatch:
    ids = list(range(first, last))
    texts = ["bad" if one in bad else f"text {one}" for one in ids]
    return pa.RecordBatch.from_arrays([pa.array(ids), pa.array(texts)], ["id", "text"])


def stage(fn: Any, keeps_failed: bool = True, **options: Any) -> FunctionStage:
    return FunctionStage(UserFunction.of(fn, Arguments(), **options).open(), keeps_failed)


def made(items: Iterator[Item]) -> list[pa.RecordBatch]:
    found = list(items)
    assert not [one for one in found if isinstance(one, FailedRows)]
    return found


def column(items: list[pa.RecordBatch], name: str) -> list[Any]:
    return [value for one in items for value in one.column(name).to_pylist()]


@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_batches_have_the_size_asked_for_but_for_the_last(size: int) -> None:
    given = [rows(0, 5), rows(5, 6), rows(6, 17)]
    found = made(stage(functions.shout, batch_size=size).run(given))
    assert column(found, "id") == list(range(17))
    assert [one.num_rows for one in found] == [size] * (17 // size) + [17 % size] * (17 % size > 0)


def test_without_a_size_all_rows_at_hand_are_one_batch() -> None:
    found = made(stage(functions.shout).run([rows(0, 5), rows(5, 9)]))
    assert [one.num_rows for one in found] == [9]


@pytest.mark.parametrize("fn", [functions.twice, functions.Streams])
def test_a_function_may_yield_several_batches(fn: Any) -> None:
    found = made(stage(fn, batch_size=2).run([rows(0, 4)]))
    assert column(found, "id") == [0, 1, 0, 1, 2, 3, 2, 3]
    assert column(found, "copy") == [0, 0, 1, 1, 0, 0, 1, 1]


def test_asynchronous_calls_overlap_and_keep_their_order() -> None:
    found = made(stage(functions.Overlaps, batch_size=1).run([rows(0, 20)]))
    assert column(found, "id") == list(range(20))
    assert max(column(found, "at_once")) > 1


@pytest.mark.parametrize("fn", [functions.picky, functions.Adds])
def test_a_row_that_fails_fails_alone_where_each_row_gives_one(fn: Any) -> None:
    given = stage(functions.picky, batch_size=8)
    found = list(given.run([rows(0, 20, bad=(3, 11))]))
    failed = [one for one in found if isinstance(one, FailedRows)]
    assert [one.rows.column("id").to_pylist() for one in failed] == [[3], [11]]
    assert [one.reasons for one in failed] == [["function: ValueError: a bad text"]] * 2
    ids = [
        value
        for one in found
        for value in (one.rows if isinstance(one, FailedRows) else one).column("id").to_pylist()
    ]
    assert ids == list(range(20))
    assert given.statistics.errored_batches == 2


def test_all_rows_of_a_batch_fail_where_rows_give_several_and_none_is_made_twice() -> None:
    given = stage(functions.picky_twice, batch_size=4)
    found = list(given.run([rows(0, 12, bad=(5,))]))
    failed = [one for one in found if isinstance(one, FailedRows)]
    assert [one.rows.column("id").to_pylist() for one in failed] == [[4, 5, 6, 7]]
    others = [one for one in found if not isinstance(one, FailedRows)]
    assert sorted(column(others, "id")) == sorted([0, 1, 2, 3, 8, 9, 10, 11] * 2)


def test_a_function_said_to_be_one_to_one_that_is_not_fails_over_the_batch() -> None:
    found = list(stage(functions.even, batch_size=4, one_to_one=True).run([rows(0, 4)]))
    # Alone, a row that gives one is as it should be.
    failed = [one for one in found if isinstance(one, FailedRows)]
    assert [one.rows.column("id").to_pylist() for one in failed] == [[1], [3]]
    assert "it returned 0 rows for 1, and one_to_one=true" in failed[0].reasons[0]


def test_without_kept_failures_the_error_names_function_and_place() -> None:
    with pytest.raises(JobError) as failed:
        list(stage(functions.picky, keeps_failed=False).run([rows(0, 4, bad=(1,))]))
    assert "fn=tests.made_up_functions:picky failed over a batch of 4 rows" in str(failed.value)
    assert "(made_up_functions.py, line " in str(failed.value)
    assert "ValueError: a bad text" in str(failed.value)


@pytest.fixture
def opened() -> Iterator[Any]:
    kept: list[OpenFunctions] = []

    def open_them(*fns: Any, keeps_failed: bool = True) -> OpenFunctions:
        specs = [UserFunction.of(fn, Arguments(), batch_size=4) for fn in fns]
        kept.append(OpenFunctions(specs, keeps_failed, WorkerSlot("cpu", 1)))
        return kept[-1]

    yield open_them
    for one in kept:
        one.close()


def test_all_functions_but_the_last_have_a_process_of_their_own(opened: Any) -> None:
    both = opened(functions.says_process, functions.says_last_process)
    found = made(both.start().run([rows(0, 10)]))
    assert column(found, "id") == list(range(10))
    assert set(column(found, "last_process")) == {os.getpid()}
    [child] = set(column(found, "process"))
    assert child != os.getpid()
    again = made(both.start().run([rows(10, 20)]))
    assert set(column(again, "process")) == {child}  # it stays for later rows


def test_a_function_typed_in_a_test_works_in_a_child(opened: Any) -> None:
    found = opened(lambda batch: {"id": batch["id"] * 3}, lambda batch: batch)
    assert column(made(found.start().run([rows(0, 3)])), "id") == [0, 3, 6]


def test_rows_that_an_earlier_function_fails_over_pass_the_later_ones_in_order(opened: Any) -> None:
    both = opened(functions.picky, functions.says_process)
    found = list(both.start().run([rows(0, 10, bad=(2,))]))
    ids = [
        value
        for one in found
        for value in (one.rows if isinstance(one, FailedRows) else one).column("id").to_pylist()
    ]
    assert ids == list(range(10))
    [failed] = [one for one in found if isinstance(one, FailedRows)]
    assert failed.rows.column("text").to_pylist() == ["bad"]


def test_the_death_of_a_child_is_an_error_and_another_one_takes_its_place(opened: Any) -> None:
    both = opened(functions.dies_over_bad, functions.shout)
    with pytest.raises(JobError, match="its process ended with code -9 over a batch"):
        list(both.start().run([rows(0, 10, bad=(2,))]))
    assert column(made(both.start().run([rows(0, 10)])), "id") == list(range(10))


def test_a_child_ends_with_its_process_whatever_its_function_is_at(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = (
        "from tests.test_stages import rows, slot, user_function\n"
        "from tests.made_up_functions import HangsForever, same\n"
        "from sparkinfer.functions.pipeline import OpenFunctions\n"
        f"spec = user_function(HangsForever, {str(pid)!r}), user_function(same)\n"
        "list(OpenFunctions(spec, True, slot()).start().run([rows(0, 3)]))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the function, in the child, is at work
        child = os.pidfd_open(int(pid.read_text()))
        process.kill()
        ended, _, _ = select.select([child], [], [], 30)
        os.close(child)
        assert ended


def user_function(fn: Any, *given: Any) -> UserFunction:
    return UserFunction.of(fn, Arguments(constructor_args=given))


def slot() -> WorkerSlot:
    return WorkerSlot("cpu", 1)


def test_rows_that_cannot_be_read_are_an_error_of_the_stream(opened: Any) -> None:
    def unreadable() -> Iterator[pa.RecordBatch]:
        yield rows(0, 4)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(opened(functions.shout, functions.says_process).start().run(unreadable()))


def test_what_is_left_when_nobody_wants_more_is_dropped(opened: Any) -> None:
    both = opened(functions.says_process, functions.says_last_process)
    stream = both.start().run(rows(i, i + 4) for i in range(0, 4000, 4))
    next(stream)
    stream.close()
    assert column(made(both.start().run([rows(0, 4)])), "id") == [0, 1, 2, 3]


def test_a_class_that_cannot_be_constructed_is_named(opened: Any) -> None:
    for fns in ([functions.Broken], [functions.Broken, functions.shout]):
        with pytest.raises(ConfigError, match="Broken cannot be constructed: OSError: no such"):
            opened(*fns)


@pytest.mark.parametrize(
    ("fn", "arguments", "options", "problem"),
    [
        (3, Arguments(), {}, "expected a function, a class or `package.module:name`"),
        ("tests.made_up_functions:nothing", Arguments(), {}, "has no attribute 'nothing'"),
        ("shout", Arguments(), {}, "fn='shout': expected an importable `package.module:name`"),
        (functions.shout, Arguments(constructor_args=(1,)), {}, "it is a function, which has none"),
        (functions.shout, Arguments(args=(1,)), {}, "cannot be called with the arguments given"),
        (functions.Adds, Arguments(), {}, "cannot be constructed with the arguments given"),
        (functions.shout, Arguments(), {"batch_size": 0}, "batch_size=0: expected a number of"),
        (functions.shout, Arguments(), {"batch_format": "torch"}, "batch_format='torch'"),
        (dict, Arguments(), {}, "has no __call__"),
        (
            lambda batch, lock=None: batch,
            Arguments(kwargs={"lock": iter([])}),
            {},
            "cannot be sent",
        ),
    ],
)
def test_wrong_uses_are_told_before_anything_runs(
    fn: Any, arguments: Arguments, options: dict[str, Any], problem: str
) -> None:
    if problem == "cannot be sent":
        import threading

        arguments = Arguments(kwargs={"lock": threading.Lock()})
    with pytest.raises(ConfigError) as refused:
        UserFunction.of(fn, arguments, **options)
    assert problem in str(refused.value)


def test_a_function_is_told_from_another_by_its_source_and_arguments() -> None:
    def one(number: int) -> str:
        return UserFunction.of(functions.Adds, Arguments(constructor_args=(number,))).identity()

    assert one(1) == one(1) != one(2)
    first, second = (UserFunction.of(fn, Arguments()) for fn in (lambda b: b, lambda b: dict(b)))
    assert first.identity() != second.identity()


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", None, {}),
        ("cuda:1", None, {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda:1", "3,5", {"CUDA_VISIBLE_DEVICES": "5"}),
        ("cuda:0", "GPU-abc", {"CUDA_VISIBLE_DEVICES": "GPU-abc"}),
    ],
)
def test_a_child_sees_the_gpu_of_its_worker_alone(
    device: str, visible: str | None, expected: dict[str, str]
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert as_visible(device, environment) == expected
