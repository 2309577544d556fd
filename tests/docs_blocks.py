"""The code blocks of the README and of docs/, and the marks that say what becomes of each.

A mark is an HTML comment before a block, which no reader sees:

    <!-- run -->               it is run as it stands; `sparkinfer` by this process
    <!-- run: exit code 2 -->  the same, and ends so
    <!-- run: spark -->        it is run with `spark` and `df`, a session on local[2]
    <!-- run: chromadb -->     it is run where that package is installed
    <!-- file: NAME -->        it is the file NAME of the blocks that follow
    <!-- tested: PATH -->      that test runs it
    <!-- needs: WHAT -->       it needs what tests do not have; it is looked at only
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHELL, PYTHON, YAML = ("bash", "console", "sh"), ("python", "py"), ("yaml",)
COMMAND = re.compile(
    r"^\s*(\$ )?(\S*/)?(sparkinfer|make|pip3?|python3?|docker|spark-submit|databricks) \S", re.M
)
GENERATED = ROOT / "docs" / "reference"
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w.+-]*)[^`\n]*$")
_MARK = re.compile(r"^ *<!-- (?P<kind>run|file|tested|needs)(: (?P<value>.+?))? -->$")
_ENDS = ("&&", "||", "|", ";", ">", ">>", "2>&1", "2>")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: its file, from the repository's folder.
        line: of its first line, from 1.
        language: as it is named; empty: it is not.
        kind: of its mark: `run`, `file`, `tested`, `needs`; empty without one.
        value: what the mark says further.
        text: the code.
    """

    page: str
    line: int
    language: str
    kind: str
    value: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def wants_mark(self) -> bool:
        """Whether it is something that a reader might run."""
        if self.language in (*SHELL, *PYTHON, *YAML):
            return True
        return not self.language and COMMAND.search(self.text) is not None


def pages() -> list[Path]:
    """Returns the README and the pages of docs/ that people wrote."""
    found = [path for path in (ROOT / "docs").rglob("*.md") if GENERATED not in path.parents]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(found)]


def blocks_of(path: Path) -> Iterator[Block]:
    """Yields the blocks of a page in order."""
    mark: re.Match[str] | None = None
    fence: re.Match[str] | None = None
    start, body = 0, list[str]()
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if fence is None:
            fence = _FENCE.match(line)
            start, body = number + 1, []
            if fence is None and line.strip():
                mark = _MARK.match(line)
        elif line.strip() == "```":
            text = "\n".join(one.removeprefix(fence["indent"]) for one in body) + "\n"
            kind, value = (mark["kind"], mark["value"] or "") if mark else ("", "")
            page = path.relative_to(ROOT).as_posix()
            yield Block(page, start, fence["language"], kind, value, text)
            mark = fence = None
        else:
            body.append(line)
    assert fence is None, f"{path}: a block is not closed"


def lines_of(text: str) -> list[str]:
    """Returns the lines of a script, those that go on in the next one joined."""
    return text.replace("\\\n", " ").splitlines()


def arguments_in(line: str) -> list[str] | None:
    """Returns what follows `sparkinfer` in a line of a script, None if it calls no such command."""
    try:
        words = shlex.split(re.sub(r"(^|\s)# .*$", "", line))
    except ValueError:  # a line of a text within the script
        return None
    for place, word in enumerate(words):
        if Path(word).name in ("sparkinfer", "sparkinfer_main.py"):
            rest = words[place + 1 :]
            end = next((i for i, one in enumerate(rest) if one.startswith(_ENDS)), len(rest))
            return rest[:end]
    return None
