import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from sparkinfer import cli
from sparkinfer.api import functions
from sparkinfer.arguments import parse_arguments
from sparkinfer.cli import main
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError
from sparkinfer.report.facts import read_facts


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [1, 2], "text": ["good", "bad film"], "y": [0, 1]}), path)
    return path


def arguments(source: Path, classifier: Path, **options: str) -> list[str]:
    given = {
        "input": str(source),
        "output": str(source.parent / "out"),
        "model": str(classifier),
        "input-col": "text",
        "engine": "local",
        "dtype": "float32",
        **options,
    }
    return ["score", *(part for key, value in given.items() for part in (f"--{key}", value))]


def scored(source: Path) -> pd.DataFrame:
    return pads.dataset(str(source.parent / "out"), format="parquet").to_table().to_pandas()


def test_score_writes_rows_and_says_what_it_did(
    source: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(source, classifier), "--label-col", "y"]) == 0
    said = capsys.readouterr()
    rate = r"\(.+ rows/s, loading the model included\)"
    assert re.match(rf"Scored 2 rows in \d+ s {rate} on 1 CPU slot ", said.out)
    assert re.search(r" with \w+ in float32\.\n", said.out)
    assert "accuracy " in said.out
    assert str(source.parent / "out") in said.out
    assert "2 of 2 rows, 1 of 1 chunks" in said.err
    assert scored(source)["id"].tolist() == [1, 2]


