"""Generation by the scorer, against `model.generate` of each row alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.generation import loop, steps
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import NOT_FINITE, Scorer
from sparkinfer.models.text_sources import ColumnText, TextSource
from sparkinfer.option_groups import BatchingConfig
from tests.model_options import options_of
from tests.tiny_generators import ENDS, POSITIONS, make_generator
from tests.tiny_models import sentences

DECODERS, ENCODER_DECODERS = ("gpt2", "llama"), ("t5", "bart")
SIDES = {**dict.fromkeys(DECODERS, "left"), **dict.fromkeys(ENCODER_DECODERS, "right")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("generators")
    return {kind: make_generator(made / kind, kind) for kind in SIDES}


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_generator(tmp_path_factory.mktemp("generators") / "chat", "llama", chat=True)


def options_for(kind: str, generation: dict[str, Any], **more: Any) -> ModelOptions:
    task = "text-generation" if kind in DECODERS else "text2text-generation"
    return options_of(task, generation={"max_new_tokens": 20, **generation}, **more)


def running(folder: Path, options: ModelOptions, side: Any = "left") -> RunningModel:
    length = POSITIONS - (options.task.generation.max_new_tokens if side == "left" else 0)
    layout = Layout(padding_side=side)
    limit = options.max_length or length
    return load_way(Checkpoint(folder, options, "cpu", limit, layout), PLAIN)


def score(
    model: RunningModel, options: ModelOptions, texts: Sequence[Any], **batching: int
) -> list[dict[str, Any]]:
    options = replace(options, batching=BatchingConfig(**batching))
    kind = pa.string()
    if any(isinstance(text, list) for text in texts):
        kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    rows = pa.RecordBatch.from_arrays([pa.array(texts, kind)], names=["text"])
    return [row for batch in Scorer(model, options).process([rows]) for row in batch.to_pylist()]


def generated(
    kind: str, folder: Path, texts: Sequence[Any], generation: dict[str, Any], **batching: int
) -> list[dict[str, Any]]:
    options = options_for(kind, generation)
    return score(running(folder, options, SIDES[kind]), options, texts, **batching)


def by_library(kind: str, folder: Path, texts: Sequence[str], **how: Any) -> list[list[int]]:
    """Returns the new tokens of `model.generate` for each text alone."""
    import transformers

    auto = "AutoModelForCausalLM" if kind in DECODERS else "AutoModelForSeq2SeqLM"
    module = getattr(transformers, auto).from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        how = {"max_new_tokens": 20, "pad_token_id": 0, **how}
        with torch.inference_mode():
            made = module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)
        tokens = made[0, ids.shape[1] if kind in DECODERS else 1 :].tolist()
        # Transformers 4.50 pads what its beams found to the longest that it might have been.
        end = next((place for place, token in enumerate(tokens) if token in ENDS), len(tokens))
        found.append(tokens[: end + 1])
    return found


def text_of(folder: Path, tokens: list[int]) -> str:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def check_against_the_library(
    kind: str, folder: Path, rows: list[dict[str, Any]], expected: list[list[int]], most: int = 20
) -> None:
    for row, tokens in zip(rows, expected, strict=True):
        assert row["generated_text"] == text_of(folder, tokens)
        assert row["n_generated_tokens"] == len(tokens)
        assert row["finish_reason"] == ("stop" if tokens[-1] in ENDS else "length")
        assert (row["error"], row["truncated"]) == (None, False)


@pytest.mark.parametrize("kind", SIDES)
def test_greedy_tokens_are_those_of_generate_for_the_row_alone(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    keep = steps.Steps.keep
    monkeypatch.setattr(
        steps.Steps, "keep", lambda self, rows: (left.append(len(rows)), keep(self, rows))[1]
    )
    texts = sentences(60)
    rows = generated(kind, folders[kind], texts, {}, max_batch_tokens=600)
    expected = by_library(kind, folders[kind], texts)
    check_against_the_library(kind, folders[kind], rows, expected)
    assert left, "no row left its batch before the others"
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    assert len({row["n_tokens"] for row in rows}) > 10


@pytest.mark.parametrize(
    "how",
    [
        {"min_new_tokens": 12},
        {"num_beams": 3, "length_penalty": 0.6, "early_stopping": True},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 2, "no_repeat_ngram_size": 3, "min_new_tokens": 5},
    ],
    ids=lambda how: "+".join(how),
)
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_other_modes_are_those_of_generate(
    kind: str, how: dict[str, Any], folders: dict[str, Path]
) -> None:
    texts = sentences(24)
    rows = generated(kind, folders[kind], texts, how)
    expected = by_library(kind, folders[kind], texts, **how)
    check_against_the_library(kind, folders[kind], rows, expected)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_models_own_settings_are_as_generate_has_them(kind: str, tmp_path: Path) -> None:
    own = {"repetition_penalty": 1.5, "min_new_tokens": 4, "max_new_tokens": 9}
    folder = make_generator(tmp_path / "model", kind, generation=own)
    texts = sentences(12)
    options = options_of("text-generation")
    checkpoint = Checkpoint(folder, options, "cpu", 80, Layout(padding_side="left"))
    rows = score(load_way(checkpoint, PLAIN), options, texts)
    expected = by_library(kind, folder, texts, max_new_tokens=9)
    check_against_the_library(kind, folder, rows, expected)
    assert checkpoint.task.made_tokens == checkpoint.task.appended_tokens == 9


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_part_of_the_input_that_a_setting_looks_at(tmp_path: Path, side: Any) -> None:
    own = {"encoder_repetition_penalty": 5.0}
    folder = make_generator(tmp_path / "model", "t5", generation=own)
    texts, options = sentences(40), options_for("t5", {})
    rows = score(running(folder, options, side), options, texts)
    check_against_the_library("t5", folder, rows, by_library("t5", folder, texts))


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_stop_text_ends_a_row_and_is_no_part_of_it(
    kind: str, beams: int, folders: dict[str, Path]
) -> None:
    texts = sentences(40)
    how = {"num_beams": beams}
    whole = generated(kind, folders[kind], texts, how)
    words = [word for row in whole for word in row["generated_text"].split()]
    stop = max(set(words), key=words.count)
    rows = generated(kind, folders[kind], texts, {**how, "stop": stop})
    stopped = 0
    for row, before in zip(rows, whole, strict=True):
        assert stop not in row["generated_text"]
        if beams > 1:
            continue  # a beam that a stop text ends may win where it would have gone on
        if stop not in before["generated_text"]:
            assert row == before
        else:
            assert row["generated_text"] == before["generated_text"].partition(stop)[0]
            stopped += row["n_generated_tokens"] < before["n_generated_tokens"]
            assert row["n_generated_tokens"] > len(row["generated_text"].split())
            assert row["finish_reason"] == "stop"
    assert stopped or beams > 1


SAMPLED = {"do_sample": True, "top_k": 20, "top_p": 0.9, "seed": 7}


@pytest.mark.parametrize("more", [{}, {"repetition_penalty": 1.3}], ids=["loop", "library"])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_what_is_drawn_does_not_depend_on_the_batch(
    kind: str, more: dict[str, Any], folders: dict[str, Path]
) -> None:
    texts = sentences(40)
    how = {**SAMPLED, **more, "temperature": 30.0 if kind == "t5" else 1.3}
    rows = generated(kind, folders[kind], texts, how)
    alone = generated(kind, folders[kind], texts, how, max_batch_rows=1)
    backwards = generated(kind, folders[kind], texts[::-1], how, max_batch_tokens=200)
    assert rows == alone == backwards[::-1]
    other = generated(kind, folders[kind], texts, {**how, "seed": 8})
    greedy = generated(kind, folders[kind], texts, more)
    for others in (other, greedy):
        same = sum(
            a["generated_text"] == b["generated_text"] for a, b in zip(rows, others, strict=True)
        )
        assert same < 10


def test_low_temperatures_and_one_candidate_are_greedy(folders: dict[str, Path]) -> None:
    texts = sentences(20)
    greedy = generated("llama", folders["llama"], texts, {})
    one = {"do_sample": True, "top_k": 1}
    assert generated("llama", folders["llama"], texts, one) == greedy
    cold = {"do_sample": True, "temperature": 1e-4}
    assert generated("llama", folders["llama"], texts, cold) == greedy


def test_a_prompt_that_does_not_fit_is_an_error_unless_a_limit_is_asked_for(
    folders: dict[str, Path],
) -> None:
    long = "red " * (POSITIONS - 20)
    options = options_for("gpt2", {})
    rows = score(running(folders["gpt2"], options), options, ["good", long, long + "blue"])
    assert [row["error"] for row in rows[:2]] == [None, None]
    assert rows[1]["n_tokens"] == POSITIONS - 20
    assert rows[2] == {
        **dict.fromkeys(rows[2]),
        **{"n_tokens": 0, "truncated": False},
        "error": "prompt: more than the 76 tokens that the model takes, as it generates up to 20; "
        "shorten it, or give max_length to have it cut",
    }
    cut = replace(options, max_length=4)
    texts = ["one two three four five six", "three four five six"]
    rows = score(running(folders["gpt2"], cut), cut, texts)
    assert [row["truncated"] for row in rows] == [True, False]
    assert rows[0]["generated_text"] == rows[1]["generated_text"]  # its end is kept


def test_an_encoder_decoder_cuts_the_end(folders: dict[str, Path]) -> None:
    options = replace(options_for("bart", {}), max_length=5)
    texts = ["one two three four five six", "one two three"]
    rows = score(running(folders["bart"], options, "right"), options, texts)
    assert [row["truncated"] for row in rows] == [True, False]
    assert rows[0]["generated_text"] == rows[1]["generated_text"]


def test_a_row_whose_numbers_are_not_finite_is_that_rows_error(folders: dict[str, Path]) -> None:
    texts = ["good film", "red red", "the plot", "bad"]
    for how in ({}, {"num_beams": 2}):
        options = options_for("llama", how)
        model = running(folders["llama"], options)
        whole = score(model, options, texts)
        red = model.encoder.tokenizer.convert_tokens_to_ids("red")

        def spoil(module: Any, inputs: Any, output: Any, red: int = red) -> Any:
            spoilt = (inputs[0] == red).any(dim=-1) & (inputs[0].shape[1] > 1)  # prompts alone
            return torch.where(spoilt[:, None, None], torch.nan, output)

        embeddings = model.runtime.module.get_input_embeddings()
        handle = embeddings.register_forward_hook(spoil)
        rows = score(model, options, texts)
        handle.remove()
        assert [row["error"] for row in rows] == [None, NOT_FINITE, None, None]
        assert rows[1]["generated_text"] is None
        assert [rows[i] for i in (0, 2, 3)] == [whole[i] for i in (0, 2, 3)]


def test_no_memory_for_a_batch_halves_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sentences(30)
    expected = generated("gpt2", folders["gpt2"], texts, {})
    sizes: list[int] = []
    step = steps.Decoder.next

    def limited(self: Any, tokens: Any) -> Any:
        sizes.append(len(tokens))
        if len(tokens) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, tokens)

    monkeypatch.setattr(steps.Decoder, "next", limited)
    assert generated("gpt2", folders["gpt2"], texts, {}) == expected
    assert max(sizes) > 4


def test_a_tokenizer_without_a_pad_token_pads(tmp_path: Path) -> None:
    bare = {"pad_token": None}
    folder = make_generator(tmp_path / "model", "gpt2", tokenizer=bare)
    texts = sentences(30)
    rows = generated("gpt2", folder, texts, {})
    check_against_the_library("gpt2", folder, rows, by_library("gpt2", folder, texts))


def messages(*said: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


def test_a_text_is_what_a_user_says_where_there_is_a_template(chat_model: Path) -> None:
    options = options_for("llama", {})
    model = running(chat_model, options)
    rows = score(model, options, ["good film", "a plot"])
    as_messages = score(
        model, options, [messages(("user", "good film")), messages(("user", "a plot"))]
    )
    assert rows == as_messages
    prompt = "[CLS]two good film[SEP]three "
    ids = model.encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert rows[0]["n_tokens"] == len(ids) == 6  # the first token stands there once
    with torch.inference_mode():
        made = model.runtime.module.generate(
            torch.tensor([ids]), max_new_tokens=20, pad_token_id=0
        )[0, 6:]
    assert rows[0]["generated_text"] == text_of(chat_model, made.tolist())


def test_the_template_may_be_left_out_and_the_system_may_speak(chat_model: Path) -> None:
    off = options_for("llama", {}, task_options={"chat_template": "off"})
    [raw] = score(running(chat_model, off), off, ["good film"])
    assert raw["n_tokens"] == 4  # with the tokenizer's own first and last
    system = options_for("llama", {}, task_options={"system_prompt": "not bad"})
    model = running(chat_model, system)
    said = messages(("system", "not bad"), ("user", "good film"))
    own = messages(("system", "awful"), ("user", "good film"))
    [of_text] = score(model, system, ["good film"])
    of_messages, of_own = score(model, system, [said, own])
    assert of_text == of_messages
    assert of_own["n_tokens"] == of_text["n_tokens"] - 1


def test_wrong_messages_are_their_rows_errors(chat_model: Path) -> None:
    options = options_for("llama", {})
    good = messages(("user", "good"))
    rows = score(
        running(chat_model, options),
        options,
        [
            good,
            [],
            messages(("user", None)),
            messages((None, "good")),
            messages(("judge", "good")),
            messages(("user", "good"), ("assistant", "film")),
            [None],
            None,
            good,
        ],
    )
    assert rows[0] == rows[-1]
    assert [row["error"] for row in rows] == [
        None,
        "the list of messages is empty",
        "message 0 has no content",
        "message 0 has no role",
        "chat template: TemplateError: no such role",
        "the last message is the assistant's, expected one that it can answer",
        "message 0 has no role",
        "text is null",
        None,
    ]


def test_a_text_that_looks_like_messages_is_a_text(chat_model: Path) -> None:
    options = options_for("llama", {})
    text = json.dumps(messages(("user", "good")))
    [row] = score(running(chat_model, options), options, [text])
    assert row["n_tokens"] > 10


def test_a_message_that_is_too_long_is_cut_where_that_is_asked_for(chat_model: Path) -> None:
    options = options_for("llama", {}, max_length=12, task_options={"system_prompt": "not bad"})
    model = running(chat_model, options)
    words = "one two three four five six seven"
    rows = score(model, options, [words, "one", "one two three four"])
    assert [row["truncated"] for row in rows] == [True, False, False]
    assert [row["n_tokens"] for row in rows] == [12, 9, 12]
    assert rows[0]["generated_text"] == rows[2]["generated_text"]
    asked = [messages(("user", "red " * 12), ("user", "one"))]
    [row] = score(model, options, asked)
    said = "prompt: its part that is never cut takes more than max_length=12 tokens"
    assert row["error"] == said


def test_messages_with_bytes_that_are_no_text_cost_their_row_alone(chat_model: Path) -> None:
    bad = pa.array([b"good", b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    structs = pa.StructArray.from_arrays([pa.array(["user", "user"]), bad], ["role", "content"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), structs)
    options = options_for("llama", {})
    source = (TextSource("input_col", ColumnText("input_col", "text", takes_messages=True)),)
    options = replace(options, texts=source)
    batch = pa.RecordBatch.from_arrays([lists], names=["text"])
    [scored] = Scorer(running(chat_model, options), options).process([batch])
    assert scored.column("error").to_pylist() == [None, "a message is not valid UTF-8"]


def test_rows_stay_in_the_batch_until_enough_have_ended() -> None:
    assert 0 < loop.MOST_IDLE < 0.5
