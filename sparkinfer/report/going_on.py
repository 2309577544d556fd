"""What to do with an output next: commands, with this output's own names."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from sparkinfer.redaction import HIDDEN
from sparkinfer.report.facts import Facts
from sparkinfer.report.parts import Commands, Section

FLAGS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("input", "input_version", "output", "model", "input_col", "text_pair_col"),
            *("input_template", "engine", "label_col", "num_workers", "device", "acceleration"),
            *("dtype", "max_length", "revision", "input_format", "master", "incremental_col"),
            *("max_error_rows", "incremental", "dedupe", "overwrite", "retry_errors"),
            *("price_per_hour",),
        )
    },
    "task": "--task",
    "batching.max_batch_tokens": "--max-batch-tokens",
    "vectors.store": "--vector-store",
    "delta.table": "--output-delta",
    "table.name": "--output-table",
}
"""Options of the command line, by the names of theirs that have one."""

_MODEL = re.compile(r"models\.([^.]+)\.model")
"""Option that says which model one of several is."""

LEFT_OUT = ("retry_errors", "overwrite")
"""Options of a call that another command than the same does not repeat."""


def going_on(facts: Facts) -> Section:
    """Returns the next commands: go on, retry, look, read, compare."""
    items = (*_more_rows(facts), *_reading(facts.status.output))
    return Section("How to go on", "", (Commands("", items),))


def _more_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    status, asked = facts.status, _options(facts)
    output = shlex.quote(status.output)
    if status.state in ("broken off", "ready to finish"):
        yield "Go on where it was: the same command", command(asked)
    if status.state == "running":
        yield "See how far it is", f"sparkinfer status {output}"
    if status.errors:
        kept = {name: value for name, value in asked.items() if name not in LEFT_OUT}
        yield "Score the rows with an error once more", f"{command(kept)} --retry-errors"
    if status.state != "running":
        yield "Make this page again", f"sparkinfer report {output}"


def _options(facts: Facts) -> Mapping[str, Any]:
    """Returns what the last call was given; the little that is known if there is no record."""
    if facts.sessions:
        options = facts.sessions[-1].options
        if "output" in options:
            return options
        return {**options, "output": facts.status.output}
    return {"input": facts.status.settings.get("input"), "output": facts.status.output}


def command(options: Mapping[str, Any]) -> str:
    """Returns a call of the command line with these options, by dotted name."""
    return " ".join(
        ["sparkinfer score", *(word for one in options.items() for word in _words(*one))]
    )


def _words(name: str, value: Any) -> Iterator[str]:
    """Yields the words that give one option; what is hidden is left to the reader."""
    if value is None or (value is False and name in FLAGS):
        return
    if name in FLAGS:
        yield FLAGS[name]
        values = value if isinstance(value, list | tuple) and name == "input" else [value]
        yield from (shlex.quote(str(one)) for one in values if one is not True)
    elif name == "fn.function":
        values = value if isinstance(value, list | tuple) else [value]
        yield from (word for one in values for word in ("--fn", shlex.quote(str(one))))
    elif (named := _MODEL.fullmatch(name)) is not None:
        yield from ("--model", shlex.quote(f"{named[1]}={value}"))
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield "--set"
        yield shlex.quote(f"{name}={text}")


def _reading(output: str) -> Iterator[tuple[str, str]]:
    if HIDDEN in output:
        return
    path = json.dumps(output, ensure_ascii=False)
    yield "Read it with Spark", f"spark.read.parquet({path})"
    yield "Read it with pandas", f"pd.read_parquet({path})"
    yield (
        "Compare it with another model's output",
        f"sparkinfer compare {shlex.quote(output)} OTHER_OUTPUT",
    )
