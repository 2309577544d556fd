"""Scores tables of text with Hugging Face models on Spark.

    import sparkinfer

    scored = sparkinfer.score(df, model="…", input_col="text")
    result = sparkinfer.run(sparkinfer.ScoringConfig(model="…", input_col="text", …), spark)

Importing the package loads neither pyspark nor torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkinfer.api.batches import ActorPoolStrategy, TaskPoolStrategy, map_batches
    from sparkinfer.api.functions import run, score
    from sparkinfer.api.loading import LoadedModel, load
    from sparkinfer.api.processor import read_batch_run, torch_batch_process
    from sparkinfer.api.search import search
    from sparkinfer.batch_process.context import TorchBatchProcessorContext
    from sparkinfer.batch_process.pause import PausedError
    from sparkinfer.batch_process.processor import TorchBatchProcessor
    from sparkinfer.batch_process.reducers import MetricReducer
    from sparkinfer.batch_process.run import BatchRun
    from sparkinfer.batching.dynamic import dynamically
    from sparkinfer.comparing.call import compare
    from sparkinfer.comparing.result import Comparison
    from sparkinfer.config import ScoringConfig
    from sparkinfer.exceptions import SparkInferError
    from sparkinfer.jobs.result import RunResult
    from sparkinfer.report.page import Report, write_report
    from sparkinfer.tuning.call import Tuned, tune

__version__ = "0.1.0"

__all__ = [
    "ActorPoolStrategy",
    "BatchRun",
    "Comparison",
    "LoadedModel",
    "MetricReducer",
    "PausedError",
    "Report",
    "RunResult",
    "ScoringConfig",
    "SparkInferError",
    "TaskPoolStrategy",
    "TorchBatchProcessor",
    "TorchBatchProcessorContext",
    "Tuned",
    "compare",
    "dynamically",
    "load",
    "map_batches",
    "read_batch_run",
    "run",
    "score",
    "search",
    "torch_batch_process",
    "tune",
    "write_report",
]

_HOME = {
    "ActorPoolStrategy": "sparkinfer.api.batches",
    "TaskPoolStrategy": "sparkinfer.api.batches",
    "map_batches": "sparkinfer.api.batches",
    "dynamically": "sparkinfer.batching.dynamic",
    "Comparison": "sparkinfer.comparing.result",
    "compare": "sparkinfer.comparing.call",
    "ScoringConfig": "sparkinfer.config",
    "SparkInferError": "sparkinfer.exceptions",
    "RunResult": "sparkinfer.jobs.result",
    "LoadedModel": "sparkinfer.api.loading",
    "load": "sparkinfer.api.loading",
    "run": "sparkinfer.api.functions",
    "score": "sparkinfer.api.functions",
    "BatchRun": "sparkinfer.batch_process.run",
    "MetricReducer": "sparkinfer.batch_process.reducers",
    "PausedError": "sparkinfer.batch_process.pause",
    "TorchBatchProcessor": "sparkinfer.batch_process.processor",
    "TorchBatchProcessorContext": "sparkinfer.batch_process.context",
    "read_batch_run": "sparkinfer.api.processor",
    "torch_batch_process": "sparkinfer.api.processor",
    "search": "sparkinfer.api.search",
    "Tuned": "sparkinfer.tuning.call",
    "tune": "sparkinfer.tuning.call",
    "Report": "sparkinfer.report.page",
    "write_report": "sparkinfer.report.page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sparkinfer' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
