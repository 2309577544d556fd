from __future__ import annotations

import pytest

from sparkinfer.spark.errors import explain

TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "worker.py", line 7, in score\n'
    "    raise {raised}\n"
    "{error}\n"
)
FRAMES = "\n\tat org.apache.spark.api.python.Runner.read(Runner.scala:1)\n"
PYTHON = "org.apache.spark.api.python.PythonException: "
WRITING = "org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while writing rows.\n"


def traceback(error: str) -> str:
    return TRACEBACK.format(raised=error.split(":")[0], error=error)


@pytest.mark.parametrize(
    "layout",
    [
        "An exception was thrown from the Python worker:\n{}" + FRAMES,
        # An error of the writer: the worker's comes after the frames of Spark's own.
        f"Job aborted: {WRITING}{FRAMES}Caused by: {PYTHON}{{}}{FRAMES}",
        # A task's error in the text of the job's, before the causes.
        f"Job aborted: {PYTHON}{{}}{FRAMES}\nDriver stacktrace:\n{FRAMES}"
        f"Caused by: {PYTHON}{{}}{FRAMES}\t... 1 more\n",
    ],
)
@pytest.mark.parametrize(
    ("raised", "explained"),
    [
        ("ValueError: the disk is gone", "ValueError: the disk is gone"),
        ("MemoryError", "MemoryError"),
        (
            "sparkinfer.exceptions.ModelLoadError: model 'm' does not load",
            "model 'm' does not load",
        ),
    ],
)
def test_the_workers_error_is_found_wherever_spark_puts_it(
    layout: str, raised: str, explained: str
) -> None:
    text = layout.replace("{}", traceback(raised))
    assert explain(Exception(text)) == explained


def test_an_error_of_spark_itself_is_its_innermost_cause() -> None:
    assert (
        explain(Exception(f"first{FRAMES}Caused by: second{FRAMES}Caused by: third\n")) == "third"
    )


def test_a_plain_error_is_its_first_line() -> None:
    assert explain(Exception("plain\nsecond")) == "plain"
