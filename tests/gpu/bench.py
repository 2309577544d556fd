"""Measures the scorer on one GPU: `python -m tests.gpu.bench`.

Each cell is a model, a way of running it and a distribution of lengths. The scorer takes turns with
itself without a batch in flight, and with a loop written by hand over the same module, which has
its texts tokenised, sorted by length and cut by the token budget beforehand. Medians over the
repetitions, and the smallest and largest. Ends early, with what it has, when its time is up;
`--tiny --device cpu` runs the same code in seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.deepspeed import KERNELS
from sparkinfer.models.backends.torch import PipelineRuntime
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import load_way
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel
from sparkinfer.models.scorer import DEFAULT_BATCH_TOKENS, Scorer
from sparkinfer.workers.devices import release_memory
from tests.gpu.models import BASE, BILLION, LENGTHS, Shape, make_model, texts_of
from tests.gpu.scoring import options_of, score

TINY = Shape(64, 2, 2, 128, 500, 64)
MODELS = {
    "BERT-base": ("Bert", BASE),
    "DeBERTa-v3-base": ("DebertaV2", BASE),
    "Llama 1B": ("Llama", BILLION),
}
WAYS = {
    "float32": PLAIN,
    "float16": Acceleration("none", "float16"),
    "bfloat16": Acceleration("none", "bfloat16"),
    "compiled": Acceleration("torch_compile", "float16"),
    "DeepSpeed": Acceleration("deepspeed", "float16"),
    "DeepSpeed kernels": Acceleration("deepspeed", "float16", KERNELS),
}
CELLS = (
    ("BERT-base", "float16", "reviews"),
    ("BERT-base", "float32", "reviews"),
    ("BERT-base", "bfloat16", "reviews"),
    ("BERT-base", "float16", "heavy tail"),
    ("DeBERTa-v3-base", "float16", "reviews"),
    ("DeBERTa-v3-base", "float16", "heavy tail"),
    ("Llama 1B", "bfloat16", "reviews"),
    ("Llama 1B", "bfloat16", "heavy tail"),
    ("BERT-base", "DeepSpeed", "reviews"),
    ("BERT-base", "compiled", "reviews"),
    ("DeBERTa-v3-base", "bfloat16", "reviews"),
    ("DeBERTa-v3-base", "float32", "reviews"),
    # Last: it compiles for minutes, and what it injects stays in the process.
    ("BERT-base", "DeepSpeed kernels", "reviews"),
)
"""Model, way and lengths, the most telling first."""

MOST_TEXTS = 200_000
WARM_UP_TEXTS = 2000
PEAK_SIZE = {"cuda": 8192, "cpu": 256}


@dataclass
class Cell:
    """What was measured of one model, run in one way, over texts of one kind.

    Attributes:
        model: its name.
        way: how it was run.
        lengths: of the texts.
        texts: per repetition.
        tokens: per repetition, padding excluded.
        padding_share: of the scorer's batches.
        difference: largest difference of a probability from plain float32.
        scorer_s: seconds of each repetition of the scorer, tokenising included.
        in_turn_s: the same with one batch at a time, copied from memory that is not pinned.
        loop_s: the same of the loop by hand, tokenising excluded.
        wait_s: of these, those in which the scorer's model waited for tokens, by repetition.
        idle_s: those in which no forward pass was under way, measured on the device.
        work: floating-point operations of a repetition.
    """

    model: str
    way: str
    lengths: str
    texts: int = 0
    tokens: int = 0
    padding_share: float = 0.0
    difference: float = 0.0
    scorer_s: list[float] = field(default_factory=list)
    in_turn_s: list[float] = field(default_factory=list)
    loop_s: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)
    idle_s: list[float] = field(default_factory=list)
    work: float = 0.0

    def rates(self, seconds: Sequence[float]) -> list[float]:
        """Returns tokens per second of each repetition, sorted."""
        return sorted(self.tokens / one for one in seconds)

    def as_dict(self, peak: float) -> dict[str, Any]:
        """Returns what was measured and what follows from it, ready for JSON."""
        scorer, loop = statistics.median(self.scorer_s), statistics.median(self.loop_s)
        return {
            **asdict(self),
            "tokens_per_s": self.tokens / scorer,
            "tokens_per_s_range": [self.rates(self.scorer_s)[0], self.rates(self.scorer_s)[-1]],
            "of_one_at_a_time": statistics.median(self.in_turn_s) / scorer,
            "loop_tokens_per_s": self.tokens / loop,
            "of_the_loop": loop / scorer,
            "of_the_peak": self.work / scorer / peak,
            "wait_share": statistics.median(self.wait_s) / scorer,
            "idle_share": statistics.median(self.idle_s) / scorer,
        }


class BusyTime:
    """Measures on the device how long a module's forward passes take."""

    def __init__(self, module: Any, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._marks: list[Any] = []
        module.register_forward_pre_hook(lambda *_: self._mark())
        module.register_forward_hook(lambda *_: self._mark())

    def reset(self) -> None:
        self._marks.clear()

    def seconds(self) -> float:
        """Returns the sum over the passes since the last reset."""
        if not self._on_gpu:
            return float(sum(self._marks[1::2]) - sum(self._marks[::2]))
        torch.cuda.synchronize()
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        return sum(float(start.elapsed_time(end)) for start, end in pairs) / 1000

    def _mark(self) -> None:
        if not self._on_gpu:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)


