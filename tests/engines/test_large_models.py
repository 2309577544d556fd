"""A model in processes of its own under every engine; see `tests/test_large_models.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pytest

import sparkinfer
from sparkinfer.exceptions import JobError
from sparkinfer.models.backends.processes import ProcessesRuntime
from tests.engines.conftest import Run
from tests.engines.test_suite import reference, rows_of, write
from tests.tiny_models import sentences

pytest.importorskip("deepspeed", reason="needs the extra deepspeed")

SPLIT = ({"tensor": 2}, "deepspeed over 2 processes in float32")
OFFLOADED = ({"offload": "cpu"}, "deepspeed with weights in the host's memory in float32")
SLOW = [pytest.mark.spark, pytest.mark.slow]


@pytest.mark.parametrize(
    ("engine", "parallel", "way"),
    [
        pytest.param("local", *SPLIT, id="local-split"),
        pytest.param("local", *OFFLOADED, id="local-offloaded"),
        pytest.param("pandas_udf", *SPLIT, marks=pytest.mark.spark, id="pandas_udf-split"),
        pytest.param("pandas_udf", *OFFLOADED, marks=SLOW, id="pandas_udf-offloaded"),
        pytest.param("horovod", *SPLIT, marks=SLOW, id="horovod-split"),
        pytest.param("horovod", *OFFLOADED, marks=SLOW, id="horovod-offloaded"),
    ],
)
def test_each_row_is_scored_once_with_the_pipelines_result(
    run: Run, engine: str, classifier: Path, tmp_path: Path, parallel: dict[str, Any], way: str
) -> None:
    if "offload" in parallel:
        pytest.importorskip("accelerate", reason="DeepSpeed's ZeRO needs the package accelerate")
    texts = sentences(90)
    source = write(tmp_path / "in.parquet", [*texts, None])
    options: dict[str, Any] = {"parallel": parallel, "chunks": {"target_rows": 50}}
    if engine == "pandas_udf":
        options["num_workers"] = 1
    result, frame = run(source, **options)
    assert (result.rows, result.error_rows) == (91, 1)
    assert str(result.verdict.accepted) == way
    assert frame["id"].to_pylist() == list(range(91))
    expected = reference(classifier, texts)
    found = frame.slice(0, 90)
    assert found["prediction"].to_pylist() == [label for label, _ in expected]
    for numbers, (_, wanted) in zip(found["probabilities"].to_pylist(), expected, strict=True):
        assert numbers == pytest.approx(wanted, abs=1e-4)
    assert rows_of(frame)[90] == (90, None, None, None, "text is null")


def test_the_death_of_a_process_ends_the_run_which_then_goes_on(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sentences(90)
    config = sparkinfer.ScoringConfig(
        model=str(classifier),
        input=str(write(tmp_path / "in.parquet", list(texts))),
        input_col="text",
        output=str(tmp_path / "out"),
        engine="local",
        dtype="float32",
        parallel={"tensor": 2},
        chunks={"target_rows": 30},
    )
    score, scored = ProcessesRuntime.score, []
    others = set(psutil.Process().children())

    def deadly(self: ProcessesRuntime, tensors: Any, moved: Any) -> pa.RecordBatch:
        scored.append(len(tensors["input_ids"]))
        if len(scored) == 3:
            second = max(set(psutil.Process().children()) - others, key=psutil.Process.create_time)
            second.kill()
        return score(self, tensors, moved)

    with monkeypatch.context() as patch:
        patch.setattr(ProcessesRuntime, "score", deadly)
        with pytest.raises(JobError, match=r"a process of the model has ended \(signal"):
            sparkinfer.run(config)
    result = sparkinfer.run(config)
    assert (result.rows, result.error_rows) == (90, 0)
    frame = pads.dataset(config.output, format="parquet").to_table().sort_by("id")
    assert frame["prediction"].to_pylist() == [one for one, _ in reference(classifier, texts)]
    assert set(psutil.Process().children()) <= others
