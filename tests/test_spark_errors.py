from __future__ import annotations

import pytest

from sparkinfer.spark.errors import explain, installation_problem

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


def test_a_worker_that_died_is_told_and_not_what_spark_saw_of_it() -> None:
    text = f"first{FRAMES}Caused by: Python worker exited unexpectedly (crashed){FRAMES}"
    assert explain(Exception(f"{text}Caused by: java.io.EOFException{FRAMES}")) == (
        "Python worker exited unexpectedly (crashed)"
    )


@pytest.mark.parametrize(
    ("left_behind", "explained"),
    [
        (  # as of a real run on Spark 3.5.9
            "no progress for 2 s in the forward pass of 48 rows of up to 42 tokens (chunk 0 task "
            '1, process 15778 on vm)\n\nThread MainThread:\n  File "daemon.py", line 218, in x\n\n',
            "no progress for 2 s in the forward pass of 48 rows of up to 42 tokens (chunk 0 task "
            "1, process 15778 on vm)",
        ),
        (
            "Fatal Python error: Segmentation fault\n\nThread 0x00007f1f1bd896c0 (most recent call "
            'first):\n  File "threading.py", line 327 in wait\n\n',
            "Fatal Python error: Segmentation fault",
        ),
        ("\n", "Python worker exited unexpectedly (crashed)"),  # killed
    ],
)
def test_what_a_worker_left_behind_is_its_first_line(left_behind: str, explained: str) -> None:
    crashed = f"SparkException: Python worker exited unexpectedly (crashed): {left_behind}{FRAMES}"
    caused = f"Caused by: java.io.EOFException{FRAMES}"
    text = (
        f"Job aborted: {crashed}{caused}\nDriver stacktrace:\n{FRAMES}Caused by: {crashed}{caused}"
    )
    assert explain(Exception(text)) == explained


def test_a_worker_that_is_cut_off_is_told_from_other_connections() -> None:
    reset = "Caused by: java.net.SocketException: Connection reset\n\tat "
    ours = explain(Exception(f"{reset}org.apache.spark.api.python.BasePythonRunner.read"))
    assert ours == "Python worker exited unexpectedly (its connection was reset)"
    assert explain(Exception(f"{reset}org.apache.hadoop.fs.s3a")) == (
        "java.net.SocketException: Connection reset"
    )


def test_a_plain_error_is_its_first_line() -> None:
    assert explain(Exception("plain\nsecond")) == "plain"


# As of real runs with a worker of another Python.
SPARK35_MISMATCH = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "/opt/spark/python/lib/pyspark.zip/pyspark/worker.py", line 1100, in main
    raise PySparkRuntimeError(
pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has \
different version (3, 10) than that in driver 3.11, PySpark cannot run with different minor \
versions.
Please check environment variables PYSPARK_PYTHON and PYSPARK_DRIVER_PYTHON are correctly set.
"""
SPARK4_MISMATCH = """An exception was thrown from the Python worker:
Traceback (most recent call last):
  File "/opt/spark/python/lib/pyspark.zip/pyspark/worker.py", line 4174, in invoke_udf
    check_python_version(init_info.python_version)
  File "/opt/spark/python/lib/pyspark.zip/pyspark/worker_util.py", line 93, in check_python_version
    raise PySparkRuntimeError(
pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has \
different version: 3.10 than that in driver: 3.11, PySpark cannot run with different minor versions.
Please check environment variables PYSPARK_PYTHON and PYSPARK_DRIVER_PYTHON are correctly set."""


@pytest.mark.parametrize("text", [SPARK35_MISMATCH, SPARK4_MISMATCH])
def test_workers_of_another_python_are_told_with_both_versions(text: str) -> None:
    said = (
        "the driver runs Python 3.11, the workers 3.10; set PYSPARK_PYTHON, before the session "
        "starts, to a Python 3.11 that every node has"
    )
    assert installation_problem(Exception(text)) == said
    assert explain(Exception(text)) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "ModuleNotFoundError: No module named 'sparkinfer'",
            "no module 'sparkinfer'; install this package on every node",
        ),
        (
            "ModuleNotFoundError: No module named 'pyarrow.parquet'",
            "no module 'pyarrow'; install the driver's packages on every node",
        ),
    ],
)
def test_workers_without_a_package_are_told_what_to_install(error: str, said: str) -> None:
    text = f"Job aborted: {PYTHON}{traceback(error)}{FRAMES}"
    assert said in str(installation_problem(Exception(text)))
    assert said in explain(Exception(text))


# As of a real run on Spark 3.5.9.
NO_PYTHON = """Task 0 in stage 0.0 failed 1 times: java.io.IOException: \
Cannot run program "./environment/bin/python": error=2, No such file or directory
\tat java.base/java.lang.ProcessBuilder.start(ProcessBuilder.java:1143)
\tat org.apache.spark.api.python.PythonWorkerFactory.startDaemon(PythonWorkerFactory.scala:239)
"""


def test_nodes_without_the_python_are_told_how_to_send_one_along() -> None:
    said = installation_problem(Exception(NO_PYTHON))
    assert said is not None
    assert said.startswith("the nodes have no Python './environment/bin/python'; set ")
    assert said.endswith("or send one along by spark-submit --archives (docs/spark_submit.md)")


def test_another_program_that_is_missing_is_no_problem_of_the_installation() -> None:
    text = NO_PYTHON.replace("PythonWorkerFactory", "ShellBasedGroups")
    assert installation_problem(Exception(text)) is None


def test_another_error_is_no_problem_of_the_installation() -> None:
    text = f"Job aborted: {PYTHON}{traceback('ValueError: No module named x')}{FRAMES}"
    assert installation_problem(Exception(text)) is None
