"""Embeds rows with this package and with sentence-transformers, in turns.

    python -m tests.benchmarks.embedding --model FOLDER --input FILE

Both run in this process, on the same threads. Prints for each turn the rows per second of both and
their ratio, the machine's load before, and at last the median ratio and the least cosine between
the two vectors of a row. The package's seconds are those of its scoring phase: reading, tokenising,
the model, writing and committing; the library's are those of `encode`, its model loaded before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

import sparkinfer

WARM_UP_ROWS = 100


def main() -> None:
    options = _parse()
    table = pq.read_table(options.input, columns=[options.input_col])
    texts = table[options.input_col].drop_null()[: options.rows].to_pylist()
    ratios, cosines = [], []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.parquet"
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), source)
        library = _library(options, texts[:WARM_UP_ROWS])
        for turn in range(options.repetitions):
            ours = _ours(Path(folder) / f"out-{turn}", source, options)
            theirs = _theirs(library, texts, options)
            ratios.append(ours["rate"] / theirs["rate"])
            cosines.append(_cosines(ours["vectors"], theirs["vectors"]).min())
            print(
                f"{turn + 1}/{options.repetitions} sparkinfer {ours['rate']:.0f} rows/s, "
                f"sentence-transformers {theirs['rate']:.0f} rows/s: {ratios[-1]:.2f} "
                f"(load {ours['load']:.1f}, {theirs['load']:.1f}; waited {ours['wait_s']:.1f} s "
                f"and ran the model {ours['forward_s']:.1f} s of {ours['seconds']:.1f} s, padding "
                f"{ours['padding']:.1%})",
                flush=True,
            )
    print(
        f"{len(texts)} rows in {options.dtype}: median ratio {statistics.median(ratios):.2f}, "
        f"least cosine {min(cosines):.7f}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.embedding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder of sentence-transformers")
    parser.add_argument("--input", required=True, help="Parquet file")
    parser.add_argument("--input-col", default="text")
    parser.add_argument("--rows", type=int, help="the first so many; all if absent")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--dtype", default="float32", help="of ours; theirs is float32")
    parser.add_argument("--batch-size", type=int, default=32, help="of sentence-transformers")
    return parser.parse_args()


def _library(options: argparse.Namespace, texts: list[str]) -> Any:
    from sentence_transformers import SentenceTransformer

    dtype = {"dtype": "float32"}
    model = SentenceTransformer(options.model, device="cpu", model_kwargs=dtype)
    model.encode(texts, batch_size=options.batch_size, show_progress_bar=False)
    return model


def _ours(output: Path, source: Path, options: argparse.Namespace) -> dict[str, Any]:
    config = sparkinfer.ScoringConfig(
        model=options.model,
        task="embedding",
        input=str(source),
        input_col="text",
        output=str(output),
        engine="local",
        device="cpu",
        dtype=options.dtype,
        acceleration="none",
    )
    load = os.getloadavg()[0]
    result = sparkinfer.run(config)
    if result.error_rows:
        raise SystemExit(f"{result.error_rows} rows have an error")
    found = pads.dataset(output, format="parquet").to_table().sort_by("id")
    seconds = result.scoring_s
    return {
        "seconds": seconds,
        "rate": result.rows / seconds,
        "load": load,
        "wait_s": result.statistics.wait_s,
        "forward_s": result.statistics.forward_s,
        "padding": result.statistics.padding_share,
        "vectors": np.array(found["embedding"].to_pylist(), np.float32),
    }


def _theirs(model: Any, texts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    load, started = os.getloadavg()[0], time.perf_counter()
    vectors = model.encode(texts, batch_size=options.batch_size, show_progress_bar=False)
    seconds = time.perf_counter() - started
    return {"rate": len(texts) / seconds, "load": load, "vectors": vectors}


def _cosines(found: Any, expected: Any) -> Any:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return (found * expected).sum(axis=1) / lengths


if __name__ == "__main__":
    main()
