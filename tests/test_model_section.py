"""Several models in one configuration: what each section gives, takes over and may not do."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.cli import main
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError


def make(**options: Any) -> ScoringConfig:
    return ScoringConfig(**{"input_col": "text", "models": {"a": "m1", "b": "m2"}, **options})


def test_a_run_with_one_model_is_its_own_section() -> None:
    config = ScoringConfig(model="m", input_col="text")
    assert config.by_model == {"": config}


def test_a_section_takes_what_it_does_not_give_from_the_run() -> None:
    config = make(
        dtype="float32",
        label_col="y",
        batching={"window_rows": 64},
        models={
            "a": "m1",
            "b": {"model": "m2", "dtype": "bfloat16", "batching": {"max_batch_rows": 7}},
        },
    )
    a, b = config.by_model.values()
    assert [one.model for one in (a, b)] == ["m1", "m2"]
    assert [one.output_prefix for one in (a, b)] == ["a_", "b_"]
    assert [one.dtype for one in (a, b)] == ["float32", "bfloat16"]
    assert [one.label_col for one in (a, b)] == ["y", "y"]
    assert (b.batching.window_rows, b.batching.max_batch_rows) == (64, 7)
    assert a.models == b.models == {}


def test_what_a_section_gives_survives_a_copy_and_a_pickle() -> None:
    config = make(models={"a": {"model": "m1", "output_prefix": ""}, "b": "m2"})
    copied = pickle.loads(pickle.dumps(config.replace(overwrite=True)))
    assert [one.output_prefix for one in copied.by_model.values()] == ["", "b_"]
    assert copied.by_model["a"].overwrite


def test_a_sections_text_replaces_that_of_the_run() -> None:
    config = ScoringConfig(
        input_template="{title} {body}",
        template={"null": "-"},
        models={"a": "m1", "b": {"model": "m2", "input_col": "title"}},
    )
    a, b = config.by_model.values()
    assert (a.input_col, a.input_template, a.template.null) == (None, "{title} {body}", "-")
    assert (b.input_col, b.input_template, b.template.null) == ("title", None, None)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"model": "m"}, ["model='m' with models 'a', 'b'"]),
        ({"models": {"": "m"}}, ["the name '' of a model", "--model NAME=PATH"]),
        ({"models": {"a b": "m"}}, ["the name 'a b' of a model"]),
        ({"models": {1: "m"}}, ["the name 1 is an integer", "quotes"]),
        ({"models": {"a": 5}}, ["models.a.model=5", "expected a string"]),
        ({"models": {"a": {}}}, ["'models.a.model' is required"]),
        ({"models": "m"}, ["models='m'", "a mapping of names to groups"]),
        ({"models": {}}, ["option 'model' is required"]),
        (
            {"models": {"a": {"model": "m", "dtyp": "float32"}}},
            ["unknown option 'models.a.dtyp'", "did you mean 'models.a.dtype'"],
        ),
        (
            {"models": {"a": {"model": "m", "output": "x"}}},
            ["unknown option 'models.a.output'"],
        ),
        (
            {"models": {"a": {"model": "m", "batching": {"window_row": 1}}}},
            ["'models.a.batching.window_row'", "'models.a.batching.window_rows'"],
        ),
        (
            {"models": {"a": "m", "A": "n"}},
            ["models.a and models.A have one output_prefix, 'A_'"],
        ),
        ({"output_prefix": "x_"}, ["models.a and models.b have one output_prefix, 'x_'"]),
        (
            {"models": {"a": {"model": "m", "label_col": "text"}}},
            ["models.a: label_col='text' is also the input column"],
        ),
        ({"input_col": None}, ["models.a: option 'input_col' is required"]),
    ],
)
def test_wrong_sections_are_refused_in_a_line(options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        make(**options)
    for part in parts:
        assert part in raised.value.message
    assert "\n" not in raised.value.message


def test_overrides_reach_into_a_section(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "input_col: text\n"
        "models:\n"
        "  a: m1\n"
        "  b: {model: m2, task: {name: text-classification}, max_length: 9}\n"
    )
    config = ScoringConfig.load(
        file,
        ["models.a.dtype=float32", "models.b.batching.window_rows=7", "models.c=m3"],
        models={"b": "other"},
    )
    assert {name: one.model for name, one in config.by_model.items()} == {
        "a": "m1",
        "b": "other",
        "c": "m3",
    }
    assert config.by_model["a"].dtype == "float32"
    assert config.by_model["b"].batching.window_rows == 7
    assert config.by_model["b"].max_length == 9


@pytest.mark.parametrize(
    ("given", "model", "models"),
    [
        (["m"], "m", {}),
        (["a=m1", "b=m2"], None, {"a": "m1", "b": "m2"}),
        (["a=s3://bucket/day=7"], None, {"a": "s3://bucket/day=7"}),
        (["s3://bucket/day=7/m"], "s3://bucket/day=7/m", {}),
        (["./day=7"], "./day=7", {}),
        (["/data/day=7"], "/data/day=7", {}),
    ],
)
def test_a_value_of_model_is_a_name_and_a_path_or_a_path_alone(
    given: list[str], model: str | None, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ScoringConfig] = []
    monkeypatch.setattr("sparkinfer.cli._run", lambda config, progress: seen.append(config) or 0)
    assert main(["score", "--input-col", "text", *(f"--model={one}" for one in given)]) == 0
    [config] = seen
    assert config.model == model
    assert {name: section.model for name, section in config.models.items()} == models


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["=m"], "the name '' of a model"),
        (["a=m", "a=n"], "the name is given to two models"),
        (["m", "n"], "give each of several models a name"),
        (["a=m", "n"], "model='n' with models 'a'"),
        (["a=m", "b=n", "--set", "models.b.output_prefix=a_"], "have one output_prefix, 'a_'"),
        (["a=m", "--set", "models.a.dtyp=x"], "did you mean 'models.a.dtype'"),
    ],
)
def test_wrong_models_on_the_command_line_are_wrong_use(
    given: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [one if one == "--set" or "models." in one else f"--model={one}" for one in given]
    assert main(["score", "--input-col", "text", *values]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert len(said.splitlines()) == 1
