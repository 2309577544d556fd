import pickle
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError
from sparkinfer.models.tasks import make_task
from sparkinfer.option_groups import MlflowConfig, TaskConfig

CONF = Path(__file__).parents[1] / "conf" / "base"


def make(**options: object) -> ScoringConfig:
    return ScoringConfig(**{"model": "m", "input_col": "text", **options})


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"max_lenght": 3}, ["'max_lenght'", "did you mean 'max_length'"]),
        ({"batching": {"window_row": 3}}, ["'batching.window_row'", "'batching.window_rows'"]),
        ({"max_batch_tokens": 3}, ["'max_batch_tokens'", "'batching.max_batch_tokens'"]),
        ({"num_workers": "two"}, ["num_workers='two'", "expected an integer of at least 1"]),
        ({"num_workers": 0}, ["num_workers=0", "an integer of at least 1"]),
        ({"overwrite": "yes"}, ["overwrite='yes'", "expected true or false"]),
        ({"csv": {"encoding": "base64"}}, ["encoding='base64'", "expected the name of an enc"]),
        ({"device": "tpu"}, ["device='tpu'", "'auto', 'cpu' or 'cuda'"]),
        ({"batching": {"window_rows": 0}}, ["batching.window_rows=0", "an integer of at least 1"]),
        ({"input_col": ""}, ["input_col=''", "a string that is not empty"]),
    ],
)
def test_a_bad_option_is_named_with_its_value_and_what_was_expected(
    options: dict[str, object], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        make(**options)
    for part in parts:
        assert part in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"engine": "local", "master": "local[2]"}, "master='local[2]' with engine='local'"),
        ({"engine": "local", "input_format": "table"}, "input_format='table'"),
        ({"device": "cpu", "dtype": "float16"}, "dtype='float16' with device='cpu'"),
        ({"device": "cuda", "dtype": "int8"}, "dtype='int8' with device='cuda'"),
        ({"acceleration": "none", "deepspeed": {"kernel_inject": True}}, "kernel_inject=true"),
        ({"label_col": "text"}, "label_col='text'"),
        ({"label_col": "y", "carry_cols": ("id",)}, "not in carry_cols=['id']"),
        ({"carry_cols": ()}, "carry_cols=[]"),
        ({"carry_cols": ("id", "id")}, "each named once"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, object], part: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        make(**options)
    assert part in raised.value.message


def test_a_missing_option_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError, match="give --input-col"):
        ScoringConfig(model="m")


def test_a_configuration_cannot_be_changed() -> None:
    config = make()
    with pytest.raises(FrozenInstanceError):
        config.model = "other"  # type: ignore[misc]


def test_replace_validates_like_a_new_one() -> None:
    assert make().replace(max_length=8).max_length == 8
    with pytest.raises(ConfigError, match="max_length=1"):
        make().replace(max_length=1)


def test_a_configuration_survives_pickling() -> None:
    config = make(batching={"max_batch_tokens": 64}, spark_conf={"spark.ui.enabled": "false"})
    assert pickle.loads(pickle.dumps(config)) == config


def test_overrides_win_over_arguments_and_those_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ninput_col: a\nmax_length: 8\nbatching: {window_rows: 5}\n")
    config = ScoringConfig.load(
        file, ["batching.window_rows=7", "batching.max_batch_rows=3"], input_col="b", task=None
    )
    assert (config.input_col, config.max_length, config.task.name) == (
        "b",
        8,
        "text-classification",
    )
    assert (config.batching.window_rows, config.batching.max_batch_rows) == (7, 3)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [("passage ", "passage "), ('"query: "', "query: "), ("'query: '", "query: "), ("null", None)],
)
def test_a_text_keeps_the_spaces_around_it(text: str, prompt: str | None) -> None:
    overrides = ["task.name=embedding", f"task.prompt={text}"]
    config = ScoringConfig.load(None, overrides, model="m", input_col="t")
    assert config.task.options == {"prompt": prompt}


