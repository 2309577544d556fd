"""The examples of the page on dynamic batching run, and give what it says."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "dynamic_batching.md").read_text("utf-8")
NEEDS = ("fastapi", "httpx")


def examples(*headings: str) -> dict[str, Any]:
    """Returns the names that the examples below the headings define, run one after the other."""
    names: dict[str, Any] = {"__name__": "example"}
    for heading in headings:
        section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
        assert section is not None, heading
        for block in re.findall(r"^```python\n(.*?)^```", section[1], re.M | re.S):
            exec(compile(block, f"example of {heading!r}", "exec"), names)
    return names


def test_the_example_for_threads() -> None:
    names = examples("Threads")
    assert (names["one"], names["several"], names["in_time"]) == (5, [5, 5, 4], 5)


def test_the_example_for_threads_and_dicts_of_arrays() -> None:
    names = examples("Threads, dicts of arrays")
    assert names["scored"]["score"].tolist() == names["by_name"]["score"].tolist() == [7.0, 2.0]


def test_the_example_for_coroutines() -> None:
    assert examples("Coroutines")["answers"] == list(range(0, 200, 2))


def test_the_example_for_coroutines_and_dicts_of_arrays() -> None:
    names = examples("Threads, dicts of arrays", "Coroutines", "Coroutines, dicts of arrays")
    assert [one.tolist() for one in names["both"]] == [[3.0], [4.0]]


def test_the_example_of_a_method() -> None:
    assert examples("Threads", "Methods")["scaled"] == 15


def test_the_import_lines_for_code_of_the_other_package() -> None:
    names = examples("From the package `batched`")
    assert names["batched"].aio is names["aio"]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDS)),
    reason=f"{' and '.join(NEEDS)} are needed for this example only",
)
def test_the_example_of_a_web_service() -> None:
    import httpx

    names = examples("Coroutines", "In a web service")

    async def ask() -> tuple[list[Any], Any]:
        transport = httpx.ASGITransport(app=names["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            texts = ["is it?", "it is"] * 20
            made = (client.get("/label", params={"text": text}) for text in texts)
            answers = await asyncio.gather(*made)
            return [one.json()["label"] for one in answers], (await client.get("/stats")).json()

    labels, stats = asyncio.run(ask())
    assert labels == ["question", "statement"] * 20
    assert stats["batches"] < 40
    assert 0 < stats["fill"] <= 1
