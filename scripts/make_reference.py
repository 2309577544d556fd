"""Writes the pages of the documentation that are made of the code, below docs/.

    python scripts/make_reference.py            writes them
    python scripts/make_reference.py --check    ends with 1 if one is not what the code says

Options come from the dataclasses of the configuration, commands from the parser, functions and
classes from the sources, the list of decisions from their first lines, the picture from its script.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

from draw_architecture import picture  # noqa: E402

import sparkinfer  # noqa: E402
from sparkinfer.cli import main as command_of  # noqa: E402
from sparkinfer.config import ScoringConfig  # noqa: E402
from sparkinfer.engines import ENGINES  # noqa: E402
from sparkinfer.model_section import ModelSection  # noqa: E402
from sparkinfer.models.any_pipeline import PipelineOptions  # noqa: E402
from sparkinfer.models.backends import BACKENDS  # noqa: E402
from sparkinfer.models.tasks import TASKS  # noqa: E402
from sparkinfer.option_groups import TaskConfig  # noqa: E402
from sparkinfer.validation import Options  # noqa: E402

GENERATED = "<!-- Made of the code by scripts/make_reference.py: change it there. -->"
PLURALS = {int: "integers", float: "numbers", str: "texts", object: "values"}
SINGULARS = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "text",
    object: "any value",
    TaskConfig: "name, or mapping of `name` and options",
}

OPTIONS_INTRO = f"""{GENERATED}

# Options

Every option has one name, in all three places where it can be given:

- in a YAML file (`--config FILE`), groups as mappings;
- on the command line, as a flag of its own where the table shows one, else `--set NAME=VALUE`, with
  the value in YAML notation, such as `--set batching.window_rows=64`;
- in Python, `sparkinfer.ScoringConfig(name=value, group={{"name": value}})`.

`--set` overrides a flag, and a flag overrides the file. An unknown name, a wrong type and options
that contradict one another are refused before anything is read. `null` is YAML's word for Python's
`None`.
"""

MODELS_INTRO = """## Several models: `models.NAME`

