"""The command line: arguments, messages, exit codes.

Exit codes: 0 done; 1 the job failed; 2 wrong usage or configuration, nothing was started; 129, 130,
143 stopped by SIGHUP, Ctrl-C (SIGINT), SIGTERM; 141 nobody reads standard output any more. After 1
and a stop the same command resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import select
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from sparkinfer.arguments import WRONG_USE, one_line, parse_arguments
from sparkinfer.config import DisplayMode, ScoringConfig
from sparkinfer.exceptions import (
    OutputError,
    ResumeError,
    SparkInferError,
    UsageError,
)
from sparkinfer.messages import shown
from sparkinfer.model_section import read_models
from sparkinfer.models.backends import BACKENDS
from sparkinfer.redaction import without_secrets
from sparkinfer.signals import asked_to_end, exit_code, say, stops_heard
from sparkinfer.terminal import printable_lines

DONE, FAILED = 0, 1

AGAIN = "Run the same command to resume"

C = TypeVar("C", bound=ScoringConfig)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal may not have a character
    options = parse_arguments(arguments)
    if not options.debug:
        warnings.simplefilter("ignore")  # other libraries' notes to their callers
        _log_for_people()
    command = COMMANDS[options.subcommand]
    with stops_heard():
        try:
            code = command(options)
            if sys.stdout is not None:  # closed by who started this
                sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return _stopped()
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _is_unread():
                return exit_code(signal.SIGPIPE)
            if asked_to_end() is not None:  # on the way out, something else failed
                return _stopped()
            return _failed(error, options.debug)


def _is_unread() -> bool:
    """Returns whether what reads standard output has gone; what is left to be said goes nowhere."""
    waiting = select.poll()
    waiting.register(sys.stdout.fileno(), 0)
    if not any(state & select.POLLERR for _, state in waiting.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return True


class _StandardError(logging.Handler):
    """Writes to what standard error is at the time: while a bar is shown, above that."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record; a stream that is closed or gone gets none."""
        with contextlib.suppress(OSError, ValueError):
            print(self.format(record), file=sys.stderr)


def _log_for_people() -> None:
    """Prints warnings as they are, and none of py4j's tracebacks of interrupted calls."""
    handler = _StandardError()
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
        f"unexpected {type(error).__name__}: {one_line(str(error))}; run again with --debug to "
        "see where it comes from"
    )
    unexpected.__cause__ = error
    return _fail(unexpected, FAILED, debug)


def _fail(error: SparkInferError, code: int, debug: bool) -> int:
    if debug:
        trace = "".join(traceback.format_exception(error))
        print(printable_lines(without_secrets(trace)), file=sys.stderr)
    print(f"sparkinfer: error: {one_line(str(error))}", file=sys.stderr)
    return code


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
    print(f"\nsparkinfer score --config {one_line(str(options.save))} takes it")
    return DONE


def _refuse_save(file: Path) -> None:
    """Raises OutputError if a file cannot be new there."""
    if file.exists():
        raise OutputError(f"{_not_saved(file, 'it exists already')}; {_NAME_ANOTHER}")
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


def _report(options: argparse.Namespace) -> int:
    from sparkinfer.report.page import write_report

    written = write_report(options.output, options.to, price_per_hour=options.price_per_hour)
    print(one_line(written.path))
    return DONE


def _config(options: argparse.Namespace, kind: type[C]) -> C:
    names = ("config", "set", "subcommand", "debug", "progress", "json", "budget_s", "save")
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


def _compare(options: argparse.Namespace) -> int:
    from sparkinfer.comparing.call import compare
    from sparkinfer.comparing.limit import is_within, share_of
    from sparkinfer.comparing.table import describe

    limit = None if options.fail_above is None else share_of(options.fail_above)
    given = {name: vars(options)[name] for name in ("model_a", "model_b", "rows", "to")}
    found = compare(options.a, options.b, options.on.split(",") if options.on else (), **given)
    width = shutil.get_terminal_size((120, 24)).columns
    print(json.dumps(found.as_dict(), indent=1) if options.json else describe(found, width))
    return DONE if limit is None or is_within(found, limit) else FAILED


def _demo(options: argparse.Namespace) -> int:
    from sparkinfer.demo import DEFAULT_OUTPUT, demo_config

    output = options.output or DEFAULT_OUTPUT
    config = demo_config(output, engine=options.engine, overwrite=options.overwrite)
    if BACKENDS["deepspeed"].problem() is None:
        config = config.replace(acceleration="deepspeed")
    return _run(config, "auto")


def _run(config: ScoringConfig, progress: DisplayMode) -> int:
    from sparkinfer.api.functions import run
    from sparkinfer.jobs.clock import utc_now
    from sparkinfer.report.first_rows import first_rows

    started = utc_now()
    try:
        result = run(config, progress=progress)
    except (Exception, KeyboardInterrupt) as error:
        if asked_to_end() is None and not isinstance(error, KeyboardInterrupt):
            raise
        return _stopped(_what_is_done(config, started))
    print(result)
    if progress != "json":
        print(first_rows(result.output, result.run), end="")
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
        reason = one_line(str(error))
        return f"how much of output {config.output!r} is done cannot be read ({reason}). {AGAIN}"
    of_another = status.state == "finished" and status.created < started
    if config.overwrite and (of_another or not status.overwrites):
        return "nothing was replaced yet"
    return f"{status.chunks} of {status.total_chunks} chunks are done. {AGAIN}"


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "score": _score,
    "search": _search,
    "status": _status,
    "report": _report,
    "doctor": _doctor,
    "tune": _tune,
    "compare": _compare,
    "demo": _demo,
}
