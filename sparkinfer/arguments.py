"""The arguments of the command line: what there is, in groups, and what is said of wrong ones."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from sparkinfer import __version__
from sparkinfer.comparing import SHOWN_ROWS
from sparkinfer.config import DeviceName, DisplayMode, InputFormat, ScoringConfig
from sparkinfer.engines import ENGINES
from sparkinfer.messages import shortened, shown
from sparkinfer.model_section import DTypeName
from sparkinfer.models.backends import BACKENDS
from sparkinfer.redaction import without_secrets
from sparkinfer.terminal import printable
from sparkinfer.tuning import BUDGET_S

EXIT_CODES = (
    "exit codes: 0 done; 1 the job failed; 2 wrong usage or configuration, nothing was started; "
    "130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; 141 nobody reads its output any more. "
    "After 1, 129, 130 and 143 the same command resumes."
)

WRONG_USE = 2


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of one command, `subcommand` its name; None: those of this process.

    Ends the process for `--help`, `--version`, and with one line for what cannot be understood.
    """
    parser, commands = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        chosen: _Parser = commands.choices[options.subcommand]
        chosen.refuse(unknown)
    return options


def one_line(text: str) -> str:
    """Returns a message as it may be printed: on one line, without secrets, not too long."""
    return shortened(printable(without_secrets(re.sub(r"[ \t\r\n]+", " ", text).strip())))


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names, and says in one line without secrets what is wrong."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong with the arguments and ends the process."""
        self.exit(WRONG_USE, f"sparkinfer: error: {one_line(_reworded(message, self.prog))}\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Ends the process for arguments that the command does not know.

        What follows an option is not repeated: it may be the secret of a mistyped one.
        """
        names = [one.partition("=")[0] for one in unknown if one.startswith("-")]
        if not names:
            self.error(f"{len(unknown)} argument(s) too many, which belong to no option")
        near = difflib.get_close_matches(names[0], self._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"unknown option {', '.join(names)}{hint}")


_CHOICE = re.compile(
    r"argument (?P<name>[^:]+): invalid choice: '?(?P<value>.*?)'? \(choose from (?P<known>.*)\)",
    re.DOTALL,
)
_VALUE = re.compile(r"argument (?P<name>[^:]+): invalid (?P<type>\w+) value: (?P<value>.*)", re.S)
_KINDS = {"int": "a whole number", "float": "a number"}


def _reworded(message: str, prog: str) -> str:
    """Returns what argparse says as our messages are: value, expectation, what to do."""
    if (choice := _CHOICE.fullmatch(message)) is not None:
        known = re.findall(r"[\w-]+", choice["known"])
        near = difflib.get_close_matches(choice["value"], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; see {prog} --help"
        return f"{choice['name']} {choice['value']!r}: expected one of {', '.join(known)}{hint}"
    if (value := _VALUE.fullmatch(message)) is not None:
        kind = _KINDS.get(value["type"], value["type"])
        return f"{value['name']} {value['value']}: expected {kind}; see {prog} --help"
    message = re.sub(r"(ignored explicit argument) .*", r"\1: it takes none", message)
    message = message.removeprefix("argument ")
    return message if message.endswith("?") else f"{message}; see {prog} --help"


def _parser() -> tuple[_Parser, Any]:
    """Returns the parser, and what has those of the commands by their names."""
    parser = _Parser(
        prog="sparkinfer",
        description="Scores tables of text with Hugging Face models on Spark.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"sparkinfer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="subcommand")
    _add_score(commands)
    _add_search(commands)
    _add_status(commands)
    _add_report(commands)
    _add_doctor(commands)
    _add_tune(commands)
    _add_compare(commands)
    _add_demo(commands)
    return parser, commands


def _add_messages(parser: argparse.ArgumentParser, *, json: bool = False) -> Any:
    """Adds what concerns the output on the screen, and returns its group."""
    group = parser.add_argument_group("messages")
    if json:
        group.add_argument("--json", action="store_true", help="print one JSON document")
    group.add_argument("--debug", action="store_true", help="show tracebacks")
    return group


def _add_score(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score a table and write Parquet",
        description="Scores a table; --set overrides the other options, and those override "
        "--config. The same command resumes an interrupted run.",
        epilog=EXIT_CODES,
    )
    _add_job_options(parser)
    add = _add_messages(parser).add_argument
    add(
        "--progress",
        choices=get_args(DisplayMode),
        default="auto",
        help="how to show progress: auto is a bar in a terminal, and lines elsewhere "
        "(default: auto)",
    )


def _add_search(commands: Any) -> None:
    parser = commands.add_parser(
        "search",
        help="the rows of a vector store that are nearest to a text",
        description="Embeds a text with the model that filled a store, and prints the nearest "
        "rows.",
    )
    add = parser.add_argument_group("what to look for").add_argument
    add("store", metavar="STORE", help="as --vector-store of the run that filled it")
    add("text", metavar="TEXT", help="what to look for")
    add("-k", metavar="N", type=int, default=10, help="rows to print (default: 10)")
    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="ID|PATH|URI", help="the model of that run")
    add("--revision", help=f"branch, tag or commit of a hub model {_default(None, 'main')}")
    add("--task", default="embedding", help="its task (default: embedding)")
    _add_device(add)
    add = parser.add_argument_group("all options").add_argument
    _add_set(add)
    _add_messages(parser, json=True)


def _add_status(commands: Any) -> None:
    parser = commands.add_parser(
        "status", help="what part of a run is done, what is left, rates and errors"
    )
    parser.add_argument("output", metavar="OUTPUT", help="the run's output folder")
    _add_messages(parser, json=True)


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="one HTML page of what a run did, in numbers and pictures",
        description="Writes a page that needs no network, from the output alone, and prints its "
        "path. A run writes the same one at its end.",
    )
    add = parser.add_argument_group("report").add_argument
    add("output", metavar="OUTPUT", help="the run's output folder")
    add("--to", metavar="FILE", help="where (default: OUTPUT/_sparkinfer/report.html)")
    _add_price(add, "as the run was given")
    _add_messages(parser)


def _add_price(add: Any, default: str) -> None:
    add(
        "--price-per-hour",
        metavar="AMOUNT",
        type=_price,
        help=f"what all machines cost in an hour together, for the report (default: {default})",
    )


def _price(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (price := float(text)) < math.inf:
            return price
    raise argparse.ArgumentTypeError(f"{shown(text)}: expected a number above 0")


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="find problems before a run",
        description="Takes the options of score, all optional, and checks installation, cluster, "
        "input, output and model. Exit code: 0 without errors, 1 with errors, 2 for wrong usage.",
    )
    _add_job_options(parser)
    _add_messages(parser, json=True)


def _add_tune(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        help="measure which settings score an input fastest",
        description="Takes the options of score, except those of its output, and measures on the "
        "input's first rows, in one worker: ways of running the model, sizes of batches, and on "
        "CPUs how cores are shared out. Prints a table and the settings that were fastest.",
    )
    add = parser.add_argument_group("measuring").add_argument
    add("--save", metavar="FILE", type=Path, help="new YAML file with them, for score --config")
    add(
        "--budget-s",
        metavar="N",
        type=float,
        default=BUDGET_S,
        help=f"seconds after which no further measurement starts (default: {BUDGET_S:.0f})",
    )
    _add_job_options(parser)
    _add_messages(parser)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="how the results of two outputs over the same rows differ",
        description="Finds the rows of one output in another, whatever order they have, and "
        "compares their results. Exit code: 0, with --fail-above 1 if more has changed, 2 for "
        "outputs that cannot be compared.",
    )
    add = parser.add_argument_group("what to compare").add_argument
    add("a", metavar="A", help="output folder of the one run")
    add("b", metavar="B", help="output folder of the other")
    add(
        "--on",
        metavar="A,B",
        help="columns that tell every row from the others (default: all columns that both carry "
        "from the input)",
    )
    add("--model-a", metavar="NAME", help="model of A, where it has several (default: all in both)")
    add("--model-b", metavar="NAME", help="model of B that it is compared with")
    add = parser.add_argument_group("what to show").add_argument
    add(
        "--rows",
        metavar="N",
        type=int,
        default=SHOWN_ROWS,
        help=f"rows that differ most (default: {SHOWN_ROWS})",
    )
    add("--to", metavar="FILE", help="write the comparison as an HTML page, too")
    add(
        "--fail-above",
        metavar="P%",
        help="exit code 1 if more than this share of the rows has another result",
    )
    _add_messages(parser, json=True)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="the whole job, offline, on the bundled sample and model",
    )
    add = parser.add_argument_group("output").add_argument
    add(
        "--output",
        metavar="FOLDER",
        help="where the rows go (default: demo-output, replaced each time)",
    )
    add("--overwrite", action="store_true", help="replace an earlier run's output in FOLDER")
    add = parser.add_argument_group("cluster").add_argument
    add(
        "--engine",
        choices=list(ENGINES),
        default="pandas_udf",
        help="what moves the rows (default: pandas_udf)",
    )
    _add_messages(parser)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    _add_input(parser.add_argument_group("what to score").add_argument)
    _add_model(parser.add_argument_group("model").add_argument)
    _add_output(parser.add_argument_group("output").add_argument)
    _add_repeats(parser.add_argument_group("repeated runs").add_argument)
    add = parser.add_argument_group("speed").add_argument
    _add_device(add)
    add(
        "--acceleration",
        choices=["auto", *BACKENDS],
        help=f"what runs the model {_default('acceleration')}",
    )
    add(
        "--max-batch-tokens",
        metavar="N",
        type=int,
        help=f"maximum tokens per forward pass {_default(None, 'by the device')}",
    )
    _add_cluster(parser.add_argument_group("cluster").add_argument)
    add = parser.add_argument_group("all options").add_argument
    add("--config", metavar="FILE", type=Path, help="YAML file with options")
    _add_set(add)


def _default(option: str | None, text: str = "") -> str:
    """Returns what is taken without an option: its value, or words where that says nothing."""
    return f"(default: {text or getattr(ScoringConfig, str(option))})"


def _add_set(add: Any) -> None:
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any option by its name, such as batching.window_rows=64; repeatable",
    )


def _add_device(add: Any) -> None:
    add(
        "--device",
        choices=get_args(DeviceName),
        help=f"where the model runs {_default('device')}",
    )
    add(
        "--dtype",
        choices=get_args(DTypeName),
        help=f"number format of the weights {_default('dtype')}",
    )


def _add_input(add: Any) -> None:
    add(
        "--input",
        metavar="PATH|TABLE",
        nargs="+",
        help="files, folders or patterns of Parquet, CSV or JSON; a Spark table or a query",
    )
    add(
        "--input-format",
        choices=get_args(InputFormat),
        help=f"how the input is stored, if its name does not show it {_default('input_format')}",
    )
    add(
        "--input-version",
        metavar="N",
        type=int,
        help=f"version of a table, or of a Delta folder {_default(None, 'as it is')}",
    )
    add("--input-col", metavar="COLUMN", help="column that holds the text")
    add("--text-pair-col", metavar="COLUMN", help="column of a second text, for tasks on pairs")
    add(
        "--input-template",
        metavar="TEXT",
        help='the text, made of columns: "{title}: {body}"; in place of --input-col',
    )
    add("--label-col", metavar="COLUMN", help="column of true labels, to report metrics")
    add(
        "--dedupe",
        action="store_true",
        default=None,
        help="score each distinct input once over all rows, from a sorted copy of the input "
        f"{_default(None, 'off')}",
    )


def _add_model(add: Any) -> None:
    add(
        "--model",
        metavar="[NAME=]ID|PATH|URI",
        action="append",
        help="hub id, folder, models:/… or runs:/…; with a name, one of several in one read",
    )
    add("--revision", help=f"branch, tag or commit of a hub model {_default(None, 'main')}")
    add("--task", help=f"what is done with the rows {_default(None, ScoringConfig.task.name)}")
    add(
        "--max-length",
        metavar="N",
        type=int,
        help="tokens beyond which texts are truncated "
        f"{_default(None, 'as many as the model takes')}",
    )
    add(
        "--fn",
        metavar="MODULE:NAME",
        action="append",
        help="function or class that makes rows of batches, in place of a model; repeatable: one "
        "after the other",
    )


def _add_output(add: Any) -> None:
    add("--output", metavar="FOLDER", help="folder for the scored Parquet files")
    add("--carry-cols", metavar="A,B", help=f"input columns to keep {_default(None, 'all')}")
    add("--output-table", metavar="TABLE", help="Spark table that gets the result as well")
    add("--output-delta", metavar="FOLDER", help="Delta table that gets the rows as well")
    add(
        "--vector-store",
        metavar="STORE",
        help="store that gets the vectors as well: chroma:FOLDER#collection or "
        "postgresql://…/database#table",
    )
    add(
        "--overwrite",
        action="store_true",
        default=None,
        help=f"replace an earlier run's output {_default(None, 'off')}",
    )
    add(
        "--mlflow",
        metavar="EXPERIMENT",
        nargs="?",
        const=True,
        help="experiment of MLflow that gets a run which says what was done; in a notebook on "
        "Databricks, without a name, its own (default: none)",
    )
    _add_price(add, "none")
    add(
        "--no-report",
        dest="report",
        action="store_false",
        default=None,
        help="write no page that shows what was done",
    )


def _add_repeats(add: Any) -> None:
    add(
        "--incremental",
        action="store_true",
        default=None,
        help="score only the files, or rows of a table, that are new since the last run "
        f"{_default(None, 'off')}",
    )
    add(
        "--incremental-col",
        metavar="COLUMN",
        help="column of a table whose values grow, by which new rows are recognised",
    )
    add(
        "--retry-errors",
        action="store_true",
        default=None,
        help="rescore an earlier run's rows with an error, before scoring what is left "
        f"{_default(None, 'off')}",
    )
    add(
        "--max-error-rows",
        metavar="N|P%",
        help=f"stop when more rows than this have an error {_default(None, 'no limit')}",
    )


def _add_cluster(add: Any) -> None:
    add("--engine", choices=list(ENGINES), help=f"what moves the rows {_default('engine')}")
    add(
        "--master",
        metavar="URL",
        help="Spark master: local[2], spark://host:7077, sc://host:15002 "
        f"{_default(None, 'as the environment says')}",
    )
    add(
        "--num-workers",
        metavar="N",
        type=int,
        help=f"model replicas {_default(None, 'one per GPU or CPU slot; engine local on CPUs: 1')}",
    )