A mapping of names to models that score the same input in one read. Each is a path, or a group of
these options, which replace those of the run where they are given: {names}. See
[tasks](../tasks.md#several-models-in-one-read).
"""


def docs_of_fields(kind: type) -> dict[str, str]:
    """Returns the texts below the fields of a class and its bases, by name."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if one.__module__.startswith("sparkinfer."):
            [body] = [node.body for node in classes_in(one.__module__) if node.name == one.__name__]
            for node, below in pairwise(body):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found[node.target.id] = text_of(below) or found.get(node.target.id, "")
    return found


def classes_in(module: str) -> Iterator[ast.ClassDef]:
    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text("utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def text_of(node: ast.stmt) -> str:
    """Returns a string that stands by itself, in one line; empty for other statements."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""


def type_of(hint: Any) -> str:
    """Returns what a value of a type hint is called on the page."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_of(a) for a in arguments if a is not NoneType))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple:
        return f"list of {PLURALS[arguments[0]]}"
    if origin is dict:
        return "mapping"
    return SINGULARS[hint]


def default_of(field: Field[Any]) -> str:
    value = field.default
    if value is MISSING:
        value = field.default_factory() if field.default_factory is not MISSING else None
    if isinstance(value, TaskConfig):
        value = value.name
    if isinstance(value, str) and value and " " not in value:
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Options)


def table_of(group: type, prefix: str = "", names: Mapping[str, str] | None = None) -> str:
    """Returns the options of a group, without inner groups, as a table.

    Args:
        group: their class.
        prefix: put before each name.
        names: flags of the command line, by the name of the option.
    """
    hints, docs = get_type_hints(group), docs_of_fields(group)
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for field in fields(group):
        if is_group(hints[field.name]) or field.name == "models":
            continue
        name, limit = prefix + field.name, field.metadata.get("limit")
        flag = (names or {}).get(name)
        cells = (
            f"`{name}`" + (f"<br>`{flag}`" if flag else ""),
            CHOICES.get(name) or type_of(hints[field.name]) + (f" {limit.text}" if limit else ""),
            default_of(field),
            re.sub(r"\bNone\b", "`null`", docs[field.name]),
        )
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


CHOICES = {
    "engine": ", ".join(f"`{name}`" for name in ENGINES),
    "acceleration": ", ".join(f"`{name}`" for name in ("auto", *BACKENDS)),
}
"""Values of options whose type says nothing of them."""

OWN_FLAGS = {
    "batching.max_batch_tokens": "--max-batch-tokens",
    "vectors.store": "--vector-store",
    "delta.table": "--output-delta",
    "table.name": "--output-table",
    "fn.function": "--fn",
}
"""Flags whose name is not that of their option."""


def flags() -> dict[str, str]:
    """Returns the flags of `sparkinfer score` by the option that each sets."""
    of_score = {
        action.dest: action.option_strings[-1]
        for action in commands()["score"]._actions
        if action.option_strings
    }
    return {**of_score, **OWN_FLAGS}


def configuration() -> str:
    """Returns the page of all options."""
    names = flags()
    hints = get_type_hints(ScoringConfig)
    of_model = [field.name for field in fields(ModelSection)]
    own = [
        field.name
        for field in fields(ScoringConfig)
        if field.name not in of_model and not is_group(hints[field.name])
    ]
    parts = [OPTIONS_INTRO, "## The run", only(table_of(ScoringConfig, "", names), own)]
    parts += ["## The model", table_of(ModelSection, "", names)]
    parts.append(MODELS_INTRO.format(names=", ".join(f"`{name}`" for name in of_model)).rstrip())
    for field in sorted(fields(ScoringConfig), key=lambda one: one.name):
        if is_group(hints[field.name]):
            group = hints[field.name]
            parts.append(f"## `{field.name}.*`\n\n{inspect.getdoc(group)}")
            parts.append(table_of(group, f"{field.name}.", names))
    parts.append("## `task.*`\n\nWhat they are depends on the task; see [tasks](../tasks.md).")
    for kind, tasks in options_of_tasks().items():
        parts.append(f"### {', '.join(f'`{name}`' for name in tasks)}")
        parts.append(table_of(kind, "task."))
    parts += ["### Any other pipeline", table_of(PipelineOptions, "task.")]
    return "\n\n".join(parts) + "\n"


def only(table: str, names: list[str]) -> str:
    """Returns the lines of a table that are of these options, and its head."""
    lines = table.splitlines()
    wanted = tuple(f"| `{name}`" for name in names)
    return "\n".join(lines[:2] + [line for line in lines[2:] if line.startswith(wanted)])


def options_of_tasks() -> dict[type, list[str]]:
    """Returns the names of the tasks that have options, by the class of these."""
    found: dict[type, list[str]] = {}
    for name, task in TASKS.items():
        if fields(task.options_class):  # type: ignore[arg-type]
            found.setdefault(task.options_class, []).append(name)
    return found


def command_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line, as it is when it gets its arguments."""
    caught: list[argparse.ArgumentParser] = []

    def stop(self: argparse.ArgumentParser, *_: Any) -> None:
        caught.append(self)
        raise SystemExit

    with patch.object(argparse.ArgumentParser, "parse_known_args", stop), suppress(SystemExit):
        command_of([])
    return caught[0]


def subcommands() -> argparse._SubParsersAction[argparse.ArgumentParser]:
    [found] = [a for a in command_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return found


def commands() -> dict[str, argparse.ArgumentParser]:
    """Returns the parsers of the commands by name."""
    return dict(subcommands().choices)


def command_line() -> str:
    """Returns the page of the command line."""
    helps = {one.dest: one.help or "" for one in subcommands()._choices_actions}
    listed = "".join(f"\n| [`{name}`](#{name}) | {helps[name]} |" for name in commands())
    parts = [
        f"{GENERATED}\n\n# Command line",
        "`sparkinfer COMMAND …`, or `python -m sparkinfer COMMAND …`.",
        f"| command | |\n|---|---|{listed}",
        as_sentence(str(command_parser().epilog)),
    ]
    of_score = {action.dest for action in commands()["score"]._actions} - {"progress"}
    for name, command in commands().items():
        parts.append(
            f"## `{name}` {{ #{name} }}\n\n{as_sentence(command.description or helps[name])}"
        )
        takes_all = name != "score" and of_score <= {action.dest for action in command._actions}
        parts += tables_of_groups(command, of_score if takes_all else {"help"})
        if takes_all:
            parts.append("and the options of [`score`](#score).")
    return "\n\n".join(parts) + "\n"


def tables_of_groups(command: argparse.ArgumentParser, hidden: set[str]) -> Iterator[str]:
    """Yields the arguments of a command, those of a group with a title of its own below it."""
    for group in command._action_groups:
        actions = [one for one in group._group_actions if one.dest not in hidden]
        if actions:
            title = "" if group.title in ("positional arguments", "options") else group.title
            rows = "".join(f"\n| {usage_of(one)} | {help_of(one)} |" for one in actions)
            yield f"| {title} | |\n|---|---|{rows}"


def as_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def usage_of(action: argparse.Action) -> str:
    """Returns an argument as it is typed, for a cell of a table."""
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    takes = action.nargs != 0 and action.option_strings
    value = action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper())
    several = " …" if action.nargs == "+" else ""
    given = f"{name} {value}{several}" if takes else name
    return f"`{given}`".replace("|", r"\|").replace("%%", "%")


def help_of(action: argparse.Action) -> str:
    return (action.help or "").replace("|", r"\|").replace("%%", "%")


def python() -> str:
    """Returns the page of what `import sparkinfer` offers."""
    parts = [
        f"{GENERATED}\n\n# Python",
        "What `sparkinfer` has. Options are in [configuration](configuration.md), the decorators "
        "of `sparkinfer.batching.dynamic` in [dynamic batching](../dynamic_batching.md).",
    ]
    functions = [name for name in sparkinfer.__all__ if name[0].islower()]
    classes = [name for name in sparkinfer.__all__ if name[0].isupper()]
    for title, names in (("Functions", functions), ("Classes", classes)):
        parts.append(f"## {title}")
        parts += [documented(name, *found(sparkinfer._HOME[name], name)) for name in names]
    return "\n\n".join([*parts, *errors()]) + "\n"


Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def found(module: str, name: str) -> tuple[Documented, str]:
    """Returns the definition of a name that a module has or imports, and the module that has it."""
    path = ROOT / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, Documented) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return found(str(node.module), name)
    raise LookupError(f"{module} has no {name}")


def documented(name: str, node: Documented, module: str) -> str:
    """Returns a definition with its signature and what its docstring says."""
    parts = [f"### `{name}` {{ #{name} }}"]
    if isinstance(node, ast.ClassDef):
        parts.append(markdown_of(ast.get_docstring(node) or ""))
        methods = [one for one in node.body if is_public(one)]
        parts += [
            f"#### `{signature(one, name)}`\n\n{markdown_of(ast.get_docstring(one) or '')}"
            for one in methods
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    else:
        call = with_values(signature(node, "sparkinfer", in_lines=True), module)
        parts.append(f"```py\n{call}\n```")
        parts.append(markdown_of(ast.get_docstring(node) or ""))
    return "\n\n".join(part for part in parts if part.strip())


def with_values(call: str, module: str) -> str:
    """Returns a signature with the values of the module's constants in place of their names."""
    return re.sub(
        r"=([A-Z][A-Z_]+)\b",
        lambda match: f"={getattr(importlib.import_module(module), match[1])!r}",
        call,
    )


def is_public(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    is_setter = any(
        isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list
    )
    return not node.name.startswith("_") and not is_setter


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef, of: str, in_lines: bool = False) -> str:
    """Returns how something is called, without the types; those are in the source."""
    if any(isinstance(d, ast.Name) and "property" in d.id for d in node.decorator_list):
        return f"{of}.{node.name}"
    arguments = ast.parse(f"def _({ast.unparse(node.args)}): ...").body[0].args  # a copy
    for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        one.annotation = None
    for one in (arguments.vararg, arguments.kwarg):
        if one is not None:
            one.annotation = None
    given = [a for a in arguments.args if a.arg not in ("self", "cls")]
    arguments.args = given
    text = ast.unparse(arguments)
    call = f"{of}.{node.name}({text})"
    if not in_lines or len(call) <= 88:
        return call
    return f"{of}.{node.name}(\n    " + ",\n    ".join(split_arguments(text)) + ",\n)"


def split_arguments(text: str) -> list[str]:
    """Returns the arguments of a signature one by one."""
    depth, parts = 0, [""]
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Source):(.*)$")


