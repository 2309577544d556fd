import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TextClassificationPipeline

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.held_module import HeldModule
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.running import load_way
from sparkinfer.models.tasks import make_task
from sparkinfer.models.tasks.base import scored_schema
from sparkinfer.models.tasks.label_names import label_names
from sparkinfer.models.tasks.text_classification import TextClassification
from sparkinfer.option_groups import TaskConfig
from tests.model_options import options_of
from tests.test_scorer import OPTIONS, score
from tests.tiny_models import make_classifier, sentences

PIPELINE_KNOWS_REGRESSION = "regression" in inspect.getsource(
    TextClassificationPipeline.postprocess
)


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        (("a", "b", "c"), {}),
        (("a", "b", "c"), {"problem_type": "single_label_classification"}),
        (("a", "b", "c"), {"problem_type": "multi_label_classification"}),
        (("score",), {}),
        (("score",), {"problem_type": "regression"}),
        (("x", "y"), {"problem_type": "regression"}),
    ],
)
def test_scores_follow_the_pipelines_choice_of_function(
    tmp_path: Path, labels: tuple[str, ...], config: dict[str, Any]
) -> None:
    if "regression" in config.values() and not PIPELINE_KNOWS_REGRESSION:
        pytest.skip("the pipeline of this transformers puts regressions through a sigmoid, too")
    folder = make_classifier(tmp_path / "model", labels=labels, **config)
    model = load_way(Checkpoint(folder, OPTIONS, "cpu"), PLAIN)
    texts = sentences(20)
    rows, _ = score(model, [texts])
    pipe = model.runtime.pipe
    pipe.model.double()  # so that only the rounding of the scored float32 is left
    for row, scores in zip(rows, pipe(texts, top_k=None), strict=True):
        expected = {item["label"]: item["score"] for item in scores}
        assert dict(zip(labels, row["probabilities"], strict=True)) == pytest.approx(
            expected, abs=5e-5
        )
        is_regression = config.get("problem_type") == "regression" or len(labels) == 1
        assert row["prediction"] == (None if is_regression else scores[0]["label"])
        if is_regression and len(labels) > 1:
            assert row["probability"] is None
        else:
            assert row["probability"] == pytest.approx(scores[0]["score"], abs=5e-5)


@pytest.mark.parametrize("ids", [(1, 2, 3), (0, 2), (0, 1, 3)])
def test_labels_without_an_output_of_their_own_are_refused(ids: tuple[int, ...]) -> None:
    config = SimpleNamespace(id2label={i: f"label {i}" for i in ids}, num_labels=len(ids))
    listed = ", ".join(map(str, ids))
    with pytest.raises(ModelLoadError, match=f"label ids of id2label are {listed}, expected 0 to"):
        label_names(config)


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="task='translate': expected one of "):
        make_task(TaskConfig("translate"))


def test_the_prefix_stands_before_every_scored_column() -> None:
    names = scored_schema(make_task(TaskConfig("text-classification")), "m_").names
    assert names == [
        "m_prediction", "m_probability", "m_probabilities", "m_n_tokens", "m_truncated", "m_error",
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["none", "deepspeed"])
def test_a_task_that_transformers_has_no_pipeline_for_runs_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend == "deepspeed":
        pytest.importorskip("deepspeed", reason="deepspeed is missing")
    folder, way = make_classifier(tmp_path / "model"), Acceleration(backend, "float32")
    texts = sentences(20)
    expected, _ = score(load_way(Checkpoint(folder, OPTIONS, "cpu"), way), [texts])
    monkeypatch.setattr(TextClassification, "pipeline", "no-such-pipeline")
    model: Any = load_way(Checkpoint(folder, OPTIONS, "cpu"), way)
    assert isinstance(model.runtime.pipe, HeldModule)
    assert score(model, [texts])[0] == expected


def test_files_that_matter_for_pairs_alone_are_no_part_of_other_models(
    classifier: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(classifier, tmp_path / "model"))

    def fingerprint(*columns: str) -> str:
        return (
            ModelScoring(str(folder), None, options_of(columns=columns))
            .resolved()
            .found.fingerprint
        )

    before = fingerprint("text"), fingerprint("text", "title")
    (folder / "config_sentence_transformers.json").write_text("{}")
    assert fingerprint("text") == before[0]
    assert fingerprint("text", "title") != before[1]