class HandWrittenLoop:
    """The loop that one would write for texts that are all there: sort, cut, pad, run.

    Args:
        model: whose module and tokenizer it uses.
        texts: what it scores.
        budget: tokens of a batch.
    """

    def __init__(self, model: RunningModel, texts: Sequence[str], budget: int) -> None:
        self._module, self._device = _module_of(model), model.device
        tokenizer = model.encoder.tokenizer
        limit = model.encoder.max_length
        self.ids = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        self.lengths = np.array([len(one) for one in self.ids])
        self._batches = list(_cut(np.argsort(-self.lengths), self.lengths, budget))

    def run(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Returns the probabilities, float32 (texts, labels)."""
        scored: list[Any] = []
        with torch.inference_mode():
            for rows in self._batches:
                logits = self._module(**self._padded(rows))["logits"]
                scored.append(logits.float().softmax(-1).cpu())
        order = np.concatenate(self._batches)
        values = torch.cat(scored).numpy()
        found = np.empty_like(values)
        found[order] = values
        return found

    def _padded(self, rows: Any) -> dict[str, Any]:
        longest = int(self.lengths[rows[0]])
        ids = np.zeros((len(rows), longest), np.int64)
        for place, row in enumerate(rows):
            ids[place, : self.lengths[row]] = self.ids[row]
        mask = np.arange(longest) < self.lengths[rows][:, None]
        tensors = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        return {
            name: torch.from_numpy(value).to(self._device, non_blocking=True)
            for name, value in tensors.items()
        }


def _cut(order: Any, lengths: Any, budget: int) -> Iterator[Any]:
    start = 0
    while start < len(order):
        count = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + count]
        start += count


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table and then one line of JSON."""
    options = _parse(arguments)
    device = "cuda:0" if options.device == "cuda" else options.device
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device: nothing was measured", file=sys.stderr)
        return 1
    peak = measure_peak(device)
    left_out: list[dict[str, str]] = []
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for cell, reason in _measure_all(Path(folder), device, options):
            name = f"{cell.model}, {cell.way}, {cell.lengths}"
            print(f"{name}: {reason or 'measured'}", file=sys.stderr, flush=True)
            if reason:
                left_out.append({"cell": name, "reason": reason})
            else:
                measured.append(cell.as_dict(peak))
    _print_table(measured, peak, device)
    found = {"device": _name_of(device), "torch": torch.__version__, "peak_tflops": peak / 1e12}
    print(json.dumps({**found, "cells": measured, "left_out": left_out}))
    return 0 if measured else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.bench", description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda", choices=["cuda", "cpu"])
    add("--tiny", action="store_true", help="tiny models and few texts, to try the code")
    add("--repetitions", type=int, default=3)
    add("--repetition-s", type=float, default=3.0, help="aimed at by the number of texts")
    add("--budget-s", type=float, default=440.0, help="time after which no cell is begun")
    add("--cells", type=int, default=len(CELLS), help="how many of the cells")
    return parser.parse_args(arguments)


def measure_peak(device: str) -> float:
    """Returns the floating-point operations per second of a large bfloat16 matrix product."""
    size = PEAK_SIZE[device.partition(":")[0]]
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    rates = []
    for _ in range(10):
        _synchronize(device)
        started = time.perf_counter()
        a @ a
        _synchronize(device)
        rates.append(2 * size**3 / (time.perf_counter() - started))
    return max(rates)


def _measure_all(
    folder: Path, device: str, options: argparse.Namespace
) -> Iterator[tuple[Cell, str]]:
    """Yields each cell as it is done, with the reason if it could not be measured."""
    started = time.monotonic()
    for names in CELLS[: options.cells]:
        cell = Cell(*names)
        spent = time.monotonic() - started
        if spent > options.budget_s:
            yield cell, f"{spent:.0f} s were up"
            continue
        try:
            _measure(cell, folder, device, options)
            yield cell, ""
        except Exception as error:  # a way that does not work here; the others may
            yield cell, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        release_memory(device)


