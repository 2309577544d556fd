"""Every kind of text classifier of transformers, tiny and random, through the gate and the scorer.

The reference is the library's pipeline, one text at a time with a model as loaded. What is checked
is what depends on the kind of model: attention masks, positions, where the last token is, state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.gate import run_gate
from sparkinfer.models.scorer import Scorer
from sparkinfer.models.tokens import NO_LIMIT
from sparkinfer.option_groups import BatchingConfig
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.tiny_models import WORDS, save_tokenizer, sentences

if int(transformers.__version__.partition(".")[0]) < 5:
    pytest.skip("the settings below are those of transformers 5", allow_module_level=True)

TINY: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("hidden_size", "d_model", "n_embd", "embed_dim", "embedding_size", "emb_dim", "dim"),
            *("word_embed_proj_dim", "moe_intermediate_size", "shared_expert_intermediate_size"),
        ),
        32,
    ),
    **dict.fromkeys(
        (
            *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
            *("encoder_layers", "decoder_layers", "num_attention_heads", "n_head", "n_heads"),
            *("num_heads", "encoder_attention_heads", "decoder_attention_heads", "num_kv_heads"),
            *("num_key_value_heads", "num_experts", "num_local_experts", "n_routed_experts"),
        ),
        2,
    ),
    **dict.fromkeys(
        (
            *("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_dim", "dff"),
            *("d_inner", "hidden_dim", "n_inner", "max_position_embeddings", "n_positions"),
            *("max_seq_len", "n_ctx", "max_encoder_position_embeddings"),
        ),
        64,
    ),
    **dict.fromkeys(("d_kv", "head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **{"initializer_range": 0.5, "init_std": 0.5, "initializer_factor": 5.0},
    **{"num_experts_per_tok": 1, "vocab_size": 5 + len(WORDS)},
    **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
}
"""Small sizes, by the names that configurations have for them; only those that one has are used."""

SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": 8, "n_group": 1, "topk_group": 1},
    "canine": {"num_hash_buckets": 64, "num_hash_functions": 2},
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "deepseek_v3": {"head_dim": 8},
    "falcon": {"head_dim": None},
    "funnel": {"block_sizes": [1, 1], "num_hidden_layers": None, "d_head": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1},
        **{"mamba_d_state": 4, "mamba_dt_rank": 4},
    },
    "layoutlm": {"max_2d_position_embeddings": 16},
    "lilt": {"hidden_size": 48, "num_attention_heads": 4, "channel_shrink_ratio": 4},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 16},
    "mobilebert": {
        **{"true_hidden_size": 32, "intra_bottleneck_size": 32},
        "num_feedforward_networks": 1,
    },
    "perceiver": {
        **{"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2},
        **{"num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    },
    "reformer": {
        **{"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "attn_layers": ["local"]},
        **{"attention_head_size": 16, "feed_forward_size": 64, "local_attn_chunk_length": 16},
        **{"is_decoder": False, "num_hidden_layers": None},
    },
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "t5": {"decoder_start_token_id": 0},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}
"""Settings that a kind of model needs beside or in place of those; None: as it is by default."""

EXCLUDED = {
    **dict.fromkeys(
        ("gemma3", "modernvbert", "layoutlmv2", "layoutlmv3", "qwen3_5", "ultravbert"),
        "reads images, too, and has a second configuration for them",
    ),
    **dict.fromkeys(("t5gemma", "t5gemma2"), "has a configuration each for encoder and decoder"),
    **dict.fromkeys(("zamba", "zamba2"), "shares weights among more layers than a tiny model has"),
}
"""Kinds that are not tried, and why."""

KINDS = [kind for kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if kind not in EXCLUDED]

TEXTS = [*sentences(9), "good", "bad", "a very good film", "word " * 90, "not a bad film", ""]
"""Of mixed lengths in mixed order; one is longer than the models' 64 tokens."""


LIMITS = {
    **dict.fromkeys(("bloom", "funnel", "mt5", "t5", "umt5", "xlnet"), NO_LIMIT),
    **dict.fromkeys(
        (
            *("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke"),
            *("markuplm", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
            "xmod",
        ),
        63,  # their first position comes after that of the padding, 0
    ),
    "mpnet": 62,  # its positions begin after 1, whatever the configuration says
}
"""Tokens that a model with 64 positions takes, where it is not 64."""

MAX_LENGTHS = {"mpt": 64}
"""Tokens to which texts are cut for a model that fails beyond, which nothing but a trial tells."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    known = AutoConfig.for_model(kind)
    settings = {name: value for name, value in TINY.items() if hasattr(known, name)}
    settings |= SPECIAL.get(kind, {})
    config = AutoConfig.for_model(
        kind, num_labels=3, **{name: value for name, value in settings.items() if value is not None}
    )
    AutoModelForSequenceClassification.from_config(config).float().save_pretrained(folder)
    save_tokenizer(folder, model_input_names=["input_ids", "attention_mask"])
    return folder


def alone(folder: Path, max_length: int) -> list[list[float] | None]:
    """Returns the pipeline's probabilities for each text by itself, with a model as loaded.

    None for a text on which it fails.
    """
    module = AutoModelForSequenceClassification.from_pretrained(folder).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipe = pipeline("text-classification", module, tokenizer=tokenizer, device="cpu")
    scores: list[list[float] | None] = []
    for text in TEXTS:
        pipe.model = copy.deepcopy(module)
        try:
            (found,) = pipe([text], top_k=None, truncation=True, max_length=max_length)
        except RuntimeError:
            scores.append(None)
            continue
        by_label = {item["label"]: item["score"] for item in found}
        scores.append([by_label[f"LABEL_{label}"] for label in range(3)])
    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_score_that_the_pipeline_gives_it_alone(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path / "model", kind)
    batching = BatchingConfig(max_batch_tokens=256)
    options = options_of(
        acceleration="none",
        dtype="float32",
        max_length=MAX_LENGTHS.get(kind),
        batching=batching,
    )
    model, verdict = run_gate(folder, options, WorkerSlot("cpu"), RowsAhead(max(map(len, TEXTS))))
    rows = pa.RecordBatch.from_arrays([pa.array(TEXTS)], names=["text"])
    scored = [row for batch in Scorer(model, options).process([rows]) for row in batch.to_pylist()]
    limit = LIMITS.get(kind, 64)
    assert verdict.max_length == limit
    assert sum(row["error"] is None for row in scored) > len(TEXTS) / 2
    for row, scores in zip(scored, alone(folder, min(limit, 1000)), strict=True):
        assert (row["error"] is None) == (scores is not None)
        if scores is not None:
            assert row["probabilities"] == pytest.approx(scores, abs=1e-4)
