"""Dynamic batching against the package `batched`: `python -m tests.benchmarks.dynamic`.

The same function and load for both, in turns in one run; prints medians and their ratios. Without
that package (`pip install batched`) only ours is run. `--model FOLDER` takes a text classifier with
texts of mixed lengths in place of the small function, `--million` counts a million calls from
threads and from tasks instead: lost, crossed and doubled results, and memory.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import random
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import sparkinfer.batching.dynamic as ours

FRONTS = ("threads", "tasks")
BATCH_SIZE = 32
TIMEOUT_MS = 5.0


class Measured(NamedTuple):
    """Calls a second, and the 99th percentile of their milliseconds."""

    rate: float
    p99_ms: float


def packages() -> dict[str, Any]:
    found = {"sparkinfer": ours}
    if importlib.util.find_spec("batched") is not None:
        found["batched"] = importlib.import_module("batched")
    return found


def main() -> None:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks.dynamic")
    made.add_argument("--callers", type=int, nargs="+", default=[1, 16, 256])
    made.add_argument("--fronts", nargs="+", choices=FRONTS, default=FRONTS)
    made.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    made.add_argument("--repetitions", type=int, default=5)
    made.add_argument("--work-ms", type=float, default=0.0, help="of the small function, asleep")
    made.add_argument("--model", help="folder of a text classifier")
    made.add_argument("--torch-threads", type=int, help="that the classifier runs in")
    made.add_argument("--million", type=int, nargs="?", const=1_000_000, help="calls to count")
    options = made.parse_args()
    if options.million:
        count_calls(options.million)
    elif options.model:
        compare_models(options)
    else:
        compare_small(options)
        print(f"idle: {idle_share(5.0):.3%} of a core")


def compare_small(options: argparse.Namespace) -> None:
    for front in options.fronts:
        for callers in options.callers:
            runs: dict[str, list[Measured]] = {}
            for turn in range(options.repetitions):
                for name, package in in_turns(packages(), turn):
                    with small_function(package, front, options.work_ms / 1000) as function:
                        load = [[number] for number in range(callers)]
                        measured = run_load(front, function, load, options.seconds)
                    runs.setdefault(name, []).append(measured)
            show(f"{front}, {callers} callers", runs)


def in_turns(named: dict[str, Any], turn: int) -> list[tuple[str, Any]]:
    """Returns them in another order each time."""
    return list(named.items())[:: 1 if turn % 2 else -1]


@contextmanager
def small_function(package: Any, front: str, work_s: float) -> Iterator[Callable[[Any], Any]]:
    """Yields a batched function that doubles numbers."""
    settings = {"batch_size": BATCH_SIZE, "timeout_ms": TIMEOUT_MS}
    if front == "tasks":

        async def double_async(numbers: list[int]) -> list[int]:
            if work_s:
                await asyncio.sleep(work_s)
            return [2 * number for number in numbers]

        yield package.aio.dynamically(double_async, **settings)
        return

    def double(numbers: list[int]) -> list[int]:
        if work_s:
            time.sleep(work_s)
        return [2 * number for number in numbers]

    batched = package.dynamically(double, **settings)
    yield batched
    batched.shutdown()


def run_load(
    front: str, function: Callable[[Any], Any], load: Sequence[Sequence[Any]], seconds: float
) -> Measured:
    """Returns what callers measure that call again and again, each with items of its own."""
    latencies: list[list[float]] = [[] for _ in load]
    started = time.perf_counter()
    until = started + seconds
    if front == "threads":
        call_from_threads(function, load, latencies, until)
    else:
        asyncio.run(call_from_tasks(function, load, latencies, until))
    took = time.perf_counter() - started
    every = sorted(latency for one in latencies for latency in one)
    return Measured(len(every) / took, every[int(len(every) * 0.99)] * 1000)


def call_from_threads(function: Any, load: Any, latencies: Any, until: float) -> None:
    def call(items: Sequence[Any], taken: list[float]) -> None:
        place = 0
        while (now := time.perf_counter()) < until:
            function(items[place % len(items)])
            taken.append(time.perf_counter() - now)
            place += 1

    threads = [
        threading.Thread(target=call, args=of_one) for of_one in zip(load, latencies, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def call_from_tasks(function: Any, load: Any, latencies: Any, until: float) -> None:
    async def call(items: Sequence[Any], taken: list[float]) -> None:
        place = 0
        while (now := time.perf_counter()) < until:
            await function(items[place % len(items)])
            taken.append(time.perf_counter() - now)
            place += 1

    await asyncio.gather(*(call(*of_one) for of_one in zip(load, latencies, strict=True)))


def show(what: str, runs: dict[str, list[Measured]]) -> None:
    medians = {
        name: Measured(*(statistics.median(values) for values in zip(*those, strict=True)))
        for name, those in runs.items()
    }
    line = ", ".join(
        f"{name} {one.rate:.0f} calls/s, p99 {one.p99_ms:.2f} ms" for name, one in medians.items()
    )
    if "batched" in runs:
        both = list(zip(runs["sparkinfer"], runs["batched"], strict=True))
        rate = statistics.median(own.rate / other.rate for own, other in both)
        p99 = statistics.median(own.p99_ms / other.p99_ms for own, other in both)
        line += f"; ratio of rates {rate:.2f}, of p99 {p99:.2f}"
    print(f"{what}: {line}", flush=True)


def idle_share(seconds: float) -> float:
    """Returns the CPU time that batchers without calls take, as a share of one core."""
    batchers = [ours.dynamically(lambda numbers: numbers) for _ in range(10)]
    for batcher in batchers:
        batcher(1)
    before = time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - before) / seconds / len(batchers)
    for batcher in batchers:
        batcher.shutdown()
    return share


def compare_models(options: argparse.Namespace) -> None:
    """Takes turns with a classifier and 64 callers, each with tokens of its own texts."""
    import torch
    from transformers import AutoModelForSequenceClassification

    if options.torch_threads:
        torch.set_num_threads(options.torch_threads)
    model = AutoModelForSequenceClassification.from_pretrained(options.model).eval()

    def classify(features: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return model(**features).logits

    load = mixed_texts(64, model.config.vocab_size)
    runs: dict[str, list[Measured]] = {}
    for turn in range(options.repetitions):
        for name, package in in_turns(packages(), turn):
            batched = package.inference.dynamically(
                classify, batch_size=BATCH_SIZE, timeout_ms=TIMEOUT_MS
            )
            runs.setdefault(name, []).append(run_load("threads", batched, load, options.seconds))
            batched.shutdown()
    show("classifier, 64 callers", runs)


def mixed_texts(callers: int, vocab_size: int) -> list[list[Any]]:
    """Returns features of 16 texts for each caller, most of them short."""
    import torch

    dice = random.Random(0)
    made = []
    for _ in range(callers):
        lengths = [min(256, int(dice.lognormvariate(3.3, 0.9)) + 3) for _ in range(16)]
        ids = [torch.randint(5, vocab_size, (1, length)) for length in lengths]
        made.append([{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids])
    return made


def count_calls(calls: int) -> None:
    for front, callers in (("threads", 64), ("tasks", 1000)):
        with small_function(ours, front, 0) as function:
            wrong, memory = counted(front, function, callers, calls // callers)
        print(f"{calls} calls from {callers} {front}: {wrong} wrong; peak of memory {memory}")


def counted(front: str, function: Any, callers: int, each: int) -> tuple[int, str]:
    """Returns how many results were not those of their calls, and how the peak of memory grew."""
    wrong = [0] * callers
    peaks = [peak_mib()]

    def check(caller: int, number: int, result: int) -> None:
        wrong[caller] += result != 2 * number
        if caller == 0 and number % max(each // 4, 1) == 0:
            peaks.append(peak_mib())

    def call(caller: int) -> None:
        for number in range(caller * each, (caller + 1) * each):
            check(caller, number, function(number))

    async def call_async(caller: int) -> None:
        for number in range(caller * each, (caller + 1) * each):
            check(caller, number, await function(number))

    async def call_all() -> None:
        await asyncio.gather(*map(call_async, range(callers)))

    if front == "tasks":
        asyncio.run(call_all())
    else:
        threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sum(wrong), " -> ".join(f"{peak:.0f}" for peak in peaks) + " MiB"


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
