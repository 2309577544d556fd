"""What `run` returns, as people see it, and how it is shown that it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer import display
from sparkinfer.exceptions import OutputError, ResumeError
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.plan.plan import Workers
from sparkinfer.plan.progress import Progress
from tests.made_up_engine import MadeUpEngine, job_of_eighty_rows, run_made_up


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> sparkinfer.ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path)


def lines_of(result: sparkinfer.RunResult) -> dict[str, str]:
    """Returns the facts of a summary by their names."""
    lines = result.summary().splitlines()[1:]
    return {name: text.strip() for name, _, text in (line.partition(" ") for line in lines)}


def test_a_summary_is_a_sentence_and_facts(config: sparkinfer.ScoringConfig) -> None:
    result = replace(
        run_made_up(config), seconds=14.2, phases={"checks": 0.2, "load": 4, "score": 10}
    )
    first = result.summary().splitlines()[0]
    assert first == (
        "Scored 80 rows in 14 s (5.71 rows/s, loading the model included) on 1 CPU slot "
        "with PyTorch in float32."
    )
    assert str(result) == result.summary()
    facts = lines_of(result)
    assert (facts["errors"], facts["time"]) == ("12 rows", "load 4 s, score 10 s")
    assert facts["output"] == str(config.output)


def test_a_summary_names_what_ran_the_model_as_people_call_it(
    config: sparkinfer.ScoringConfig,
) -> None:
    result = run_made_up(config)
    verdict = replace(
        result.verdict,
        accepted=Acceleration("openvino", "bfloat16"),
        max_difference=0.003,
        tolerance=0.02,
        rejected=(("deepspeed in bfloat16", "it failed"),),
    )
    result = replace(result, verdict=verdict, workers=Workers("cuda", 2, gpus_each=2))
    assert " on 4 GPUs with OpenVINO in bfloat16.\n" in result.summary()
    assert (
        "\nnumbers    at most 0.003 from PyTorch in float32 on the probe texts, 0.02 allowed\n"
        "not used   DeepSpeed in bfloat16: it failed\n"
    ) in result.summary()


def test_a_run_with_nothing_to_do_says_so(config: sparkinfer.ScoringConfig) -> None:
    run_made_up(config)
    again = run_made_up(config)
    assert again.summary().startswith("Nothing to do: all 80 rows had been scored before.\n")
    assert list(again.phases) == ["checks", "workers", "model", "publish"]


def test_a_result_in_a_notebook_is_escaped(config: sparkinfer.ScoringConfig) -> None:
    result = replace(run_made_up(config), notes=("<script>alert(1)</script>",))
    page = result._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Scored 80 rows" in page


def test_phases_are_of_the_whole_call_and_in_order(config: sparkinfer.ScoringConfig) -> None:
    result = run_made_up(config)
    assert list(result.phases) == [
        "checks", "workers", "model", "gate", "input", "load", "score", "publish",
    ]  # fmt: skip
    assert 0 < sum(result.phases.values()) <= result.seconds


def test_the_rows_of_a_result_are_those_of_its_run_alone(
    config: sparkinfer.ScoringConfig, tmp_path: Path
) -> None:
    result = run_made_up(config)
    pq.write_table(pa.table({"id": [1]}), Path(str(config.output)) / "of-another.parquet")
    frame = result.read()
    assert sorted(frame["id"]) == list(range(80))
    assert {"text", "prediction", "error"} <= set(frame.columns)


def test_rows_that_another_run_has_replaced_are_not_read(config: sparkinfer.ScoringConfig) -> None:
    result = run_made_up(config)
    run_made_up(config.replace(overwrite=True))
    with pytest.raises(OutputError, match="holds no files of run .*run again"):
        result.read()


@pytest.mark.spark
def test_with_a_session_the_rows_are_read_by_spark(
    config: sparkinfer.ScoringConfig, spark: Any
) -> None:
    result = run_made_up(config)
    assert result.read(spark).count() == 80


def test_a_call_in_a_script_shows_its_progress_unless_it_is_turned_off(
    config: sparkinfer.ScoringConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config.replace(engine="local", dtype="float32", acceleration="none")
    monkeypatch.setattr(display, "SHOWN_AFTER_S", 0.0)
    sparkinfer.run(config)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("sparkinfer: checking options, input and output")
    assert "sparkinfer: 80 of 80 rows, 4 of 4 chunks" in said.err.splitlines()[-1]
    sparkinfer.run(config.replace(overwrite=True), progress="none")
    assert capsys.readouterr() == ("", "")


def test_the_display_is_open_from_the_start_and_closed_before_an_error_gets_out(
    config: sparkinfer.ScoringConfig,
) -> None:
    phases: list[str] = []

    @contextmanager
    def show(progress: Progress) -> Iterator[None]:
        phases.append(progress.phase)
        try:
            yield
        finally:
            phases.append("closed")

    with pytest.raises(sparkinfer.SparkInferError):
        sparkinfer.run(config.replace(engine="local", model="/nowhere"), progress=show)
    assert phases == ["checks", "closed"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dtype": "bfloat16"}, "dtype was 'float32', is 'bfloat16'"),
        ({"acceleration": "torch_compile"}, "acceleration was 'none', is 'torch_compile'"),
    ],
)
def test_a_finished_run_that_is_asked_to_run_otherwise_is_refused(
    config: sparkinfer.ScoringConfig, asked: dict[str, Any], said: str
) -> None:
    run_made_up(config)
    with pytest.raises(ResumeError, match=f"is finished, and was made in another way: {said}"):
        run_made_up(config.replace(**asked))
    assert run_made_up(config.replace(dtype="float32", acceleration="none")).workers is None


def test_a_finished_run_whose_way_was_rejected_then_has_nothing_to_do(
    config: sparkinfer.ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_worker = MadeUpEngine.on_one_worker

    def reject(self: MadeUpEngine, *of: Any) -> Any:
        return replace(one_worker(self, *of), rejected=(("none in bfloat16", "differs"),))

    monkeypatch.setattr(MadeUpEngine, "on_one_worker", reject)
    config = config.replace(dtype="bfloat16", acceleration="none")
    run_made_up(config)
    assert run_made_up(config).workers is None
