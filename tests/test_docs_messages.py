"""The messages that the page on troubleshooting explains are messages of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs_blocks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
PLACEHOLDER = re.compile(r"'?\b(PATH|NAME|VALUE|TABLE|CLASS|MODEL|NODE|HOST|N|M|X|Y)\b'?")
FILLED = "\0"
"""What stands in a message of the source for what is put into it."""


def quoted() -> list[str]:
    """Returns the messages in the first column of the page's tables."""
    tables = PAGE.read_text("utf-8").partition("## Messages and what to do")[2]
    return re.findall(r"^\| `(.+?)` \|", tables, re.M)


def messages() -> Iterator[str]:
    """Yields every text in the source of the package."""
    for path in (ROOT / "sparkinfer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else FILLED for p in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.fixture(scope="module")
def source() -> str:
    return "\n".join(messages())


def test_there_are_messages_on_the_page() -> None:
    assert len(quoted()) > 30


@pytest.mark.parametrize("message", quoted())
def test_a_message_is_one_of_the_package(message: str, source: str) -> None:
    for piece in message.split("…"):
        fixed = [re.escape(one) for one in PLACEHOLDER.split(piece.strip())[::2]]
        assert re.search(f"{FILLED}.{{0,3}}?".join(fixed), source), piece
