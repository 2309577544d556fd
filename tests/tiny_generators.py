"""Tiny seeded models that generate text; they are random, but always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny_models import SPECIAL_TOKENS, WORDS, save_tokenizer

VOCABULARY = len(SPECIAL_TOKENS) + len(WORDS)
POSITIONS = 96
ENDS = [3, 11, 17, 29]
"""Tokens that end a text: enough for many texts to end before the most tokens."""

CHAT_TEMPLATE = (
    "{{ '[CLS]' }}{% for m in messages %}"
    "{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no such role') }}{% endif %}"
    "{{ {'system': 'one ', 'user': 'two ', 'assistant': 'three '}[m['role']] }}"
    "{{ m['content'] }}{{ '[SEP]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'three ' }}{% endif %}"
)
"""Of each message, a word for its role and what it says; it begins with the first token."""


def make_generator(
    folder: Path,
    kind: str,
    *,
    chat: bool = False,
    generation: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Returns a folder with a random model.

    Args:
        folder: where to save it.
        kind: `gpt2` (absolute positions), `llama` (rotary, two heads share keys), `xlnet` (prepares
            its inputs in a way of its own, which sees padding), `t5` or `bart`.
        chat: whether the tokenizer has a chat template.
        generation: of its generation_config.json, beside the tokens that end a text.
        tokenizer: settings of the tokenizer.
        **config: further settings.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    model = _MAKERS[kind](transformers, {"vocab_size": VOCABULARY, **config})
    start = {"decoder_start_token_id": 0} if model.config.is_encoder_decoder else {}
    of_model = {"eos_token_id": ENDS, **start, **(generation or {})}
    model.generation_config = transformers.GenerationConfig(**of_model)
    model.save_pretrained(folder)
    more = {"chat_template": CHAT_TEMPLATE} if chat else {}
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    is_seq2seq = bool(start)
    save_tokenizer(folder, adds_specials=chat or is_seq2seq, **names, **more, **(tokenizer or {}))
    return folder


def _gpt2(transformers: Any, config: dict[str, Any]) -> Any:
    sizes = {"n_positions": POSITIONS, "n_embd": 32, "n_layer": 2, "n_head": 4}
    settings = {"initializer_range": 0.5, "bos_token_id": 2, "eos_token_id": 3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **settings, **config))


def _llama(transformers: Any, config: dict[str, Any]) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    settings = {"max_position_embeddings": POSITIONS, "initializer_range": 0.5}
    tokens = {"bos_token_id": 2, "eos_token_id": 3}
    made = transformers.LlamaConfig(**{**sizes, **heads, **settings, **tokens, **config})
    return transformers.LlamaForCausalLM(made)


def _xlnet(transformers: Any, config: dict[str, Any]) -> Any:
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    made = transformers.XLNetConfig(**sizes, **tokens, **{"initializer_range": 0.5, **config})
    return transformers.XLNetLMHeadModel(made)


def _t5(transformers: Any, config: dict[str, Any]) -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    settings = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    made = transformers.T5Config(**{**sizes, **settings, "initializer_factor": 4.0, **config})
    return transformers.T5ForConditionalGeneration(made)


def _bart(transformers: Any, config: dict[str, Any]) -> Any:
    sides = ("encoder", "decoder")
    layers = {f"{side}_layers": 2 for side in sides} | {f"{side}_ffn_dim": 64 for side in sides}
    heads = {f"{side}_attention_heads": 4 for side in sides}
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 0}
    settings = {"d_model": 32, "max_position_embeddings": POSITIONS}
    none = {"forced_eos_token_id": None}
    given = {**layers, **heads, **tokens, **settings, **none}
    made = transformers.BartConfig(**{**given, "init_std": 0.5, **config})
    return transformers.BartForConditionalGeneration(made)


_MAKERS = {"gpt2": _gpt2, "llama": _llama, "xlnet": _xlnet, "t5": _t5, "bart": _bart}
