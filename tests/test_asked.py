from __future__ import annotations

import json
from typing import Any

import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.jobs.asked import asked_options


def asked(**options: Any) -> dict[str, Any]:
    return asked_options(ScoringConfig(**{"model": "m", "input_col": "text", **options}))


def test_only_what_is_not_as_by_default_is_told() -> None:
    assert asked(engine="pandas_udf", chunks={}, batching={"window_rows": 64}, dedupe=True) == {
        "model": "m",
        "input_col": "text",
        "batching.window_rows": 64,
        "dedupe": True,
    }


def test_a_task_is_told_by_its_name_and_options() -> None:
    found = asked(task={"name": "ner", "aggregation_strategy": "simple"})
    assert (found["task"], found["task.aggregation_strategy"]) == ("ner", "simple")
    assert "task" not in asked(task="text-classification")


def test_options_of_several_models_have_their_names() -> None:
    models = {"mood": {"model": "a", "max_length": 8}, "other": "b"}
    found = asked_options(ScoringConfig(input_col="text", models=models))
    assert found == {
        "input_col": "text",
        "models.mood.model": "a",
        "models.mood.max_length": 8,
        "models.other.model": "b",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"spark_conf": {"spark.anything": "swordfish"}},
        {"input": "s3://user:swordfish@bucket/in"},
        {"master": "sc://host:15002/;token=swordfish"},
    ],
)
def test_no_secret_is_told(options: dict[str, Any]) -> None:
    [name] = options
    found = asked(**options)
    assert "swordfish" not in json.dumps(found)
    assert any(key.startswith(name) for key in found)


def test_arguments_of_functions_are_told_as_json_without_secrets() -> None:
    fn = {
        "function": len,
        "constructor_kwargs": {"api_key": "swordfish", "path": "/a"},
        "args": (object(), [1, 2], "x" * 10_000),
    }
    found = asked_options(ScoringConfig(fn=fn))
    assert found["fn.constructor_kwargs.api_key"] == "***"
    assert found["fn.constructor_kwargs.path"] == "/a"
    assert found["fn.function"] == ["<built-in function len>"]
    assert len(json.dumps(found)) < 2_000
