"""The command line: arguments, messages, exit codes.

Exit codes: 0 done; 1 the job failed; 2 wrong usage or configuration, nothing was started; 129, 130,
143 stopped by SIGHUP, Ctrl-C (SIGINT), SIGTERM. After 1 and a stop the same command resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from sparkinfer import __version__
from sparkinfer.config import (
    DeviceName,
    DisplayMode,
    InputFormat,
    ScoringConfig,
)
from sparkinfer.engines import ENGINES
from sparkinfer.exceptions import (
    OutputError,
    ResumeError,
    SparkInferError,
    UsageError,
)
from sparkinfer.messages import shortened, shown
from sparkinfer.model_section import DTypeName, read_models
from sparkinfer.models.backends import BACKENDS
from sparkinfer.redaction import without_secrets
from sparkinfer.signals import asked_to_end, exit_code, say, stops_heard
from sparkinfer.terminal import printable, printable_lines
from sparkinfer.tuning import BUDGET_S

DONE, FAILED, WRONG_USE = 0, 1, 2

AGAIN = "Run the same command to resume"

EXIT_CODES = (
    "exit codes: 0 done; 1 the job failed; 2 wrong usage or configuration, nothing was started; "
    "130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP. After 1, 129, 130 and 143 the same "
    "command resumes."
)

C = TypeVar("C", bound=ScoringConfig)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal may not have a character
    options = _options(arguments)
    if not options.debug:
        warnings.simplefilter("ignore")  # other libraries' notes to their callers
        _log_for_people()
    command: Callable[[argparse.Namespace], int] = options.command
    with stops_heard():
        try:
            return command(options)
        except KeyboardInterrupt:
            return _stopped()
        except Exception as error:
            if asked_to_end() is not None:  # on the way out, something else failed
                return _stopped()
            return _failed(error, options.debug)


def _log_for_people() -> None:
    """Prints warnings as they are, and none of py4j's tracebacks of calls that are broken off."""
    handler = logging.StreamHandler()
    handler.addFilter(_is_for_people)
    logging.basicConfig(handlers=[handler], format="%(message)s")


def _is_for_people(record: logging.LogRecord) -> bool:
    of_py4j = record.name.startswith("py4j") or "while sending command" in str(record.msg)
    return not of_py4j


def _stopped(how_far: str = "") -> int:
    say(f"stopped{how_far and '; '}{how_far}")
    return exit_code(asked_to_end())


def _failed(error: Exception, debug: bool) -> int:
    if isinstance(error, SparkInferError):
        return _fail(error, WRONG_USE if isinstance(error, UsageError) else FAILED, debug)
    unexpected = SparkInferError(
        f"unexpected {type(error).__name__}: {_one_line(str(error))}; run again with --debug to "
        "see where it comes from"
    )
    unexpected.__cause__ = error
    return _fail(unexpected, FAILED, debug)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        # Without what follows them: it may be the secret of a mistyped option.
        names = [one.partition("=")[0] for one in unknown if one.startswith("-")]
        parser.error(
            f"unknown option {', '.join(names)}; see --help"
            if names
            else f"{len(unknown)} argument(s) too many, which belong to no option; see --help"
        )
    return options


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names and repeats no secrets."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong with the arguments and ends the process."""
        super().error(
            _shown(re.sub(r"(ignored explicit argument) .*", r"\1: it takes none", message))
        )


def _fail(error: SparkInferError, code: int, debug: bool) -> int:
    if debug:
        trace = "".join(traceback.format_exception(error))
        print(printable_lines(without_secrets(trace)), file=sys.stderr)
    print(f"sparkinfer: error: {_shown(str(error))}", file=sys.stderr)
    return code


def _shown(message: str) -> str:
    return shortened(printable(without_secrets(_one_line(message))))


def _one_line(text: str) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text).strip()


def _score(options: argparse.Namespace) -> int:
    return _run(_config(options, ScoringConfig), options.progress)


