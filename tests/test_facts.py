"""What the pages know of an output: the sum of its records, its sessions, some rows with errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.cli import main
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import OutputError
from sparkinfer.report import samples
from sparkinfer.report.facts import ErrorSample, Facts, read_facts
from sparkinfer.report.status import describe_status, read_status
from sparkinfer.workers.statistics import ScoringStatistics
from tests.disk import Killed
from tests.made_up_engine import FAILURE, MadeUpEngine, job_of_eighty_rows, run_made_up
from tests.test_layouts import OUTPUTS
from tests.test_runner import kill_before
from tests.written import edit_record, part_of, record_file, records_of


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path)


def run(config: ScoringConfig, **options: Any) -> None:
    run_made_up(config, MadeUpEngine(config, **options))


def facts_of(config: ScoringConfig) -> Facts:
    return read_facts(str(config.output))


def test_facts_are_the_sum_of_what_workers_have_told(config: ScoringConfig) -> None:
    config = config.replace(dtype="float32")
    result = sparkinfer.run(config)
    facts = facts_of(config)
    status = read_status(str(config.output))
    assert replace(facts.status, writer=None) == replace(status, writer=None)
    assert [(chunk.number, chunk.rows, chunk.attempts) for chunk in facts.chunks] == [
        (number, 20, 1) for number in range(4)
    ]
    total = ScoringStatistics()
    for chunk in facts.chunks:
        total.add(chunk.statistics)
        assert list(chunk.devices.values()) == [20]
    assert total.rows == total.forward_rows + 12 == 80
    assert total.tokens == result.statistics.tokens
    [model] = facts.models.values()
    assert (model.labels, model.verdict["device"]) == (("NEGATIVE", "POSITIVE"), "cpu")
    assert (model.metrics, model.metrics_problem) == (result.metrics, None)
    assert "labels" in model.states
    found = model.distributions
    assert sum(found.lengths) == sum(found.labels.values()) == sum(found.confidences) == 68
    predicted = pq.read_table(str(config.output), columns=["prediction"])["prediction"]
    assert found.labels == {
        one["values"]: one["counts"] for one in predicted.drop_null().value_counts().to_pylist()
    }
    assert [session.outcome for session in facts.sessions] == ["finished"]


def test_status_tells_the_bottleneck_and_the_padding(
    config: ScoringConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config)
    assert "bottleneck" not in describe_status(read_status(str(config.output)))
    statistics = {"wait_s": 1.0, "forward_s": 9.0, "tokens": 60, "padded_tokens": 80}
    edit_record(config.output, 1, statistics=statistics)
    edit_record(config.output, 2, statistics={"forward_s": 14.0, "wait_s": 1.0})
    shown = describe_status(read_status(str(config.output)))
    assert "bottleneck the model, 92% of the time\npadding    25.0% of the model's tokens" in shown
    assert main(["status", str(config.output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bottleneck"] == ["forward", pytest.approx(0.92)]
    assert told["padding_share"] == 0.25


def test_each_model_has_its_own_distributions_and_metrics(
    classifier: Path, config: ScoringConfig
) -> None:
    models = {"one": {"model": str(classifier)}, "two": {"model": str(classifier), "max_length": 3}}
    options = {**config.as_dict(), "model": None, "models": models, "dtype": "float32"}
    config = ScoringConfig(**options)
    sparkinfer.run(config)
    facts = facts_of(config)
    assert list(facts.models) == ["one", "two"]
    one, two = facts.models.values()
    assert sum(one.distributions.truncated) == 0
    assert sum(two.distributions.truncated) == sum(two.distributions.lengths) == 68
    assert one.settings["max_length"] is None
    assert two.settings["max_length"] == 3
    assert one.metrics["labelled_rows"] == 68
    assert facts.status.metrics["one.labelled_rows"] == 68
    assert set(facts.sessions[0].verdict) == {"one", "two"}


def test_samples_are_a_few_rows_of_each_reason_with_what_they_carry(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, failing=(5, 13, 16, 44, 79), parts=2)
    found = facts_of(config).samples
    assert [sample.reason for sample in found] == ["text is null"] * 3 + [FAILURE] * 3
    assert found[0] == ErrorSample("text is null", {"id": "0", "label": "0"})
    by_id = {int(sample.row["id"]): sample.row["text"] for sample in found[3:]}
    assert by_id == {row: f"film {row}" for row in by_id}
    assert set(by_id) < {5, 13, 16, 44, 79}
    monkeypatch.setattr(samples, "MOST_REASONS", 1)
    assert {sample.reason for sample in facts_of(config).samples} == {"text is null"}


def test_no_more_files_are_read_than_it_takes(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config.replace(chunks={"target_rows": 10}), failing=(1, 2, 3, 4))
    opened: list[str] = []
    read = samples._samples

    def counted(path: str, *more: Any) -> Any:
        opened.append(Path(path).name.split("-")[1])
        return read(path, *more)

    monkeypatch.setattr(samples, "_samples", counted)
    assert len(facts_of(config).samples) == 6
    assert opened == ["00000000", "00000001"]


def test_values_of_samples_are_short_texts(
    config: ScoringConfig, classifier: Path, tmp_path: Path
) -> None:
    values = {
        "text": pa.array([None], pa.string()),
        "long": ["x" * 10_000],
        "numbers": [list(range(1000))],
        "data": [b"\x00\xff"],
        "nothing": pa.nulls(1, pa.string()),
        "share": [0.5],
    }
    source = tmp_path / "odd.parquet"
    pq.write_table(pa.table(values), source)
    config = config.replace(input=str(source), label_col=None, dtype="float32")
    sparkinfer.run(config)
    [sample] = facts_of(config).samples
    assert set(sample.row) == {"long", "numbers", "data", "share"}
    assert (sample.row["data"], sample.row["share"]) == (r"b'\x00\xff'", "0.5")
    assert max(map(len, sample.row.values())) <= samples.VALUE_LENGTH


def test_facts_of_an_unfinished_output_are_of_what_is_published(config: ScoringConfig) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(2), failing=(5,))
    part_of(config.output, 1).unlink()  # its record stands no longer
    facts = facts_of(config)
    assert (facts.status.state, facts.status.chunks) == ("broken off", 1)
    assert [chunk.number for chunk in facts.chunks] == [0]
    assert {int(sample.row["id"]) for sample in facts.samples} == {0, 5, 7, 14}
    assert facts.sessions == ()


def test_a_file_that_cannot_be_read_leaves_fewer_samples(
    config: ScoringConfig, caplog: pytest.LogCaptureFixture
) -> None:
    run(config, failing=(5,))
    path = part_of(config.output, 0)
    content = path.read_bytes()
    path.write_bytes(b"\xff" * (len(content) - 200) + content[-200:])
    assert {int(sample.row["id"]) for sample in facts_of(config).samples}.isdisjoint(range(20))
    assert "are not read from" in caplog.text


def test_a_chunk_that_was_scored_again_has_what_it_took_altogether(config: ScoringConfig) -> None:
    run(config, failing=(5,))
    took = {"rows": 20, "forward_s": 2.0}
    edit_record(config.output, 0, statistics=took, devices={"cpu on here": 20})
    run(config.replace(retry_errors=True))
    chunk = facts_of(config).chunks[0]
    assert (chunk.attempts, chunk.errors) == (2, 3)
    assert (chunk.statistics.rows, chunk.statistics.forward_s) == (20, 2.0)
    assert chunk.devices == {"cpu on here": 20}
    assert sum(records_of(config.output)[0].distributions[""]["labels"].values()) == 17


@pytest.mark.parametrize("output", ["finished", "half-done"])
def test_outputs_of_earlier_versions_have_facts_without_what_they_did_not_keep(output: str) -> None:
    facts = read_facts(str(OUTPUTS / "layout2" / output))
    assert facts.sessions == ()
    assert {chunk.rows for chunk in facts.chunks} == {10}
    assert all(chunk.statistics == ScoringStatistics() for chunk in facts.chunks)
    assert facts.models[""].distributions.lengths == []
    assert facts.models[""].metrics["labelled_rows"] > 0
    assert (facts.status.bottleneck, facts.status.padding_share) == (None, None)
    assert facts.samples


def test_a_folder_that_no_run_wrote_has_no_facts(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no manifest"):
        read_facts(str(tmp_path))


def test_distributions_that_make_no_sense_are_left_out(config: ScoringConfig) -> None:
    run(config)
    edit_record(config.output, 1, distributions={"": {"lengths": [1]}})
    assert record_file(config.output, 1).exists()
    assert sum(facts_of(config).models[""].distributions.lengths) == 51