def test_a_dotted_spark_setting_keeps_its_dots_and_its_text() -> None:
    config = ScoringConfig.load(
        None, ["spark_conf.spark.executor.cores=2"], model="m", input_col="t"
    )
    assert config.spark_conf == {"spark.executor.cores": "2"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b\n", "holds a list"),
        ("a: [", "not valid YAML"),
        ("a: !!python/name:os.system", "YAML"),
    ],
)
def test_a_file_that_holds_no_options_is_refused(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="run.yaml") as raised:
        ScoringConfig.load(file)
    assert part in raised.value.message


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(b"model: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        ScoringConfig.load(file)


def test_a_file_with_keys_that_are_no_names_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("1: a\n")
    with pytest.raises(ConfigError, match="option names"):
        ScoringConfig.load(file)


def test_an_override_of_a_part_of_one_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'model' is one value"):
        ScoringConfig.load(None, ["model.x=1"], model="m", input_col="t")


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        ScoringConfig.load(None, ["max_length"], model="m", input_col="t")


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_files_are_valid(file: Path) -> None:
    config = ScoringConfig.load(file)
    assert config.input
    assert config.output


def test_a_task_is_given_by_its_name_or_with_its_options(tmp_path: Path) -> None:
    plain = {"model": "m", "input_col": "a"}
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ninput_col: a\ntask: {name: embedding, pooling: cls}\n")
    assert ScoringConfig(**plain).task == TaskConfig("text-classification")
    assert ScoringConfig(**plain, task="embedding").task == TaskConfig("embedding")
    assert ScoringConfig.load(file).task == TaskConfig("embedding", {"pooling": "cls"})
    of_default = ScoringConfig.load(None, ["task.stride=3"], **plain).task
    assert of_default == TaskConfig("text-classification", {"stride": 3})
    both = ScoringConfig.load(None, ["task.stride=3"], **plain, task="ner").task
    assert both == TaskConfig("ner", {"stride": 3})
    with pytest.raises(ConfigError, match="task=3: expected the name of a task, or a mapping of"):
        ScoringConfig(**plain, task=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "option 'input_col' is required; give --input-col COLUMN, or --input-template"),
        ({"input_col": "a", "input_template": "{a}"}, "either is the text; give one of them"),
        ({"input_col": "a", "template": {"null": ""}}, "template.null='' without input_template"),
        ({"input_col": "a", "preprocess": {"version": "1"}}, "without preprocess.function"),
    ],
)
def test_where_texts_come_from_must_be_clear(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ScoringConfig(model="m", **options)


def test_a_task_says_which_options_it_has() -> None:
    with pytest.raises(ConfigError, match="unknown option 'task.strode'; there are none"):
        make_task(TaskConfig("text-classification", {"strode": 3}))
    with pytest.raises(ConfigError, match="it is an option of token-classification; give --task "):
        make_task(TaskConfig("text-classification", {"stride": 3}))


def test_an_override_has_a_value() -> None:
    """A shell takes the quotes off `--set template.null=""`, which would say none."""
    with pytest.raises(
        ConfigError, match="template.null': there is no value; write .*=null for no"
    ):
        ScoringConfig.load(None, ["template.null="], model="m", input_template="{a}")
    given = ScoringConfig.load(None, ['template.null=""'], model="m", input_template="{a}")
    assert given.template.null == ""


@pytest.mark.parametrize(
    "elsewhere",
    [{"vectors": {"store": "chroma:x#abc"}}, {"delta": {"table": "x"}}, {"table": {"name": "x"}}],
)
def test_what_a_function_returns_goes_nowhere_else(elsewhere: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(elsewhere))} with fn='a:b': a function is"):
        ScoringConfig(fn={"function": ["a:b"]}, **elsewhere)


def test_mlflow_is_an_experiment_or_a_group() -> None:
    def asked(overrides: Sequence[str] = (), **values: Any) -> MlflowConfig:
        return ScoringConfig.load(None, overrides, model="m", input_col="t", **values).mlflow

    assert asked(mlflow="reviews") == MlflowConfig(experiment="reviews")
    assert asked(mlflow=True).experiment is True
    assert asked(mlflow=False) == MlflowConfig()
    named = asked(["mlflow.run_name=nightly"], mlflow=True)
    assert named == MlflowConfig(experiment=True, run_name="nightly")
    with pytest.raises(ConfigError, match="without mlflow.experiment: nothing goes to MLflow"):
        asked(mlflow={"run_name": "nightly"})
    with pytest.raises(ConfigError, match="mlflow.experiment=' ': expected the name of an exper"):
        asked(mlflow=" ")