def _measure(cell: Cell, folder: Path, device: str, options: argparse.Namespace) -> None:
    kind, shape = MODELS[cell.model]
    if options.tiny:
        shape = Shape(**{**asdict(TINY), "settings": {}})
    way = WAYS[cell.way]
    if device == "cpu" and way.dtype == "float16":
        way = Acceleration(way.backend, "bfloat16", way.variant)
    path = make_model(folder / cell.model, kind, shape, device=device)
    model_options = options_of(way.dtype, way.backend)
    lengths = LENGTHS[cell.lengths](MOST_TEXTS // (1000 if options.tiny else 1), shape.length - 2)
    texts = texts_of(shape, lengths[:WARM_UP_TEXTS])
    expected = _in_float32(path, device, tuple(texts))
    checkpoint = Checkpoint(path, model_options, device, layout=Layout(pad_to_multiple_of=8))
    model = load_way(checkpoint, way)
    runtime: Any = model.runtime
    in_turn = RunningModel(checkpoint, PipelineRuntime(runtime.pipe))
    seconds, found = _timed(lambda: _probabilities(score(Scorer(model, model_options), texts)))
    cell.difference = float(np.abs(found - expected).max())
    seconds, _ = _timed(lambda: score(Scorer(model, model_options), texts))
    count = int(len(texts) * options.repetition_s / seconds)
    texts = texts_of(shape, lengths[: max(min(count, len(lengths)), 100)])
    _take_turns(cell, (model, in_turn), model_options, texts, options.repetitions)
    cell.work = _operations(_module_of(model), shape, cell, lengths[: len(texts)])


@cache
def _in_float32(path: Path, device: str, texts: tuple[str, ...]) -> Any:
    """Returns the probabilities in plain float32; the model is gone afterwards."""
    options = options_of("float32")
    model = load_way(Checkpoint(path, options, device), PLAIN)
    return _probabilities(score(Scorer(model, options), texts))


def _take_turns(
    cell: Cell,
    models: tuple[RunningModel, RunningModel],
    options: ModelOptions,
    texts: Sequence[str],
    repetitions: int,
) -> None:
    model, in_turn = models
    budget = DEFAULT_BATCH_TOKENS[model.device.partition(":")[0]]
    loop = HandWrittenLoop(model, texts, budget)
    busy = BusyTime(_module_of(model), model.device)
    loop.run()
    for _ in range(repetitions):
        scorer = Scorer(model, options)
        busy.reset()
        seconds, _ = _timed(partial(score, scorer, texts))
        cell.scorer_s.append(seconds)
        cell.wait_s.append(scorer.statistics.wait_s)
        cell.idle_s.append(max(0.0, seconds - busy.seconds()))
        seconds, _ = _timed(partial(score, Scorer(in_turn, options), texts))
        cell.in_turn_s.append(seconds)
        seconds, _ = _timed(loop.run)
        cell.loop_s.append(seconds)
    cell.texts = len(texts)
    cell.tokens = int(loop.lengths.sum())
    cell.padding_share = scorer.statistics.padding_share


def _operations(module: Any, shape: Shape, cell: Cell, lengths: Sequence[int]) -> float:
    """Returns the operations of a repetition: of the weights, and of tokens with one another.

    The weights of embeddings are looked up and not multiplied.
    """
    names = [(name, one.numel()) for name, one in module.named_parameters()]
    weights = sum(count for name, count in names if "embed" not in name and "wte" not in name)
    squares = float(sum((length + 2) ** 2 for length in lengths))
    return 2.0 * weights * cell.tokens + 4.0 * shape.layers * shape.hidden * squares


def _module_of(model: RunningModel) -> Any:
    runtime: Any = model.runtime
    return runtime.pipe.model


def _probabilities(scored: Any) -> Any:
    if scored["error"].null_count < len(scored):
        raise RuntimeError(f"rows have errors: {scored['error'].drop_null()[0]}")
    return np.stack(scored["probabilities"].to_pylist())


def _timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that a function takes, and its result, which is on the CPU."""
    started = time.perf_counter()
    result = act()
    return time.perf_counter() - started, result


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _name_of(device: str) -> str:
    return torch.cuda.get_device_name(0) if device.startswith("cuda") else "cpu"


HEADINGS = (
    *("model", "way", "lengths", "tokens/s", "min-max"),
    *("of one at a time", "of the loop", "of the peak"),
    *("waiting", "idle", "padding", "off by"),
)


def _print_table(cells: Sequence[dict[str, Any]], peak: float, device: str) -> None:
    title = f"{_name_of(device)}, {peak / 1e12:,.1f} TFLOP/s in bfloat16"
    table = Table(*HEADINGS, title=title)
    for cell in cells:
        low, high = cell["tokens_per_s_range"]
        table.add_row(
            *(cell["model"], cell["way"], cell["lengths"]),
            *(f"{cell['tokens_per_s']:,.0f}", f"{low:,.0f}-{high:,.0f}"),
            *(f"{cell[name]:.0%}" for name in ("of_one_at_a_time", "of_the_loop", "of_the_peak")),
            *(f"{cell[name]:.1%}" for name in ("wait_share", "idle_share", "padding_share")),
            f"{cell['difference']:.1g}",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
