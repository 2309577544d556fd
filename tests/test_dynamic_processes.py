"""Batchers at the end of a process, in a forked one, and what loading them loads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparkinfer.batching.dynamic import BatchProcessor, dynamically
from sparkinfer.exceptions import BatcherClosedError

ROOT = Path(__file__).parents[1]


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_neither_spark_nor_torch_is_loaded() -> None:
    loaded = run(
        "import sparkinfer.batching.dynamic as batched, numpy, sys\n"
        "print(batched.inference.dynamically(lambda x: x['a'])(a=numpy.ones((2, 2))).sum())\n"
        "print(*sys.modules)"
    ).split()
    assert loaded[0] == "4.0"
    assert not {"pyspark", "torch", "transformers", "pandas"} & set(loaded)


def test_the_interpreter_ends_while_calls_wait_and_a_batch_runs() -> None:
    script = """
import threading
from sparkinfer import dynamically
entered, never = threading.Event(), threading.Event()
@dynamically(batch_size=1)
def hang(numbers):
    entered.set()
    never.wait()
for number in range(3):
    threading.Thread(target=hang, args=(number,), daemon=True).start()
entered.wait()
print("end")
"""
    assert run(script) == "end\n"


def test_threads_that_outlive_the_main_one_get_their_results() -> None:
    script = """
import threading
from sparkinfer import dynamically
@dynamically
def double(numbers):
    return [2 * number for number in numbers]
double(1)  # Python 3.12 starts no thread once the main one has ended
def late():
    threading.main_thread().join()
    print(double(21))
threading.Thread(target=late).start()
"""
    assert run(script) == "42\n"


def test_calls_that_wait_at_the_end_are_released() -> None:
    script = """
import atexit, threading
from sparkinfer.exceptions import BatcherClosedError
released = threading.Event()
atexit.register(lambda: print(released.wait(30)))
from sparkinfer import dynamically
entered, never = threading.Event(), threading.Event()
@dynamically(batch_size=1)
def hang(numbers):
    entered.set()
    never.wait()
def call():
    try:
        hang(2)
    except BatcherClosedError:
        released.set()
threading.Thread(target=hang, args=(1,), daemon=True).start()
entered.wait()
threading.Thread(target=call, daemon=True).start()
while not hang.stats.queue_size:
    pass
"""
    assert run(script) == "True\n"


def in_forked_child(function: Callable[[], None]) -> int:
    """Returns the exit status of a forked process that runs a function for a minute at most."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        threading.Timer(60, os._exit, (2,)).start()
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_starts_with_an_empty_batcher() -> None:
    entered, may_go = threading.Event(), threading.Event()
    parent = os.getpid()

    @dynamically(batch_size=1)
    def double(numbers: list[int]) -> list[int]:
        if os.getpid() == parent:
            entered.set()
            may_go.wait()
        return [2 * number for number in numbers]

    def child() -> None:
        assert double.stats.queue_size == double.stats.total_processed == 0
        assert double([1, 2]) == [2, 4]
        assert double.stats.total_processed == 2

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(double, number) for number in range(3)]
        entered.wait(60)
        assert in_forked_child(child) == 0
        may_go.set()
        assert [call.result(60) for call in calls] == [0, 2, 4]
    double.shutdown()

    def child_of_a_closed_one() -> None:
        with pytest.raises(BatcherClosedError):
            double(1)

    assert in_forked_child(child_of_a_closed_one) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_by_the_function_can_call_it() -> None:
    def fork(numbers: list[int]) -> list[int]:
        return [in_forked_child(child) if number == 1 else number for number in numbers]

    batcher = BatchProcessor(fork)

    def child() -> None:
        assert batcher(7) == 7

    assert batcher(1) == 0
    batcher.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_while_others_call_never_hangs() -> None:
    stop = threading.Event()
    batcher = BatchProcessor(lambda numbers: numbers, timeout_ms=0)

    def call() -> None:
        while not stop.is_set():
            batcher(1)

    def child() -> None:
        assert batcher(7) == 7

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call) for _ in range(4)]
        statuses = [in_forked_child(child) for _ in range(20)]
        stop.set()
        for caller in callers:
            caller.result(60)
    assert statuses == [0] * 20
    batcher.close()
