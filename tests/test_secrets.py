"""Where secrets could come out: messages of the command and of Python, logs, the output's files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.api.functions import run
from sparkinfer.cli import main
from sparkinfer.config import ScoringConfig
from sparkinfer.doctor.case import ExaminedConfig
from sparkinfer.exceptions import ConfigError, SparkInferError

SECRET = "xyzzy" + "plugh"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return found.out + found.err


def exit_code(arguments: list[str]) -> int | str | None:
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--set", f"s3_secret={SECRET}"], "'s3_secret'"),
        (["--set", f"hf_tokne={SECRET}"], "'hf_tokne'"),
        (["--set", f"hf_tokne: {SECRET}"], "'hf_tokne'"),
        (["--set", f"model.password={SECRET}"], "'model.password'"),
        (["--set", f"spark_conf={SECRET}"], "spark_conf is a string"),
        (["--set", f"spark_conf.password={SECRET}"], "spark_conf with ['password']"),
        (["--pasword", SECRET], "--pasword"),
        ([f"--pasword={SECRET}"], "--pasword"),
        (["--overwrite", SECRET], "1 argument(s) too many"),
        ([f"--overwrite={SECRET}"], "--overwrite"),
        ([f"--in={SECRET}"], "--in"),
        (["--num-workers", f"https://u:{SECRET}@h"], "https://***@h"),
        (["--input", f"stored://u:{SECRET}@h/x.parquet"], "stored://***@h/x.parquet"),
        (["--input", f"/nowhere/u:{SECRET}@h/x"], "/nowhere"),
        (["--config", f"/nowhere/?sig={SECRET}"], "/nowhere"),
        (["--input", "/nowhere", "--model", f"jdbc:x;password={SECRET}"], "/nowhere"),
        (["--revision", f"password={SECRET}", "--model", "/nowhere/model"], "error"),
    ],
)
@pytest.mark.parametrize("command", ["score", "doctor"])
def test_the_command_does_not_repeat_a_secret(
    command: str,
    arguments: list[str],
    part: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--model", "/nowhere/model", "--input-col", "t", "--engine", "local"]
    given += ["--output", str(tmp_path / "out"), "--input", str(tmp_path)]
    code = exit_code([command, *given, *arguments, "--debug"])
    found = said(capsys)
    assert code in ({2} if command == "score" else {1, 2}), found
    assert SECRET not in found
    if command == "score":
        assert part in found.splitlines()[-1]


@pytest.mark.parametrize(
    "text",
    [
        f"spark_conf:\n  spark.secret: [{SECRET}]\n",
        f"spark_conf: {SECRET}\n",
        f"spark_conf: [{SECRET}]\n",
        f"s3_secret: {SECRET}\n",
        f"csv: {{secret: {SECRET}}}\n",
        f"spark_conf:\n  a: {SECRET}\n b: *{SECRET}\n",
        f"- {SECRET}\n",
        f"num_workers: {{password: {SECRET}}}\n",
        f"num_workers: 'password={SECRET}'\n",
    ],
)
def test_a_config_file_is_refused_without_its_secrets(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        ScoringConfig.load(file, model="m", input_col="t")
    assert SECRET not in str(raised.value)
    assert SECRET not in repr(raised.value)


@pytest.mark.parametrize("kind", [ScoringConfig, ExaminedConfig])
def test_a_configuration_is_printed_with_names_of_spark_settings_only(
    kind: type[ScoringConfig],
) -> None:
    config = kind(model=f"s3://key:{SECRET}@b/model", input_col="t", spark_conf={"spark.x": SECRET})
    assert SECRET not in repr(config)
    assert "spark.x" in repr(config)
    assert "s3://***@b/model" in repr(config)
    assert pickle.loads(pickle.dumps(config)).spark_conf == {"spark.x": SECRET}


def test_a_value_of_a_secret_setting_is_left_out_of_what_others_say() -> None:
    ScoringConfig(model="m", input_col="t", spark_conf={"spark.hadoop.x.secret": SECRET})
    assert SECRET not in str(SparkInferError(f"Spark says: bad value {SECRET}"))


def test_nothing_that_a_run_leaves_holds_a_secret(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"?password={SECRET}"
    folder.mkdir()
    pq.write_table(pa.table({"t": ["good"]}), folder / "in.parquet")
    given: dict[str, Any] = {"engine": "local", "dtype": "float32"}
    config = ScoringConfig(
        model=str(classifier),
        input_col="t",
        input=str(folder),
        output=str(tmp_path / "out"),
        **given,
    )
    run(config)
    left = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert left
    for file in left:
        assert SECRET.encode() not in file.read_bytes(), file
    assert main(["status", str(tmp_path / "out"), "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["input"].endswith("password=***")
