"""Measures whole jobs on one GPU beside the usual code: `python -m tests.gpu.job`.

A job reads a Parquet file with the engine `local`, scores it and writes its output, as a command
does; beside it, over the first of the same texts, the pipeline of transformers and, where it is
installed, `encode` of sentence-transformers, with the texts already in memory and nothing written.
All run in the same number format. `--tiny --device cpu` runs the same code in seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import sparkinfer
from sparkinfer.workers.devices import release_memory
from tests.gpu.bench import TINY
from tests.gpu.models import BASE, LENGTHS, Shape, make_model, texts_of
from tests.sentence_models import NORMALIZE, add_sentence_files, pooling

MINI = Shape(384, 6, 12, 1536, 30_000, 512)
"""Of all-MiniLM-L6-v2."""

PEERS_SHARE = 0.05
"""Of the texts, those that the usual code is given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and prints one line of JSON for each way."""
    options = _parse(arguments)
    base, mini = (TINY, TINY) if options.tiny else (BASE, MINI)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classifier = make_model(folder / "classifier", "Bert", base, device=options.device)
        encoder = make_model(folder / "encoder", "Bert", mini, device=options.device)
        add_sentence_files(
            encoder, pooling("mean", embedding_dimension=mini.hidden), NORMALIZE, encoder={}
        )
        for lengths in ("reviews", "heavy tail"):
            texts = texts_of(base, LENGTHS[lengths](options.rows, base.length - 2))
            source = folder / f"{lengths}.parquet"
            pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), source)
            some = texts[: max(32, int(options.rows * PEERS_SHARE))]
            ways: dict[str, tuple[int, Callable[[], Any]]] = {
                "sparkinfer, classification": (len(texts), _job(classifier, source, options)),
                "pipeline, batch_size=32": (len(some), _pipeline(classifier, some, 32, options)),
                "pipeline, batch_size=256": (len(some), _pipeline(classifier, some, 256, options)),
                "sparkinfer, embedding": (
                    len(texts),
                    _job(encoder, source, options, task="embedding"),
                ),
            }
            if find_spec("sentence_transformers") is not None:
                for size in (32, 256):
                    way = f"encode, batch_size={size}"
                    ways[way] = (len(some), _encode(encoder, some, size, options))
            for way, (rows, run) in ways.items():
                print(json.dumps({"way": way, "lengths": lengths, **_measured(rows, run, options)}))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.job", description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda", choices=["cuda", "cpu"])
    add("--tiny", action="store_true", help="tiny models, to try the code")
    add("--rows", type=int, default=400_000)
    add("--dtype", default="float16")
    add("--repetitions", type=int, default=3)
    return parser.parse_args(arguments)


def _measured(rows: int, run: Callable[[], Any], options: argparse.Namespace) -> dict[str, Any]:
    """Returns rows per second, the median and the range, and what the last run tells of itself."""
    run()  # what is made once: kernels, caches
    rates, told = [], {}
    for _ in range(options.repetitions):
        started = time.perf_counter()
        told = run() or {}
        seconds = told.get("scoring_s") or time.perf_counter() - started
        rates.append(rows / seconds)
    release_memory(options.device)
    low, high = min(rates), max(rates)
    rate = statistics.median(rates)
    return {"rows_per_s": round(rate), "range": [round(low), round(high)], **told}


def _job(
    model: Path, source: Path, options: argparse.Namespace, **settings: Any
) -> Callable[[], Any]:
    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as output:
            config = sparkinfer.ScoringConfig(
                model=str(model),
                input=str(source),
                input_col="text",
                output=f"{output}/out",
                engine="local",
                device=options.device,
                dtype=options.dtype,
                acceleration="none",
                **settings,
            )
            started = time.perf_counter()
            result = sparkinfer.run(config)
            whole_s = time.perf_counter() - started
        if result.error_rows:
            raise SystemExit(f"{result.error_rows} rows have an error")
        figures = {n: round(v, 3) for n, v in asdict(result.statistics).items() if v}
        bottleneck = result.statistics.bottleneck
        return {
            "scoring_s": result.scoring_s,
            "whole_s": whole_s,
            "bottleneck": bottleneck,
            "padding": result.statistics.padding_share,
            **figures,
        }

    return run


def _pipeline(
    model: Path, texts: Sequence[str], batch_size: int, options: argparse.Namespace
) -> Callable[[], Any]:
    def run() -> None:
        list(pipe(list(texts), batch_size=batch_size, truncation=True, top_k=None))

    import transformers

    pipe = transformers.pipeline(
        "text-classification",
        model=str(model),
        device=options.device,
        dtype=getattr(torch, options.dtype),
    )
    return run


def _encode(
    model: Path, texts: Sequence[str], batch_size: int, options: argparse.Namespace
) -> Callable[[], Any]:
    def run() -> None:
        encoder.encode(list(texts), batch_size=batch_size, show_progress_bar=False)

    from sentence_transformers import SentenceTransformer

    wanted = {"dtype": options.dtype}
    encoder = SentenceTransformer(str(model), device=options.device, model_kwargs=wanted)
    return run


if __name__ == "__main__":
    raise SystemExit(main())