def test_options_of_file_and_set_reach_the_run(source: Path, classifier: Path) -> None:
    file = source.parent / "run.yaml"
    file.write_text(f"model: {classifier}\ninput: {source}\ninput_col: nothing\nengine: local\n")
    output = source.parent / "out"
    given = (
        f"score --config {file} --input-col text --carry-cols id --output {output} "
        "--set output_prefix=m_ --max-batch-tokens 8"
    )
    assert main(given.split()) == 0
    assert scored(source).columns.tolist()[:2] == ["id", "m_prediction"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"input-col": "txt"}, ["input_col='txt'", "did you mean 'text'?"]),
        ({"input": "/nowhere/x.parquet"}, ["'/nowhere/x.parquet' does not exist"]),
        ({"task": "translate"}, ["task='translate'", "text-classification"]),
        ({"model": "/nowhere/model"}, ["/nowhere/model"]),
        ({"device": "cuda"}, ["device='cuda'", "--device cpu"]),
        ({"set": "batching.window=3"}, ["'batching.window'", "'batching.window_rows'"]),
        ({"master": "local[2]"}, ["master='local[2]' with engine='local'"]),
        ({"config": "/nowhere/run.yaml"}, ["'/nowhere/run.yaml' cannot be read"]),
    ],
)
def test_wrong_use_is_one_line_with_what_to_do_and_exit_code_2(
    source: Path,
    classifier: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str],
    parts: list[str],
) -> None:
    assert main(arguments(source, classifier, **options)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("sparkinfer: error: ")
    assert said.err.count("\n") == 1
    for part in parts:
        assert part in said.err
    assert not (source.parent / "out").exists()


def test_a_model_folder_without_weights_is_wrong_use(
    source: Path, tmp_path: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in classifier.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    assert main(arguments(source, bare)) == 2
    assert "weights" in capsys.readouterr().err


def test_a_finished_run_is_done_and_another_one_needs_overwrite(
    source: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(source, classifier)) == 0
    capsys.readouterr()
    assert main(arguments(source, classifier)) == 0
    assert "Nothing to do: all 2 rows had been scored before." in capsys.readouterr().out
    other = [*arguments(source, classifier), "--max-length", "8"]
    assert main(other) == 2
    assert "max_length was None, is 8" in capsys.readouterr().err
    assert main([*other, "--overwrite"]) == 0


def test_progress_as_json_is_one_object_a_line(
    source: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(source, classifier), "--progress", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert events[-1]["event"] == "end"
    assert (events[-1]["rows"], events[-1]["chunks"]) == (2, 1)


def test_status_tells_what_is_done_and_wrong_use_from_no_run(
    source: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(source.parent / "out")
    assert main(["status", output]) == 2
    assert "holds no manifest of a run" in capsys.readouterr().err
    main(arguments(source, classifier))
    capsys.readouterr()
    assert main(["status", output]) == 0
    assert "rows       2 of 2 (100.0%), 1 of 1 chunks" in capsys.readouterr().out
    assert main(["status", output, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["rows"], status["missing"]) == ("finished", 2, [])


def test_a_price_and_no_report_change_nothing_in_the_output(
    source: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments(source, classifier), "--price-per-hour", "0"])
    assert "--price-per-hour: '0': expected a number above 0" in capsys.readouterr().err
    assert main([*arguments(source, classifier), "--price-per-hour", "2.5", "--no-report"]) == 0
    facts = read_facts(str(source.parent / "out"))
    [session] = facts.sessions
    assert (session.price_per_hour, session.options["report"]) == (2.5, False)
    assert not {"price_per_hour", "report"} & facts.status.settings.keys()
    assert main(arguments(source, classifier)) == 0
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["score"]])
def test_help_tells_the_exit_codes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "130 stopped by Ctrl-C, 143 by SIGTERM" in said


def test_doctor_exits_with_1_for_what_would_go_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["doctor", "--engine", "local", "--output", "/proc/nothing/here"]
    assert main(given) == 1
    assert re.search("ERROR +output.*/proc/nothing/here", capsys.readouterr().out)
    assert main(["doctor", "--set", "modle=3"]) == 2
    assert main(["doctor", "--engine", "local", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["error"] == 0


def test_an_output_below_a_file_is_wrong_use(
    source: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(source, classifier, output=f"{source}/out")) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err


def test_debug_shows_where_an_error_comes_from(source: Path, classifier: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sparkinfer"),
            *arguments(source, classifier, **{"input-col": "t"}),
            "--debug",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "InputError" in done.stderr


def test_a_reader_that_ends_first_is_no_error() -> None:
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    assert reader.stdin is not None
    reader.wait()
    done = subprocess.run(
        [sys.executable, "-m", "sparkinfer", "doctor", "--engine", "local"],
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        text=True,
    )
    reader.stdin.close()
    assert (done.returncode, done.stderr) == (141, "")


def test_a_standard_output_that_is_closed_is_no_error() -> None:
    command = [sys.executable, "-m", "sparkinfer", "doctor", "--engine", "local"]
    closing = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closing, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_demo_scores_the_carried_sample_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    assert main(["demo", "--engine", "local", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ *id +text", said, re.M)
    assert "accuracy          0.9" in said
    frame = pads.dataset(str(output), format="parquet").to_table().to_pandas()
    assert frame["id"].is_unique
    assert frame["error"].notna().sum() == frame["text"].isna().sum() > 0
    assert frame["truncated"].astype(bool).sum() > 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["score", "--engine", "locl"],
            "--engine 'locl': expected one of pandas_udf, horovod, local; did you mean 'local'?",
        ),
        (
            ["doctor", "--dtype", "fp8"],
            "--dtype 'fp8': expected one of auto, float32, bfloat16, float16, int8; see sparkinfer "
            "doctor --help",
        ),
        (["scor"], "COMMAND 'scor': expected one of score, search, status, report, doctor, tune, "
         "compare, demo; "
         "did you mean 'score'?"),
        (["score", "--imput", "x"], "unknown option --imput; did you mean --input?"),
        (["status", "out", "--zzz=1"], "unknown option --zzz; see sparkinfer status --help"),
        (["score", "--model"], "--model: expected one argument; see sparkinfer score --help"),
        (
            ["tune", "--num-workers", "two"],
            "--num-workers 'two': expected a whole number; see sparkinfer tune --help",
        ),
        (["search", "store"], "the following arguments are required: TEXT; see sparkinfer search "
         "--help"),
        (["status", "a", "b"], "1 argument(s) too many, which belong to no option; see sparkinfer "
         "status --help"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line_that_names_the_nearest(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(given)
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"sparkinfer: error: {said}\n")


def test_help_is_in_groups_and_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    said = capsys.readouterr().out
    titles = re.findall(r"^(\w[\w ]*):$", said, re.M)
    assert titles[-8:] == [
        *("what to score", "model", "output", "repeated runs", "speed", "cluster", "all options"),
        "messages",
    ]
    words = " ".join(said.split())
    assert "moves the rows (default: pandas_udf)" in words
    assert words.count("(default: auto)") >= 4


def test_a_run_ends_with_its_labels_and_first_rows(
    source: Path,
    classifier: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = "a very good film " * 20
    pq.write_table(pa.table({"id": range(9), "text": [long] * 9}), source)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(arguments(source, classifier)) == 0
    said = capsys.readouterr().out
    [label] = set(pads.dataset(source.parent / "out").to_table()["prediction"].to_pylist())
    assert f"labels     {label} 9\n" in said
    shown = said.split("\n\n")[-1].splitlines()
    assert shown[0].split()[:3] == ["id", "text", "prediction"]
    assert [row.split()[0] for row in shown[1:]] == ["0", "1", "2", "3", "4"]
    assert long[:40] in shown[1]
    assert long not in shown[1]


def test_a_demo_that_fails_shows_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise JobError("it failed")

    monkeypatch.setattr(functions, "run_job", fail)
    assert main(["demo", "--engine", "local", "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr() == ("", "sparkinfer: error: it failed\n")


@pytest.mark.parametrize(
    ("given", "experiment"),
    [
        (["--mlflow"], True),
        (["--mlflow", "123"], "123"),
        (["--mlflow", "a: b"], "a: b"),
        ([], None),
    ],
)
def test_mlflow_takes_the_name_of_an_experiment_or_none(given: list[str], experiment: Any) -> None:
    options = parse_arguments(["score", "--model", "m", "--input-col", "text", *given])
    assert cli._config(options, ScoringConfig).mlflow.experiment == experiment
