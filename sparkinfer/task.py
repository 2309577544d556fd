"""The command inside a process that goes on after it: a `python_wheel_task` of Databricks."""

from __future__ import annotations

from sparkinfer.cli import main
from sparkinfer.exceptions import SparkInferError


def task() -> None:
    """Runs the command with the arguments of `sys.argv`.

    What runs such a task loads this by the distribution's entry points, throws away what it returns
    and takes any exception for a failure, `SystemExit(0)` too.
    Source: `bundle/trampoline/python_wheel.go` of databricks/cli.

    Raises:
        SparkInferError: the command did not end with 0.
    """
    try:
        code = main()
    except SystemExit as ended:  # of argparse: wrong usage, --help
        code = int(ended.code or 0)
    if code:
        raise SparkInferError(
            f"the command ended with exit code {code}; its last lines on standard error say why"
        )
