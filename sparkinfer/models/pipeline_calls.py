"""Calls a pipeline of transformers with one text after the other, and makes rows of the results."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import DeviceError, ModelLoadError
from sparkinfer.messages import first_line
from sparkinfer.models.careful import MODEL, read_noted
from sparkinfer.models.checkpoint import quiet_transformers, without_dropout
from sparkinfer.models.results import MisfitError, as_row, plain
from sparkinfer.models.scorer import NULL_TEXT
from sparkinfer.models.screening import refuse_bombs
from sparkinfer.models.tasks.base import ROW_FIELDS
from sparkinfer.models.text_sources import Texts, TextSource
from sparkinfer.option_groups import LoadingConfig
from sparkinfer.workers.devices import breaks_device, is_out_of_memory, release_memory, use_gpu
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.steps import step
from sparkinfer.workers.suspects import DEADLY, Suspects
from sparkinfer.workers.watchdog import Activity, PipelineCall, Tokenising


class LoadedPipeline:
    """A pipeline of transformers in float32.

    Args:
        name: of the pipeline.
        path: folder with the model's files.
        device: torch device.
        loading: what is allowed.
        options: of each call.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        device: str,
        loading: LoadingConfig,
        options: Mapping[str, Any],
    ) -> None:
        self.device = device
        self._path = path
        self._loading = loading
        self._options = options
        if device.startswith("cuda"):
            use_gpu(device)
        with step(f"loading the pipeline {name}"):
            self._pipe = self._loaded(name)

    def __call__(self, text: str) -> Any:
        """Returns the result for a text, as Python's own types; raises whatever the pipeline does.

        Raises:
            DeviceError: the accelerator's context is broken; the process must exit.
        """
        import torch

        try:
            with torch.inference_mode():
                return plain(self._pipe(text, **self._options))
        except Exception as error:
            if is_out_of_memory(error):
                release_memory(self.device)
            elif breaks_device(error):
                raise DeviceError(
                    f"device {self.device} is broken ({first_line(error)}); the worker process "
                    "ends so that a new one gets a clean device"
                ) from error
            raise

    def refuse_another_head(self) -> None:
        """Raises ModelLoadError for a model of transformers that is none for the pipeline.

        transformers loads it all the same, as what it is, and returns something.
        """
        from transformers.pipelines import PIPELINE_REGISTRY

        kind, task = type(self._pipe.model), self._pipe.task
        fitting = PIPELINE_REGISTRY.check_task(task)[1].get("pt", ())
        known = [one for each in fitting for one in _classes_of(each, self._pipe.model.config)]
        if kind.__module__.startswith("transformers.") and fitting and kind not in known:
            expected = " or ".join(one.__name__ for one in (known or fitting))
            raise ModelLoadError(
                f"model {str(self._path)!r} is a {kind.__name__}, expected {expected} for "
                f"task={task!r}; name the task that the model was trained for"
            )

    def refuse_random_weights(self) -> None:
        """Raises ModelLoadError for a model whose files lack weights; cost: it is loaded again."""
        module = self._pipe.model
        _, report = type(module).from_pretrained(
            self._path, output_loading_info=True, **self._allowed()
        )
        if report["missing_keys"]:
            raise ModelLoadError(
                f"model {str(self._path)!r} has no weights for "
                f"{sorted(report['missing_keys'])[:3]}: they would be random; give a model that "
                f"was trained for {self._pipe.task!r}"
            )

    def _loaded(self, name: str) -> Any:
        quiet_transformers()
        import torch
        import transformers

        shown = f"model {str(self._path)!r}"
        refuse_bombs(self._path, shown)
        allowed = self._allowed()
        trusted = allowed.pop("trust_remote_code")
        try:
            pipe = transformers.pipeline(
                name,
                model=str(self._path),
                device=torch.device(self.device),
                torch_dtype=torch.float32,
                trust_remote_code=trusted,
                model_kwargs=allowed,
            )
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, ...
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelLoadError(
                f"{shown} does not load as the pipeline {name!r}: {reason[:500]}"
            ) from error
        pipe.model.float().eval()
        without_dropout(pipe.tokenizer)
        return pipe

    def _allowed(self) -> dict[str, Any]:
        return {
            "trust_remote_code": self._loading.trust_remote_code,
            "use_safetensors": None if self._loading.allow_pickle_weights else True,
        }


