from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sparkinfer
from sparkinfer.logs import get_logger

PACKAGE = Path(sparkinfer.__file__).parent


def test_a_line_holds_no_secrets_and_does_not_act(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("sparkinfer.test").warning("%s: %s", "https://u:p@host/x", "\x1b[31m")
    assert caplog.messages == [r"https://***@host/x: \x1b[31m"]


def test_a_long_line_is_shortened(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("sparkinfer.test").warning("x" * 41_265)
    assert len(caplog.messages[0]) < 2_000


def test_a_traceback_holds_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("s3://k:hidden@b/x\x1b")
    except ValueError:
        get_logger("sparkinfer.test").exception("failed")
    assert "s3://***@b/x\\x1b" in caplog.text
    assert "Traceback" in caplog.text
    assert "b/x\x1b" not in caplog.text


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.stem)
def test_a_module_takes_its_logger_from_there(file: Path) -> None:
    own = [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "getLogger"
        and not (node.args and isinstance(node.args[0], ast.Constant))  # another's, by its name
    ]
    assert not own or file.name == "logs.py"