def _doctor(options: argparse.Namespace) -> int:
    from sparkinfer.doctor.case import ExaminedConfig
    from sparkinfer.doctor.examination import examine
    from sparkinfer.doctor.findings import as_json, has_errors, print_findings

    if options.debug:
        logging.basicConfig()
        logging.getLogger("sparkinfer.doctor").setLevel(logging.DEBUG)
    findings = examine(_config(options, ExaminedConfig))
    if options.json:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print too
            found = list(findings)
        print(as_json(found))
    else:
        found = print_findings(findings, sys.stdout)
    return FAILED if has_errors(found) else DONE


def _tune(options: argparse.Namespace) -> int:
    from sparkinfer.tuning.call import check_tunable, tune

    config = _config(options, ScoringConfig)
    check_tunable(config, options.budget_s)
    if options.save is not None:
        _refuse_save(options.save)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print too
        tuned = tune(config, options.budget_s)
    print(tuned)
    if options.save is None:
        print(f"\n{tuned.yaml}", end="")
        return DONE
    try:
        with options.save.open("x", encoding="utf-8") as file:
            file.write(tuned.file)
    except OSError as error:
        raise OutputError(f"{_not_saved(options.save, error.strerror)}; {_NAME_ANOTHER}") from None
    print(f"\nsparkinfer score --config {_shown(str(options.save))} takes it")
    return DONE


def _refuse_save(file: Path) -> None:
    """Raises OutputError if a file cannot be new there."""
    if file.exists():
        raise OutputError(f"{_not_saved(file, 'it is there already')}; {_NAME_ANOTHER}")
    if not file.absolute().parent.is_dir():
        raise OutputError(f"{_not_saved(file, 'there is no such folder')}; {_NAME_ANOTHER}")


_NAME_ANOTHER = "name another file, in a folder that is there"


def _not_saved(file: Path, reason: str | None) -> str:
    return f"--save {shown(str(file))}: {reason}"


def _status(options: argparse.Namespace) -> int:
    from sparkinfer.report.status import describe_status, read_status

    status = read_status(options.output)
    print(json.dumps(status.as_dict(), indent=1) if options.json else describe_status(status))
    return DONE


def _config(options: argparse.Namespace, kind: type[C]) -> C:
    names = ("config", "set", "command", "debug", "progress", "json", "budget_s", "save")
    values = {key: value for key, value in vars(options).items() if key not in names}
    if values["carry_cols"] is not None:
        values["carry_cols"] = tuple(values["carry_cols"].split(","))
    if values["input"] is not None and len(values["input"]) == 1:
        [values["input"]] = values["input"]
    values |= read_models(values.pop("model") or [])
    overrides = [*options.set]
    for flag, option in (
        ("fn", "fn.function"),
        ("max_batch_tokens", "batching.max_batch_tokens"),
        ("vector_store", "vectors.store"),
        ("output_delta", "delta.table"),
        ("output_table", "table.name"),
        ("mlflow", "mlflow.experiment"),
    ):
        value = values.pop(flag, None)
        if value not in (None, []):
            overrides.append(f"{option}={json.dumps(value)}")
    return kind.load(options.config, overrides, **values)


def _search(options: argparse.Namespace) -> int:
    from sparkinfer.api.search import TEXT, search_as
    from sparkinfer.report.nearest import describe_nearest, nearest_as_json

    values = {name: vars(options)[name] for name in ("model", "revision", "device", "dtype")}
    given = {**values, "task": {"name": options.task}, "input_col": TEXT, "engine": "local"}
    config = ScoringConfig.load(None, options.set, **given)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print too
        found = search_as(config, options.store, options.text, options.k)
    print(nearest_as_json(found) if options.json else describe_nearest(found))
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from sparkinfer.demo import DEFAULT_OUTPUT, demo_config

    output = options.output or DEFAULT_OUTPUT
    config = demo_config(output, engine=options.engine, overwrite=options.overwrite)
    if BACKENDS["deepspeed"].problem() is None:
        config = config.replace(acceleration="deepspeed")
    code = _run(config, "auto")
    if code == DONE:
        _print_first_rows(config)
    return code