def markdown_of(docstring: str) -> str:
    """Returns a docstring of Google's form as Markdown."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        match = SECTION.match(line)
        entry = re.match(r"^    (\*{0,2}\w+): (.*)$", line)
        if match:
            section = match[1]
            lines += ["", f"**{section}**{f': {match[2].strip()}' if match[2] else ''}", ""]
        elif section and entry:
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif section and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            section = "" if line.strip() else section
            lines.append(line)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return re.sub(r"^\*\*(\w+)\*\*", r"**\1**", text, flags=re.MULTILINE)


def errors() -> list[str]:
    """Returns what the package raises, as its module draws it."""
    tree = ast.parse((ROOT / "sparkinfer" / "exceptions.py").read_text("utf-8"))
    drawn = (ast.get_docstring(tree) or "").split("\n\n")
    return [
        "## Errors",
        "Each is in `sparkinfer.exceptions`, unless the module is named beside it; the root is "
        "`sparkinfer.SparkInferError`, too.",
        f"```text\n{drawn[1]}\n```",
    ]


def decisions() -> str:
    """Returns the list of decisions, by the first line of each."""
    parts = [f"{GENERATED}\n\n# Decisions", "What was decided, why, and what follows from it."]
    rows = []
    for path in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        title = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
        rows.append(f"- {path.stem[:4]} · [{re.sub(r'^[0-9]+[:.] ', '', title)}]({path.name})")
    return "\n\n".join([*parts, "\n".join(rows)]) + "\n"


PAGES = {
    "reference/configuration.md": configuration,
    "reference/cli.md": command_line,
    "reference/python.md": python,
    "decisions/index.md": decisions,
    "images/architecture.svg": picture,
}


def main() -> int:
    """Writes or checks the pages and returns the exit code."""
    parser = argparse.ArgumentParser(description="Writes the pages that are made of the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one differs")
    is_check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / "docs" / name, make()
        if is_check and (not path.exists() or path.read_text("utf-8") != text):
            stale.append(name)
        if not is_check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"not as the code says: {', '.join(stale)}; run python scripts/make_reference.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
