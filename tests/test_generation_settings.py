from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import sparkinfer
from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import run_gate
from sparkinfer.models.generation.draws import Draws, keys_of
from sparkinfer.models.options import ModelOptions
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.tiny_generators import VOCABULARY, make_generator
from tests.tiny_models import save_tokenizer


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_generator(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    params = {
        "summarization": {"prefix": "one two ", "max_length": 7, "num_beams": 2, "min_length": 3},
        "translation_en_to_de": {"prefix": "red "},
        "translation_en_to_fr": {"prefix": "blue "},
    }
    folder = tmp_path_factory.mktemp("models") / "t5"
    return make_generator(folder, "t5", task_specific_params=params)


def task_of(folder: Path, task: str = "text-generation", **options: Any) -> Any:
    return Checkpoint(folder, options_of(task, **options), "cpu").task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5, "do_sample": False}, "generation.top_k=5 without generation.do_sample=true"),
        ({"do_sample": True, "num_beams": 2}, "do_sample=true with num_beams=2: beams are not"),
        ({"num_beams": 1, "length_penalty": 2.0}, "generation.length_penalty without beams"),
        (
            {"min_new_tokens": 9, "max_new_tokens": 8},
            "generation.min_new_tokens=9 with generation.max_new_tokens=8: expected at most as",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected an integer of at least 1"),
        ({"do_sample": True, "top_p": 1.5}, "top_p=1.5: expected a number above 0 and up to 1"),
        ({"do_sample": True, "temperature": 0.0}, "expected a number greater than 0"),
        ({"do_sample": True, "temperature": math.inf}, "temperature=inf: expected a finite number"),
        ({"num_beams": 2, "length_penalty": math.nan}, "length_penalty=nan: expected a finite"),
        ({"stop": [""]}, "expected a string or a list of strings, none of them empty"),
    ],
)
def test_options_that_contradict_one_another_are_refused_before_anything(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of("text-generation", generation=options)


def test_generation_is_for_tasks_that_generate() -> None:
    config = sparkinfer.ScoringConfig(model="m", input_col="text", generation={"num_beams": 2})
    with pytest.raises(ConfigError, match="num_beams with task='text-classification': the task"):
        ModelOptions.of(config)


def test_options_are_given_on_the_command_line() -> None:
    config = sparkinfer.ScoringConfig.load(
        None,
        ["generation.stop=END", "generation.max_new_tokens=7", "task.chat_template=off"],
        model="m",
        input_col="text",
        task="text-generation",
    )
    task: Any = ModelOptions.of(config).task
    assert (task.generation.stop, task.generation.max_new_tokens) == (("END",), 7)
    assert task.options.chat_template == "off"
    settings = task.settings()
    assert (settings["generation.stop"], settings["generation.max_new_tokens"]) == (["END"], 7)
    assert settings["task.chat_template"] == "off"


@pytest.mark.parametrize(
    ("own", "options", "message"),
    [
        ({"max_length": 50}, {}, "has max_length=50, which counts the prompt"),
        ({"num_beams": 4}, {"do_sample": True}, "do_sample=true with num_beams=4"),
        ({}, {"length_penalty": 2.0}, "generation.length_penalty without beams"),
        ({"min_new_tokens": 9}, {"max_new_tokens": 5}, "the model's files ask for at least 9"),
        ({"do_sample": True, "typical_p": 0.5}, {}, "samples by typical_p, expected temperature"),
        ({}, {"temperature": 0.5}, "temperature=0.5 without generation.do_sample=true: nothing"),
        ({}, {"seed": 5}, "generation.seed=5 without generation.do_sample=true: nothing is drawn"),
    ],
)
def test_options_that_contradict_the_models_files_are_refused(
    own: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = make_generator(tmp_path / "model", "gpt2", generation=own)
    with pytest.raises(ConfigError, match=message):
        task_of(folder, generation=options)


def test_a_way_to_search_that_the_library_refuses_shows_in_the_gate(tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "model", "gpt2")
    own = {"num_beams": 3, "num_beam_groups": 2, "diversity_penalty": 0.5}  # 3 is not even
    (folder / "generation_config.json").write_text(json.dumps(own))
    options = options_of("text-generation", generation={"max_new_tokens": 4}, dtype="float32")
    with pytest.raises(ModelLoadError, match="fails in plain float32|json cannot be used"):
        run_gate(folder, options, WorkerSlot("cpu"))


def test_a_seed_is_for_a_model_whose_files_draw_too(tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "model", "gpt2", generation={"do_sample": True})
    assert task_of(folder, generation={"seed": 5}).settings.seed == 5


@pytest.mark.parametrize("most", [96, 200])
def test_the_prompt_needs_room(gpt2: Path, most: int) -> None:
    options = options_of("text-generation", generation={"max_new_tokens": most})
    message = f"max_new_tokens={most}: this model takes 96 tokens, those of the prompt included"
    with pytest.raises(ConfigError, match=message):
        run_gate(gpt2, options, WorkerSlot("cpu"), RowsAhead(100))


def test_a_limit_leaves_room_for_what_is_generated(gpt2: Path) -> None:
    options = options_of("text-generation", generation={"max_new_tokens": 90}, max_length=7)
    with pytest.raises(ConfigError, match="max_length=7: this model takes at most 6 tokens"):
        run_gate(gpt2, options, WorkerSlot("cpu"), RowsAhead(100))


def test_the_gate_pads_on_the_left_and_leaves_room(gpt2: Path) -> None:
    options = options_of(
        "text-generation", generation={"max_new_tokens": 16}, acceleration="none", dtype="float32"
    )
    model, verdict = run_gate(gpt2, options, WorkerSlot("cpu"))
    assert model.encoder.tokenizer.padding_side == "right"
    assert (verdict.layout.padding_side, verdict.layout.shared) == ("left", "any length")
    assert verdict.max_length == model.encoder.max_length == 80


def test_the_gate_tries_what_generates_where_a_model_prepares_its_inputs(tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "model", "xlnet")
    options = options_of("text-generation", generation={"max_new_tokens": 4}, dtype="float32")
    _, verdict = run_gate(folder, options, WorkerSlot("cpu"), RowsAhead(100))
    assert verdict.layout.shared == "equal length"  # its `generate` takes padding for text


def test_a_model_that_reads_both_ways_generates_nothing(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=40, intermediate_size=32, **sizes)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    options = options_of("text-generation", generation={"max_new_tokens": 4}, dtype="float32")
    with pytest.raises(ModelLoadError, match=r"keeps no keys and values.*is_decoder"):
        run_gate(tmp_path, options, WorkerSlot("cpu"), RowsAhead(100))


def test_a_model_of_the_other_kind_is_refused(gpt2: Path, t5: Path) -> None:
    with pytest.raises(ModelLoadError, match="give task=text2text-generation"):
        task_of(t5)
    with pytest.raises(
        ModelLoadError, match="expected one that ends with ForConditionalGeneration"
    ):
        task_of(gpt2, "text2text-generation")


def test_a_template_that_is_not_there_cannot_be_used(gpt2: Path) -> None:
    with pytest.raises(ConfigError, match="chat_template=on: the model's tokenizer has no chat"):
        task_of(gpt2, task_options={"chat_template": "on"})
    with pytest.raises(ConfigError, match="drop one of them"):
        task_of(gpt2, task_options={"chat_template": "off", "system_prompt": "x"})


def test_a_system_that_the_template_does_not_take_is_refused(tmp_path: Path) -> None:
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    folder = make_generator(tmp_path / "model", "gpt2", tokenizer={"chat_template": refusing})
    with pytest.raises(ConfigError, match=r"system_prompt='be good': .*template .*no system"):
        task_of(folder, task_options={"system_prompt": "be good"})
    assert task_of(folder).added_bytes == 0


def test_the_day_that_a_template_writes_is_the_one_that_is_given(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    folder = make_generator(tmp_path / "model", "gpt2", tokenizer={"chat_template": dated})
    given = {"template_date": "2024-07-26"}
    assert task_of(folder, task_options=given).prompt("film") == "26 Jul 2024 film"
    settings = options_of("text-generation", task_options=given).task.settings()
    assert settings["task.template_date"] == "2024-07-26"
    with pytest.raises(ConfigError, match=r"say which, .* --set task.template_date=20\d\d-"):
        task_of(folder)
    with pytest.raises(ConfigError, match=r"template_date='26 July': expected a day such as 2026"):
        task_of(folder, task_options={"template_date": "26 July"})
    asking = "{% if strftime_now is defined %}{{ strftime_now ('%Y') }}{% endif %}"
    spaced = make_generator(tmp_path / "spaced", "gpt2", tokenizer={"chat_template": asking})
    assert task_of(spaced, task_options=given).prompt("film") == "2024"
    odd = {"chat_template": "{% set today = strftime_now %}{{ today('%Y') }}"}
    with pytest.raises(
        ConfigError, match=r"template_date=2024-07-26: .* a format that it computes"
    ):
        task_of(make_generator(tmp_path / "odd", "gpt2", tokenizer=odd), task_options=given)
    plain = make_generator(tmp_path / "plain", "gpt2", tokenizer={"chat_template": "x"})
    with pytest.raises(ConfigError, match="template writes no day into prompts; drop the option"):
        task_of(plain, task_options=given)


def test_a_template_that_takes_no_empty_text_is_usable(tmp_path: Path) -> None:
    refusing = (
        "{% set text = messages[0]['content'] %}{% if not text %}{{ raise_exception('empty') }}"
        "{% endif %}one {{ text }}"
    )
    folder = make_generator(tmp_path / "model", "gpt2", tokenizer={"chat_template": refusing})
    assert task_of(folder).added_bytes == len("one text")


@pytest.mark.parametrize(
    ("named", "ends"), [(None, ()), (-1, ()), (7, (7,)), ([7, 9999, -1], (7, 9999))]
)
def test_a_token_that_there_is_not_ends_nothing(tmp_path: Path, named: Any, ends: Any) -> None:
    own = {"eos_token_id": named, "min_new_tokens": 3, "max_new_tokens": 4}
    folder = make_generator(tmp_path / "model", "gpt2", generation=own)
    options = options_of("text-generation", dtype="float32")
    model, _ = run_gate(folder, options, WorkerSlot("cpu"), RowsAhead(100))
    assert model.task.settings.ends == ends
    encoded = model.encode([["good"]]).encoded
    (row,) = model.score(model.encoder.collate(encoded, np.arange(1))).to_pylist()
    module = model.runtime.module
    ids = torch.tensor(model.encoder.tokenizer(["good"])["input_ids"])
    expected = module.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0)[0, 1:]
    text = model.encoder.tokenizer.decode(expected, skip_special_tokens=True)
    assert row["generated_text"] == text


def test_a_model_says_how_it_does_a_task_by_its_name(t5: Path) -> None:
    summary = task_of(t5, "summarization")
    assert summary.prompt("film") == "one two film"
    assert summary.made_tokens == 6  # the decoder's first token counts in max_length
    assert summary.settings.by_library
    assert summary.settings.arguments["num_beams"] == 2
    plain = task_of(t5, "text2text-generation")
    assert (plain.prompt("film"), plain.made_tokens) == ("film", 256)
    own = task_of(t5, "summarization", task_options={"prefix": "green "})
    assert own.prompt("film") == "green film"
    asked = task_of(t5, "summarization", generation={"num_beams": 1, "max_new_tokens": 9})
    assert (asked.made_tokens, asked.settings.arguments["num_beams"]) == (9, 1)


def test_a_translation_names_its_languages_where_there_are_several(t5: Path) -> None:
    with pytest.raises(ConfigError, match="the model translates translation_en_to_de, transl"):
        task_of(t5, "translation")
    german = {"src_lang": "en", "tgt_lang": "de"}
    assert task_of(t5, "translation", task_options=german).prompt("film") == "red film"
    with pytest.raises(ConfigError, match="the model's files know translation_en_to_de"):
        task_of(t5, "translation", task_options={"src_lang": "en", "tgt_lang": "it"})
    with pytest.raises(ConfigError, match="give both or neither"):
        task_of(t5, "translation", task_options={"src_lang": "en"})
    with pytest.raises(ConfigError, match="languages are for task=translation"):
        task_of(t5, "summarization", task_options=german)


def test_languages_are_refused_where_nothing_knows_them(tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "model", "bart")
    options = {"src_lang": "en", "tgt_lang": "de"}
    with pytest.raises(ConfigError, match="files name no languages, so that it would ignore these"):
        task_of(folder, "translation", task_options=options, generation={"max_new_tokens": 4})


def test_a_language_is_a_token_that_stands_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(self: Any, text: str, return_tensors: None, src_lang: str, tgt_lang: str) -> Any:
        first, last = self.convert_tokens_to_ids([src_lang, "[SEP]"])
        of_target = self.convert_tokens_to_ids(tgt_lang)
        return {"input_ids": [first, last], "forced_bos_token_id": of_target}

    kind = transformers.PreTrainedTokenizerFast
    monkeypatch.setattr(kind, "_build_translation_inputs", build, raising=False)
    languages = {"additional_special_tokens": ["en_XX", "de_DE"]}
    folder = make_generator(tmp_path / "model", "t5", tokenizer=languages)

    def made(source: str, target: str) -> Any:
        options = {"src_lang": source, "tgt_lang": target}
        return task_of(folder, "translation", task_options=options)

    assert made("en_XX", "de_DE").settings.arguments["forced_bos_token_id"] == VOCABULARY + 1
    for source, target in (("en_XX", "de"), ("en", "de_DE"), ("en_XX", "red"), ("red", "de_DE")):
        with pytest.raises(ConfigError, match=f"src_lang='{source}' and .*is no language of its"):
            made(source, target)


def test_a_decoder_has_positions_for_what_it_writes(tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "model", "bart")
    with pytest.raises(ConfigError, match="max_new_tokens=97: this model writes at most 96"):
        task_of(folder, "text2text-generation", generation={"max_new_tokens": 97})


def drawing(gpt2: Path, **options: Any) -> Draws:
    generation = {"do_sample": True, "top_k": 0, **options}
    return Draws(task_of(gpt2, generation=generation).settings)


def test_tokens_are_drawn_by_their_probability(gpt2: Path) -> None:
    rows = 20_000
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = shares.log().expand(rows, 4).clone()
    keys = torch.from_numpy(keys_of([np.array([row]) for row in range(rows)]))
    for position in (0, 1, 57):
        tokens = drawing(gpt2).pick(logits, keys, position)
        found = torch.bincount(tokens, minlength=4) / rows
        assert found.tolist() == pytest.approx(shares.tolist(), abs=4 * math.sqrt(0.25 / rows))
    first = drawing(gpt2).pick(logits, keys, 0)
    again = drawing(gpt2, seed=1).pick(logits, keys, 0)
    alike = (first == again).float().mean()  # independent draws meet so often
    assert alike.item() == pytest.approx((shares**2).sum().item(), abs=0.02)


def test_draws_follow_temperature_and_candidates(gpt2: Path) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -math.inf]]).expand(5000, 5).clone()
    keys = torch.from_numpy(keys_of([np.array([row]) for row in range(5000)]))
    drawn = {
        name: Counter(drawing(gpt2, **how).pick(logits.clone(), keys, 0).tolist())
        for name, how in {
            "all": {},
            "hot": {"temperature": 100.0},
            "two": {"top_k": 2},
            "most": {"top_p": 0.7},
        }.items()
    }
    assert set(drawn["all"]) == {0, 1, 2, 3}
    assert max(drawn["hot"].values()) < 1.2 * min(drawn["hot"].values())
    assert set(drawn["two"]) == {0, 1}
    assert set(drawn["most"]) == {0, 1}


def test_keys_are_those_of_the_prompts_alone() -> None:
    one, other = keys_of([np.array([1, 2]), np.array([2, 1])])
    assert one != other
    assert keys_of([np.array([1, 2])]) == [one]
