"""The command line: arguments, messages, exit codes.

Exit codes: 0 done; 2 wrong use or configuration, nothing was started; 1 the job failed.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from sparkinfer import __version__
from sparkinfer.config import (
    AccelerationName,
    DeviceName,
    DTypeName,
    EngineName,
    InputFormat,
    ScoringConfig,
)
from sparkinfer.exceptions import SparkInferError, UsageError

DONE, FAILED, WRONG_USE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    options = _parser().parse_args(arguments)
    if not options.debug:
        warnings.simplefilter("ignore")  # other libraries' notes to their callers
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except UsageError as error:
        return _fail(error, WRONG_USE, options.debug)
    except SparkInferError as error:
        return _fail(error, FAILED, options.debug)
    except KeyboardInterrupt:
        print("sparkinfer: interrupted; an output without _SUCCESS is incomplete", file=sys.stderr)
        return FAILED
    except Exception as error:
        unexpected = SparkInferError(
            f"unexpected {type(error).__name__}: {_one_line(error)}; run again with --debug to see "
            "where it comes from"
        )
        unexpected.__cause__ = error
        return _fail(unexpected, FAILED, options.debug)


def _fail(error: SparkInferError, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"sparkinfer: error: {_one_line(error)}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _score(options: argparse.Namespace) -> int:
    names = ("config", "set", "command", "debug")
    values = {key: value for key, value in vars(options).items() if key not in names}
    if values["carry_cols"] is not None:
        values["carry_cols"] = tuple(values["carry_cols"].split(","))
    budget = values.pop("max_batch_tokens")
    overrides = (
        options.set if budget is None else [*options.set, f"batching.max_batch_tokens={budget}"]
    )
    config = ScoringConfig.load(options.config, overrides, **values)
    return _run(config)


def _demo(options: argparse.Namespace) -> int:
    from sparkinfer.demo import DEFAULT_OUTPUT, demo_config

    output = options.output or DEFAULT_OUTPUT
    config = demo_config(output, engine=options.engine, overwrite=options.overwrite)
    code = _run(config)
    _print_first_rows(config)
    return code


def _run(config: ScoringConfig) -> int:
    from sparkinfer.api.functions import run
    from sparkinfer.report.live import live_display
    from sparkinfer.report.summary import summarize

    result = run(config, display=live_display)
    print(summarize(result))
    return DONE


def _print_first_rows(config: ScoringConfig) -> None:
    from sparkinfer.report.summary import first_rows

    print(f"\nfirst rows of {config.output}:")
    print(first_rows(str(config.output)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparkinfer", description="Scores tables of text with Hugging Face models on Spark."
    )
    parser.add_argument("--version", action="version", version=f"sparkinfer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_score(commands)
    _add_demo(commands)
    return parser


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def _add_score(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score a table and write Parquet",
        description="Scores a table; --set wins over the other options, and those over --config.",
    )
    add = parser.add_argument
    add("--input", metavar="PATH|TABLE", help="Parquet, CSV or JSON lines, or a Spark table")
    add("--output", metavar="FOLDER", help="folder that receives Parquet files")
    add("--model", metavar="ID|PATH|URI", help="hub id, folder, models:/… or runs:/…")
    add("--input-col", metavar="COLUMN", help="column that holds the text")
    add("--task", help="what the model does (default: text-classification)")
    add("--engine", choices=get_args(EngineName), help="what moves the rows")
    add("--config", metavar="FILE", type=Path, help="YAML file with options")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="any option, repeatable")
    add("--label-col", metavar="COLUMN", help="true labels, to report the accuracy")
    add("--carry-cols", metavar="A,B", help="input columns to keep (default: all)")
    add("--num-workers", metavar="N", type=int, help="model replicas (default: GPUs or CPU slots)")
    add("--device", choices=get_args(DeviceName), help="where the model runs")
    add("--acceleration", choices=get_args(AccelerationName), help="what wraps the model")
    add("--dtype", choices=get_args(DTypeName), help="number format of the weights")
    add("--max-batch-tokens", metavar="N", type=int, help="most tokens in one forward pass")
    add("--max-length", metavar="N", type=int, help="tokens at which texts are cut")
    add("--revision", help="branch, tag or commit of a hub model")
    add("--input-format", choices=get_args(InputFormat), help="if the name does not tell")
    add("--master", metavar="URL", help="Spark master, such as local[2] or spark://host:7077")
    add("--overwrite", action="store_true", default=None, help="replace an earlier run's output")
    _add_debug(parser)
    parser.set_defaults(command=_score)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="the whole job on a sample and a model that the package carries, offline",
    )
    add = parser.add_argument
    add("--output", metavar="FOLDER", help="default: demo-output, replaced by each demo")
    add("--overwrite", action="store_true", help="replace an earlier run's output elsewhere")
    add("--engine", choices=get_args(EngineName), default="pandas_udf")
    _add_debug(parser)
    parser.set_defaults(command=_demo)