def _classes_of(auto: Any, config: Any) -> Sequence[type]:
    """Returns the classes that one of the library's `AutoModel` classes has for a configuration."""
    mapping = getattr(auto, "_model_mapping", None)
    found = auto if mapping is None else mapping.get(type(config), ())
    return found if isinstance(found, list | tuple) else (found,)


class PipelineScorer:
    """Scores rows with a pipeline; a `Processor`.

    Args:
        call: returns the result for a text.
        source: where the text of a row comes from.
        columns: of the results.
        report: called with the statistics so far after each text.
        salt: tells texts in this pipeline from the same texts in another.
        dedupe: whether a text that follows an equal one has its result.

    Attributes:
        statistics: what it has done so far.
        suspects: texts that may have killed a worker, and where to note what runs.
    """

    def __init__(
        self,
        call: Callable[[str], Any],
        source: TextSource,
        columns: pa.Schema,
        report: Callable[[ScoringStatistics], None],
        salt: str = "",
        dedupe: bool = False,
    ) -> None:
        self.statistics = ScoringStatistics()
        self.suspects = Suspects()
        self._call = call
        self._source = source
        self._columns = columns
        self._schema = pa.schema([*columns, *ROW_FIELDS])
        self._report = report
        self._salt = salt
        self._dedupe = dedupe
        self._last: tuple[str, dict[str, Any]] | None = None
        self._now: PipelineCall | Tokenising | None = None

    def activities(self) -> Sequence[Activity | None]:
        """Returns what it is doing now, for the watchdog."""
        return (self._now,)

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields the added columns of every row, in order; see `Processor`."""
        for batch in batches:
            texts = self._read(batch)
            rows = []
            for number, text in enumerate(texts.values):
                why = texts.reasons.get(number, NULL_TEXT)
                rows.append({"error": why} if text is None else self._row_once(text))
                self.statistics.rows_in_window = len(rows)
                self._report(self.statistics)
            self.suspects.running(MODEL[0], ())
            self.statistics.rows += len(rows)
            self.statistics.rows_in_window = 0
            self.statistics.errors += sum("error" in row for row in rows)
            yield pa.RecordBatch.from_pylist(rows, schema=self._schema)

    def _read(self, batch: pa.RecordBatch) -> Texts:
        self._now = Tokenising(batch.column(self._source.made_of.columns[0]))
        try:
            return read_noted(batch, self._source, self.suspects, self._salt)
        finally:
            self._now = None

    def _row_once(self, text: str) -> dict[str, Any]:
        if not self._dedupe:
            return self._row(text)
        if self._last is None or self._last[0] != text:
            self._last = text, self._row(text)
        return self._last[1]

    def _row(self, text: str) -> dict[str, Any]:
        if self.suspects.is_noting:
            salted = f"{self._salt}\0{text}".encode()
            one = hashlib.blake2b(salted, digest_size=8).hexdigest()
            if one in self.suspects.known.deadly:
                return {"error": DEADLY}
            self.suspects.running(MODEL[0], [one], alone=one in self.suspects.known.suspected)
        started = time.perf_counter()
        self._now = PipelineCall(len(text))
        try:
            row = as_row(self._call(text), self._columns)
        except DeviceError:
            raise
        except MisfitError as error:
            return {"error": f"pipeline: {error}; see task.schema"}
        except Exception as error:  # a pipeline may raise anything, for one of the texts
            return {"error": f"pipeline: {type(error).__name__}: {first_line(error)}"}
        finally:
            self._now = None
            self.statistics.forward_s += time.perf_counter() - started
        self.statistics.forward_rows += 1
        self.statistics.batches += 1
        return row
