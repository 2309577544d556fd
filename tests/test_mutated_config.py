"""Configurations with mistakes of all kinds: valid, or refused in one short message."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkinfer import cli
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import UsageError

VALID = """\
model: m
input_col: text
input: [a, b]
carry_cols: [id]
max_length: 8
batching: {window_rows: 5}
spark_conf: {spark.x: "1"}
gate: {tolerance: 0.1}
"""

PIECES = [
    *("2024-13-45", "2024-01-01T25:61:61", "9" * 5000, "-" + "1" * 400, "0x" + "f" * 5000),
    *("1:99999999999:9", ".nan", "-.inf", "1e999", "!!timestamp x", "!!int ''", "!!float x"),
    *("!!bool maybe", "!!binary '='", "!!set {a, b}", "!!omap [a: 1]", "!!python/name:os.system"),
    *("!!null x", "[" * 400, "{a: " * 400, "&a [*a]", "*b", "&a", "<<: [1]", "<<: {a: 1}", "? x"),
    *(
        "? [1, 2]\n: 3",
        "? {a: 1}\n: 3",
        "=",
        "~",
        "yes",
        "'",
        '"',
        "\t",
        "\n",
        "\r",
        "\x00",
        "\x1b",
    ),
    *(
        "\u2028",
        "\ufeff",
        "\ud83d",
        "\U0001f600",
        "%",
        "@",
        "`",
        "|",
        ">",
        "---",
        "...",
        "%YAML 9.9",
    ),
    "%YAML 9.9",
    *("#", ":", ",", "- ", "x" * 5000, "base64", "a\x00b", "'\\x00'", "csv: {encoding: base64}"),
    *("{1: 2}", "[[]]", "batching: {1: 2}", "csv: {quote: ''}", "engine: local", "input: ''"),
    *("max_error_rows: -1", "1_0", "0o9", "0b2", "spark_conf: {1: 2}", "2001-12-14t21:59:43-99:99"),
]


def mutated(randomly: random.Random) -> str:
    text = VALID
    for _ in range(randomly.randint(1, 4)):
        start = randomly.randrange(len(text) + 1)
        end = min(len(text), start + randomly.choice((0, 0, 1, 2, 9)))
        kind = randomly.randrange(5)
        if kind < 2:
            text = text[:start] + randomly.choice(PIECES) + text[end:]
        elif kind == 2:
            text = text[:start] + text[end:]
        elif kind == 3:
            lines = text.splitlines(keepends=True) or [""]
            lines.insert(randomly.randrange(len(lines)), randomly.choice(lines))
            text = "".join(lines)
        else:
            line = randomly.choice(VALID.splitlines())
            text += f"{line.partition(':')[0]}: {randomly.choice(PIECES)}\n"
    return text


def files(folder: Path, count: int) -> Iterator[Path]:
    randomly = random.Random(20_240_513)
    path = folder / "run.yaml"
    for _ in range(count):
        path.write_bytes(mutated(randomly).encode("utf-8", "surrogatepass"))
        yield path


def refusal(path: Path) -> str | None:
    """Returns why a configuration is refused, None if it is valid."""
    try:
        repr(ScoringConfig.load(path))
    except UsageError as error:
        return str(error)
    return None


def test_a_mutated_configuration_is_valid_or_refused_in_a_short_message(tmp_path: Path) -> None:
    refused = [why for path in files(tmp_path, 3_000) if (why := refusal(path)) is not None]
    assert 100 < len(refused) < 2_970
    assert all(0 < len(why) <= 2_000 and "\n" not in why for why in refused)


def test_the_command_refuses_a_mutated_configuration_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", lambda config, progress: 0)
    for path in files(tmp_path, 50):
        code = cli.main(["score", "--config", str(path)])
        said = capsys.readouterr().err
        assert code in (0, 2)
        assert len(said) <= 2_000
        assert said.count("\n") == (1 if code else 0)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("max_length: 2024-13-45", "line 1, column 13"),
        (f"max_length: {'9' * 5000}", "line 1, column 13"),
        ("a: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_value_that_there_cannot_be_is_wrong_use(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    command = [sys.executable, "-m", "sparkinfer", "score", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert part in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "x" * 41_265],
        ["--set", f"max_length={'x' * 41_265}"],
        ["--set", f"{'x' * 41_265}=1"],
        ["--set", "max_length=[" + "\x1b, " * 9_000 + "]"],
        ["--input", "/nowhere/" + "x" * 41_265],
        ["--input", "\x1b" * 9_000],
        ["--model", "/nowhere/" + "x" * 41_265],
        ["--engine", "x" * 41_265],
        ["--" + "x" * 41_265],
        ["--num-workers", "x" * 41_265],
        ["--config", "/nowhere/" + "x" * 41_265],
    ],
    ids=lambda arguments: arguments[0][:20],
)
def test_no_message_is_long_or_acts_on_the_terminal(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["score", "--input-col", "t", "--engine", "local", "--output", str(tmp_path / "out")]
    try:
        code: int | str | None = cli.main(
            [*given, "--model", "/nowhere", "--input", str(tmp_path), *arguments]
        )
    except SystemExit as stop:
        code = stop.code
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert len(line) <= 2_000
    assert "\x1b" not in line
