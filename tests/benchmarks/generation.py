"""Tokens per second of generation: `python -m tests.benchmarks.generation`.

The package's scorer against `model.generate` over the same prompts in batches of as many rows,
sorted by length and not, in turns. Prints the ratios to `model.generate` for each turn and their
medians; only these mean anything. Only tokens up to a row's end count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import Scorer
from sparkinfer.option_groups import BatchingConfig
from tests.model_options import options_of
from tests.tiny_generators import make_generator
from tests.tiny_models import sentences

SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
POSITIONS = 512


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generation")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch-rows", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    ratios: dict[str, list[float]] = {"sorted": [], "unsorted": []}
    with tempfile.TemporaryDirectory() as folder:
        options, model = _load(Path(folder), asked)
        texts = list(dict.fromkeys(sentences(4 * asked.rows)))[: asked.rows]
        ordered = sorted(texts, key=lambda text: -len(text.split()))
        _score(model, options, texts[:8])
        for turn in range(asked.repetitions):
            ours = _rate(lambda: _score(model, options, texts))
            for name, given in (("sorted", ordered), ("unsorted", texts)):
                theirs = _rate(lambda given=given: _generate(model, given, asked))
                ratios[name].append(ours / theirs)
            shown = ", ".join(f"{name} {found[-1]:.2f}" for name, found in ratios.items())
            print(f"turn {turn + 1}: {ours:.0f} tokens/s, of model.generate: {shown}", flush=True)
    for name, found in ratios.items():
        print(f"of model.generate, {name}: {statistics.median(found):.2f}")


def _load(folder: Path, asked: argparse.Namespace) -> tuple[ModelOptions, RunningModel]:
    make_generator(folder / "model", "llama", max_position_embeddings=POSITIONS, **SIZES)
    options = options_of(
        "text-generation",
        generation={"max_new_tokens": asked.new_tokens},
        batching=BatchingConfig(max_batch_rows=asked.batch_rows, max_batch_tokens=2**20),
    )
    layout = Layout(padding_side="left")
    length = POSITIONS - asked.new_tokens
    checkpoint = Checkpoint(folder / "model", options, asked.device, length, layout)
    return options, load_way(checkpoint, PLAIN)


def _rate(generate: Callable[[], int]) -> float:
    """Returns the tokens per second of what returns how many it has made."""
    started = time.perf_counter()
    return generate() / (time.perf_counter() - started)


def _score(model: RunningModel, options: ModelOptions, texts: Sequence[str]) -> int:
    rows = pa.RecordBatch.from_arrays([pa.array(texts)], names=["text"])
    scored = Scorer(model, options).process([rows])
    return sum(sum(batch.column("n_generated_tokens").to_pylist()) for batch in scored)


def _generate(model: RunningModel, texts: Sequence[str], asked: argparse.Namespace) -> int:
    import torch

    tokenizer, module = model.encoder.tokenizer, model.runtime.module  # type: ignore[attr-defined]
    ends, made = set(module.generation_config.eos_token_id), 0
    how: dict[str, Any] = {"max_new_tokens": asked.new_tokens, "pad_token_id": 0}
    for start in range(0, len(texts), asked.batch_rows):
        part = list(texts[start : start + asked.batch_rows])
        batch = tokenizer(part, padding=True, padding_side="left", return_tensors="pt")
        ids, mask = (batch[name].to(module.device) for name in ("input_ids", "attention_mask"))
        with torch.inference_mode():
            tokens = module.generate(input_ids=ids, attention_mask=mask, **how)
        for row in tokens[:, ids.shape[1] :].tolist():
            tokenizer.decode(row, skip_special_tokens=True)
            made += next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
    return made


if __name__ == "__main__":
    main()