def _run(config: ScoringConfig, progress: DisplayMode) -> int:
    from sparkinfer.api.functions import run
    from sparkinfer.display import live_display
    from sparkinfer.jobs.clock import utc_now
    from sparkinfer.report.summary import summarize

    started = utc_now()
    try:
        print(summarize(run(config, display=partial(live_display, mode=progress))))
    except (Exception, KeyboardInterrupt) as error:
        if asked_to_end() is None and not isinstance(error, KeyboardInterrupt):
            raise
        return _stopped(_what_is_done(config, started))
    return DONE


def _what_is_done(config: ScoringConfig, started: str) -> str:
    from sparkinfer.report.status import read_status

    try:
        status = read_status(str(config.output))
    except ResumeError as error:
        return error.message
    except OutputError:  # no manifest
        return "nothing was done yet"
    except Exception as error:  # each store has its own
        reason = _one_line(str(error))
        return f"how much of output {config.output!r} is done cannot be read ({reason}). {AGAIN}"
    of_another = status.state == "finished" and status.created < started
    if config.overwrite and (of_another or not status.overwrites):
        return "nothing was replaced yet"
    return f"{status.chunks} of {status.total_chunks} chunks are done. {AGAIN}"


def _print_first_rows(config: ScoringConfig) -> None:
    from sparkinfer.report.summary import first_rows

    print(f"\nfirst rows of {_shown(str(config.output))}:")
    print(first_rows(str(config.output)))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sparkinfer",
        description="Scores tables of text with Hugging Face models on Spark.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"sparkinfer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_score(commands)
    _add_search(commands)
    _add_status(commands)
    _add_doctor(commands)
    _add_tune(commands)
    _add_demo(commands)
    return parser


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def _add_score(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score a table and write Parquet",
        description="Scores a table; --set overrides the other options, and those override "
        "--config. The same command resumes an interrupted run.",
        epilog=EXIT_CODES,
    )
    parser.add_argument(
        "--progress", choices=get_args(DisplayMode), default="auto", help="how to show progress"
    )
    _add_job_options(parser)
    parser.set_defaults(command=_score)


def _add_search(commands: Any) -> None:
    parser = commands.add_parser(
        "search",
        help="the rows of a vector store that are nearest to a text",
        description="Embeds a text by the model that filled a store, and prints the nearest rows.",
    )
    add = parser.add_argument
    add("store", metavar="STORE", help="as --vector-store of the run that filled it")
    add("text", metavar="TEXT", help="what to look for")
    add("-k", metavar="N", type=int, default=10, help="rows to print (default: 10)")
    add("--model", metavar="ID|PATH|URI", help="the model of that run")
    add("--task", default="embedding", help="default: embedding")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="any option, repeatable")
    add("--device", choices=get_args(DeviceName), help="where the model runs")
    add("--dtype", choices=get_args(DTypeName), help="number format of the weights")
    add("--revision", help="branch, tag or commit of a hub model")
    add("--json", action="store_true", help="print one JSON document")
    _add_debug(parser)
    parser.set_defaults(command=_search)


