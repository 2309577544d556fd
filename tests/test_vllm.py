"""The backend `vllm`, on `tests/fake_vllm.py`: vLLM itself needs a GPU, and was not run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import torch

import sparkinfer
from sparkinfer.exceptions import ConfigError, DeviceError, EngineUnavailableError
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends import PLAIN, check_options, wanted_backends
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.vllm import VllmBackend
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import run_gate
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import Scorer
from sparkinfer.option_groups import ParallelConfig
from sparkinfer.plan.processors import make_processor
from sparkinfer.workers.slot import WorkerSlot
from tests import fake_vllm
from tests.engines.test_suite import write
from tests.model_options import options_of
from tests.sentence_models import NORMALIZE, add_sentence_files, dense, make_encoder, pooling
from tests.test_large_models import close_to, rows_of
from tests.tiny_generators import make_generator
from tests.tiny_models import make_classifier, sentences

WAY = Acceleration("vllm", "float32")
TEXTS = ["a film", *sentences(40), "word " * 60]


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    fake_vllm.calls.clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("vllm")
    return {
        "text-generation": make_generator(made / "llama", "llama"),
        "text-classification": make_classifier(made / "classifier"),
        "embedding": make_encoder(made / "encoder"),
    }


def options_for(task: str, **generation: Any) -> ModelOptions:
    how = {"max_new_tokens": 12, **generation} if task == "text-generation" else {}
    return options_of(task, generation=how, acceleration="vllm", dtype="float32")


def running(folder: Path, options: ModelOptions, way: Acceleration = WAY) -> RunningModel:
    checkpoint = Checkpoint(folder, options, "cpu", 60)
    if options.task.name == "text-generation":
        checkpoint.follow(replace(checkpoint.layout, padding_side="left"))
    return load_way(checkpoint, way)


@pytest.mark.parametrize("task", ["text-generation", "text-classification", "embedding"])
def test_rows_are_those_of_the_plain_model(folders: dict[str, Path], task: str) -> None:
    options = options_for(task)
    texts = [*TEXTS, None]
    found = rows_of(running(folders[task], options), options, texts)
    close_to(found, rows_of(running(folders[task], options, PLAIN), options, texts))
    [(_, prompts)] = fake_vllm.calls
    assert prompts == len(set(TEXTS))  # a window at once, each text once


def test_a_pair_keeps_its_kinds_of_tokens(folders: dict[str, Path]) -> None:
    options = options_of(columns=("a", "b"), acceleration="vllm", dtype="float32")
    rows = pa.RecordBatch.from_pydict({"a": ["good film", "bad"], "b": ["the plot", "red"]})
    found, wanted = (
        [row for batch in Scorer(model, options).process([rows]) for row in batch.to_pylist()]
        for model in (
            running(folders["text-classification"], options),
            running(folders["text-classification"], options, PLAIN),
        )
    )
    close_to(found, wanted)


@pytest.mark.parametrize(
    "generation",
    [
        {"min_new_tokens": 6},
        {"stop": ["awful", "film"]},
        {"repetition_penalty": 1.5},
    ],
)
def test_generation_options_are_followed(
    folders: dict[str, Path], generation: dict[str, Any]
) -> None:
    options, folder = options_for("text-generation", **generation), folders["text-generation"]
    found = rows_of(running(folder, options), options, TEXTS)
    close_to(found, rows_of(running(folder, options, PLAIN), options, TEXTS))
    assert {row["finish_reason"] for row in found} <= {"stop", "length"}


def parameters_of(folder: Path, texts: Sequence[str], **generation: Any) -> list[Any]:
    options = options_for("text-generation", **generation)
    model = running(folder, options)
    llm, seen = model.runtime._llm, []  # type: ignore[union-attr]

    def noting(prompts: Any, how: Any, **_: Any) -> Any:
        seen.extend(how)
        return fake_vllm.LLM.generate(llm, prompts, how, use_tqdm=False)

    llm.generate = noting
    rows_of(model, options, texts)
    return seen


def test_what_is_drawn_has_a_seed_of_the_prompt_and_ours(folders: dict[str, Path]) -> None:
    how = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 3}
    folder = folders["text-generation"]
    first = parameters_of(folder, ["good film", "the plot"], **how)
    again = parameters_of(folder, ["the plot", "red", "good film"], **how)
    other = parameters_of(folder, ["good film"], **{**how, "seed": 4})
    assert {(one.temperature, one.top_k, one.top_p) for one in first} == {(0.7, 5, 0.9)}
    assert {one.seed for one in first} < {one.seed for one in again}
    assert not {one.seed for one in first} & {one.seed for one in other}


def test_what_vllm_does_not_have_is_refused_by_name(folders: dict[str, Path]) -> None:
    options = options_for("text-generation", num_beams=3, no_repeat_ngram_size=2)
    with pytest.raises(ConfigError, match="'vllm' with no_repeat_ngram_size, num_beams of the"):
        running(folders["text-generation"], options)
    with pytest.raises(ConfigError, match="with task='fill-mask': vLLM runs text-generation, "):
        check_options(options_of("fill-mask", acceleration="vllm"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([pooling("max")], "that pools max: vLLM pools over all tokens by one of cls, lasttoken"),
        ([pooling("cls", "mean")], "that pools cls, mean: "),
        ([pooling("mean"), dense(32, 8)], "has the layers Dense over its vectors"),
    ],
)
def test_vectors_that_vllm_would_make_otherwise_are_refused(
    tmp_path: Path, files: list[Any], message: str
) -> None:
    folder = add_sentence_files(make_encoder(tmp_path / "model"), *files)
    with pytest.raises(ConfigError, match=message):
        running(folder, options_for("embedding"))


def test_vectors_have_the_length_that_the_model_gives_them(tmp_path: Path) -> None:
    folder = add_sentence_files(make_encoder(tmp_path / "model"), pooling("lasttoken"), NORMALIZE)
    options = options_for("embedding")
    found = rows_of(running(folder, options), options, TEXTS)
    close_to(found, rows_of(running(folder, options, PLAIN), options, TEXTS))


def test_the_gate_compares_it_with_float32(folders: dict[str, Path]) -> None:
    for task, folder in folders.items():
        model, verdict = run_gate(folder, options_for(task), WorkerSlot("cpu"), RowsAhead(200))
        assert verdict.accepted == WAY, verdict.rejected
        assert (verdict.rejected, verdict.reference) == ((), "float32")
        assert verdict.max_difference < 1e-4
        assert model.vocabulary is not None


def test_another_result_is_rejected(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fake_vllm.LLM.classify

    def turned(self: Any, prompts: Any, **how: Any) -> Any:
        outputs = right(self, prompts, **how)
        for one in outputs:
            one.outputs.probs.reverse()
        return outputs

    monkeypatch.setattr(fake_vllm.LLM, "classify", turned)
    options = options_for("text-classification")
    folder = folders["text-classification"]
    _, verdict = run_gate(folder, options, WorkerSlot("cpu"), RowsAhead(200))
    assert verdict.accepted == PLAIN
    assert verdict.rejected[0][0] == "vllm in float32"


def test_the_model_is_split_among_as_many_gpus(folders: dict[str, Path]) -> None:
    options = replace(options_for("text-generation"), parallel=ParallelConfig(tensor=2))
    [way] = VllmBackend().ways(options, "bfloat16", "cuda:0")
    assert str(way) == "vllm over 2 processes in bfloat16"
    model = running(folders["text-generation"], options, replace(way, dtype="float32"))
    arguments = model.runtime._llm.arguments  # type: ignore[union-attr]
    assert (arguments["tensor_parallel_size"], arguments["max_model_len"]) == (2, 72)


def score(model: RunningModel, *tokens: int, moved: Callable[[], None] = lambda: None) -> Any:
    ids = torch.tensor(tokens)[:, None]
    return model.run({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, moved)


def test_a_long_window_tells_that_it_moves(folders: dict[str, Path]) -> None:
    moves: list[int] = []
    model = running(folders["text-generation"], options_for("text-generation"))
    score(model, 4, 5, 6, moved=lambda: moves.append(1))
    assert len(moves) == 3


def test_a_text_that_is_given_up_and_an_engine_that_dies(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = running(folders["text-generation"], options_for("text-generation"))
    with pytest.raises(ValueError, match="cannot be used"):
        score(model, fake_vllm.FAILS_ON)
    with pytest.raises(DeviceError, match=r"vLLM's engine has died \(EngineCore encountered"):
        score(model, fake_vllm.DIES_ON)
    monkeypatch.setattr(fake_vllm.LLM, "_continue", _aborted)
    with pytest.raises(RuntimeError, match=r"vLLM gave a text up \(abort\)"):
        score(model, 5)


def _aborted(self: Any, prompt: Any, how: Any) -> Any:
    output = fake_vllm.CompletionOutput(0, "", [5], None, None, "abort")
    return fake_vllm.RequestOutput([5], [output])


def test_it_is_used_only_where_it_is_asked_for() -> None:
    assert "vllm" not in [backend.name for backend in wanted_backends("auto", "float16", "cuda:0")]


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm")
    with pytest.raises(EngineUnavailableError, match="pip install 'vllm>=0.15' on every node"):
        check_options(options_for("text-generation"))


def test_it_is_alone_in_its_run() -> None:
    several = {"a": "one", "b": "two"}
    config = sparkinfer.ScoringConfig(
        models=several, input="x", input_col="t", output="y", engine="local", acceleration="vllm"
    )
    with pytest.raises(ConfigError, match=r"models\.a: acceleration='vllm' with several models"):
        make_processor(config).check()


def test_a_run_is_chunks_rows_and_errors_as_ever(folders: dict[str, Path], tmp_path: Path) -> None:
    texts = [*sentences(90), None, "red " * 200]
    source = write(tmp_path / "in.parquet", texts)
    config: dict[str, Any] = {
        **{"model": str(folders["text-generation"]), "task": "text-generation"},
        **{"input": str(source), "input_col": "text", "output": str(tmp_path / "out")},
        **{"engine": "local", "dtype": "float32", "generation": {"max_new_tokens": 8}},
        "chunks": {"target_rows": 40},
    }
    result = sparkinfer.run(sparkinfer.ScoringConfig(**config, acceleration="vllm"))
    assert (result.rows, result.error_rows) == (92, 2)
    assert str(result.verdict.accepted) == "vllm in float32"
    plain = {**config, "output": str(tmp_path / "plain"), "acceleration": "none"}
    sparkinfer.run(sparkinfer.ScoringConfig(**plain))
    found, wanted = (
        pads.dataset(tmp_path / name, format="parquet").to_table().sort_by("id").to_pylist()
        for name in ("out", "plain")
    )
    close_to(found, wanted)
    fake_vllm.calls.clear()
    sparkinfer.run(sparkinfer.ScoringConfig(**config, acceleration="vllm"))
    assert not fake_vllm.calls  # what is done is not done again