def _add_status(commands: Any) -> None:
    parser = commands.add_parser(
        "status", help="what part of a run is done, what is left, rates and errors"
    )
    parser.add_argument("output", metavar="OUTPUT", help="the run's output folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    _add_debug(parser)
    parser.set_defaults(command=_status)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="find problems before a run",
        description="Takes the options of score, all optional, and checks installation, cluster, "
        "input, output and model. Exit code: 0 without errors, 1 with errors, 2 for wrong usage.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    _add_job_options(parser)
    parser.set_defaults(command=_doctor)


def _add_tune(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        help="measure which settings score an input fastest",
        description="Takes the options of score, but those of its output, and measures on the "
        "input's first rows, in one worker: ways of running the model, sizes of batches, and on "
        "CPUs how cores are shared out. Prints a table and the settings that were fastest.",
    )
    add = parser.add_argument
    add("--save", metavar="FILE", type=Path, help="new YAML file with them, for score --config")
    add(
        "--budget-s",
        metavar="N",
        type=float,
        default=BUDGET_S,
        help=f"seconds after which nothing more is begun (default: {BUDGET_S:.0f})",
    )
    _add_job_options(parser)
    parser.set_defaults(command=_tune)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--input",
        metavar="PATH|TABLE",
        nargs="+",
        help="files, folders or patterns of Parquet, CSV or JSON; a Spark table or a query",
    )
    add("--input-version", metavar="N", type=int, help="version of a table, or of a Delta folder")
    add("--output", metavar="FOLDER", help="folder for the scored Parquet files")
    add(
        "--model",
        metavar="[NAME=]ID|PATH|URI",
        action="append",
        help="hub id, folder, models:/… or runs:/…; with a name, one of several in one read",
    )
    add(
        "--fn",
        metavar="MODULE:NAME",
        action="append",
        help="function or class that makes rows of batches, in place of a model; repeatable: one "
        "after the other",
    )
    add("--input-col", metavar="COLUMN", help="column that holds the text")
    add("--text-pair-col", metavar="COLUMN", help="column of a second text, for tasks on pairs")
    add(
        "--input-template",
        metavar="TEXT",
        help='the text, made of columns: "{title}: {body}"; in place of --input-col',
    )
    add("--task", help="what is done with the rows (default: text-classification)")
    add("--engine", choices=list(ENGINES), help="what moves the rows")
    add("--config", metavar="FILE", type=Path, help="YAML file with options")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="any option, repeatable")
    add("--label-col", metavar="COLUMN", help="column of true labels, to report metrics")
    add("--carry-cols", metavar="A,B", help="input columns to keep (default: all)")
    add("--num-workers", metavar="N", type=int, help="model replicas (default: GPUs or CPU slots)")
    add("--device", choices=get_args(DeviceName), help="where the model runs")
    add("--acceleration", choices=["auto", *BACKENDS], help="what wraps the model")
    add("--dtype", choices=get_args(DTypeName), help="number format of the weights")
    add("--max-batch-tokens", metavar="N", type=int, help="maximum tokens per forward pass")
    add("--max-length", metavar="N", type=int, help="tokens at which texts are truncated")
    add("--revision", help="branch, tag or commit of a hub model")
    add("--output-table", metavar="TABLE", help="Spark table to which the result is written, too")
    add("--output-delta", metavar="FOLDER", help="Delta table to which the rows are appended, too")
    add(
        "--vector-store",
        metavar="STORE",
        help="where vectors go, too: chroma:FOLDER#collection or postgresql://…/database#table",
    )
    add(
        "--mlflow",
        metavar="EXPERIMENT",
        nargs="?",
        const=True,
        help="experiment of MLflow that gets a run which says what was done; in a notebook on "
        "Databricks, without a name, its own",
    )
    add("--input-format", choices=get_args(InputFormat), help="if the name does not show it")
    add(
        "--master", metavar="URL", help="Spark master: local[2], spark://host:7077, sc://host:15002"
    )
    add("--overwrite", action="store_true", default=None, help="replace an earlier run's output")
    add(
        "--incremental",
        action="store_true",
        default=None,
        help="score only the files, or rows of a table, that are new since the last run",
    )
    add(
        "--incremental-col",
        metavar="COLUMN",
        help="column of a table by which its new rows are known: it grows with each",
    )
    add(
        "--retry-errors",
        action="store_true",
        default=None,
        help="rescore an earlier run's rows with an error, before scoring what is left",
    )
    add(
        "--dedupe",
        action="store_true",
        default=None,
        help="score each distinct input once over all rows, by a sorted copy of the input",
    )
    add("--max-error-rows", metavar="N|P%", help="stop when more rows than this have an error")
    add(
        "--price-per-hour",
        metavar="AMOUNT",
        type=float,
        help="what all machines cost in an hour together, to tell what rows cost",
    )
    add(
        "--no-report",
        dest="report",
        action="store_false",
        default=None,
        help="write no page that shows what was done",
    )
    _add_debug(parser)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="the whole job, offline, on the bundled sample and model",
    )
    add = parser.add_argument
    add("--output", metavar="FOLDER", help="default: demo-output, replaced each time")
    add("--overwrite", action="store_true", help="replace an earlier run's output in FOLDER")
    add("--engine", choices=list(ENGINES), default="pandas_udf")
    _add_debug(parser)
    parser.set_defaults(command=_demo)
