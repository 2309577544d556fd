"""A model as a processor of rows: what the driver plans with and every worker opens."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import EngineUnavailableError, JobError
from sparkinfer.logs import get_logger
from sparkinfer.metrics.base import Evaluation
from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.models.backends import BACKENDS, check_options, warm_up
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.encoded import EncodedRows
from sparkinfer.models.fetching import node_name
from sparkinfer.models.files import tokenizer_digest
from sparkinfer.models.gate import Verdict, run_as, run_gate
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.row_encoder import RowEncoder
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import Scorer
from sparkinfer.models.sources import ModelSource, resolve, stage
from sparkinfer.models.speed import SpeedTrial
from sparkinfer.models.tasks.base import Task, column_metadata, scored_schema
from sparkinfer.models.verdicts import VerdictMemory
from sparkinfer.workers import resident
from sparkinfer.workers.devices import device_model, release_memory
from sparkinfer.workers.gpus import release_gpus
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.suspects import Suspects

logger = get_logger(__name__)


@dataclass(frozen=True)
class ModelScoring:
    """Scores rows with one model; see `PlannedProcessor`.

    Attributes:
        model: the model as the user gave it.
        revision: branch, tag or commit of a hub model.
        options: how it is loaded and run, and what it is fed.
        source: the model's files; None before they are resolved.
        verdict: how every worker runs it; None before the gate has decided.
    """

    model: str
    revision: str | None
    options: ModelOptions
    source: ModelSource | None = None
    verdict: Verdict | None = None

    encodings = 1
    replaces_rows = False
    read_beside = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that the task's texts are made of."""
        return self.options.columns

    @property
    def prefix(self) -> str:
        """Of the name of each scored column."""
        return self.options.prefix

    @property
    def task(self) -> Task:
        """What the model does."""
        return self.options.task

    @property
    def evaluation(self) -> Evaluation | None:
        """How the task's results are measured."""
        return self.task.evaluation

    @property
    def labels(self) -> tuple[str, ...]:
        """Names in the order of the probabilities; none before the gate has decided."""
        return self.verdict.labels if self.verdict else ()

    @property
    def fields(self) -> pa.Schema:
        """The scored columns; once the gate has decided, their metadata names the model."""
        metadata = None
        if self.verdict and self.source:
            metadata = column_metadata(self.source.fingerprint, self.labels)
        return scored_schema(self.task, self.prefix, metadata)

    def check(self) -> None:
        """Raises UsageError for texts that cannot be made, or an unavailable backend."""
        for text in self.options.texts:
            text.check()
        check_options(self.options)

    def check_names(self, columns: Sequence[str]) -> None:
        """Raises InputError for columns that the input does not have."""
        for text in self.options.texts:
            text.check_names(columns)

    def check_types(self, inputs: pa.Schema) -> None:
        """Raises InputError for columns of which no text is made."""
        for text in self.options.texts:
            text.made_of.check_types(inputs)

    def longest_text(self, of_column: Callable[[str], int | None]) -> int | None:
        """Returns an upper bound of the UTF-8 bytes of the longest of a row's texts."""
        known = [text.longest(of_column) for text in self.options.texts]
        lengths = [length for length in known if length is not None]
        return max(lengths) if len(lengths) == len(known) else None

    def resolved(self) -> ModelScoring:
        """Returns the spec with the model's files found and fetched."""
        loading, files = self.options.loading, self.options.files
        found = resolve(self.model, revision=self.revision, loading=loading, files=files)
        return replace(self, source=found)

    def settings(self) -> dict[str, Any]:
        """Returns the model settings that determine the output, by name."""
        settings = {"model_fingerprint": self.found.fingerprint, **self.options.settings()}
        if self.verdict is None:
            return settings
        found = {f"task.resolved.{name}": value for name, value in self.verdict.task.items()}
        return settings | {"acceleration": str(self.verdict.accepted)} | found

    @property
    def found(self) -> ModelSource:
        """The model's files."""
        if self.source is None:
            raise AssertionError("the model's files must be resolved before they are used")
        return self.source

    def decided(self, found: Verdict) -> ModelScoring:
        """Returns the spec, to be run as the gate decided."""
        return replace(self, verdict=found)

    def pinned(self, verdict: Mapping[str, Any]) -> ModelScoring:
        """Returns the spec, to be run only as an earlier gate decided; see `PlannedProcessor`."""
        way = Acceleration(**verdict["accepted"])
        options = self.options
        if options.acceleration not in ("auto", way.backend) or options.dtype not in (
            "auto",
            way.dtype,
        ):
            return self
        backend = BACKENDS.get(way.backend)
        problem = backend.problem() if backend else f"there is no backend {way.backend!r}"
        if problem is not None:
            raise EngineUnavailableError(f"the output was started with {way.shown}: {problem}")
        parallel = options.parallel
        if (way.processes, way.offloads) != (parallel.tensor, parallel.offload == "cpu"):
            return self
        return replace(self, options=replace(options, way=way))

    def warm_up(self) -> None:
        """Imports what running the model may need."""
        warm_up(self.options.acceleration)

    def try_out(self, slot: WorkerSlot, ahead: RowsAhead = NOTHING_KNOWN) -> Verdict:
        """Returns how every worker is to run the model, tried in this process.

        The model that passed stays loaded if this process is likely to score later; otherwise it is
        released, so that the process does not hold the accelerator's memory.
        """
        for text in self.options.texts:
            text.check()  # a function of the user's must be found here, too
        resident.release()
        model, verdict = self.tried(slot, ahead)
        if slot.scores_later:
            key = self.decided(verdict).key(slot)
            resident.keep(key, model, lambda: release_memory(slot.device))
        else:
            del model
            release_memory(slot.device)
            release_gpus()
        return verdict

    def tried(self, slot: WorkerSlot, ahead: RowsAhead) -> tuple[RunningModel, Verdict]:
        """Returns the model as every worker is to run it, and how that is.

        What an earlier gate found on this node is taken as it is, unless it does not work now.
        """
        path = stage(self.found, self.options.loading)
        memory = VerdictMemory(self.found.fingerprint, self.options, slot)
        wants_speed = SpeedTrial(self.options, ahead).is_worth_it
        how = (path, self.options, slot, ahead, self.found.fingerprint)
        if (known := memory.recall(ahead, wants_speed)) is not None:
            try:
                return run_as(known, *how), known
            except Exception as error:  # a backend may raise anything
                logger.warning("what the gate found before does not work now: %s", error)
        model, verdict = run_gate(*how)
        memory.keep(verdict, ahead)
        return model, verdict

    def open(self, slot: WorkerSlot, report: Callable[[ScoringStatistics], None]) -> Scorer:
        """Returns a scorer of this process's one copy of the model; loads it if needed."""
        load = partial(self.load, slot)
        model = resident.get(self.key(slot), load, lambda: release_memory(slot.device))
        return Scorer(model, self.options, report)

    def load(self, slot: WorkerSlot) -> RunningModel:
        """Returns the model, run as the gate decided.

        Raises:
            JobError: this is another device than the gate's, and that does not work here.
        """
        verdict = self._decided()
        if device_model(slot.device) != verdict.device_model:
            return self._verified(slot, verdict)
        return load_way(self._checkpoint(slot.device, slot.others), verdict.accepted)

    def _verified(self, slot: WorkerSlot, verdict: Verdict) -> RunningModel:
        """Returns the model, run as the gate decided elsewhere, if it passes here, too."""
        pinned = replace(self, options=replace(self.options, way=verdict.accepted))
        model, here = pinned.tried(slot, NOTHING_KNOWN)
        found = [(one.accepted, one.max_length, one.layout) for one in (verdict, here)]
        if found[0] != found[1]:
            raise JobError(
                f"node {node_name()} ({here.device_model}) would run the model otherwise than the "
                f"gate's ({verdict.device_model}): {found[1]}, expected {found[0]}; use nodes of "
                "one kind, or give --acceleration none --dtype float32"
            )
        return model

    def key(self, slot: WorkerSlot) -> tuple[object, ...]:
        """Returns what tells the model, as it is run there, from others."""
        found, verdict = self.found.fingerprint, self._decided()
        how = (verdict.accepted, *self._lengths, verdict.layout)
        return (found, slot.device, slot.others, self.options.task, *how)

    def encoder(self, cores: int) -> Callable[[pa.RecordBatch, Suspects], tuple[EncodedRows]]:
        """Returns what makes the model's inputs of rows; see `EncodesAhead`.

        It needs no accelerator and loads no weights.
        """
        load = partial(self.load_encoder, cores)
        encoder = resident.get(self.encoder_key, load, lambda: None)
        return lambda batch, suspects: (encoder.encode(batch, suspects),)

    @property
    def encoder_key(self) -> tuple[object, ...]:
        """What tells that from others."""
        what = (self.found.fingerprint, self.task, self.options.texts)
        return ("tokenizer", *what, *self._lengths)

    def load_encoder(self, cores: int, name: str = "") -> RowEncoder:
        """Returns the same, loaded.

        Args:
            cores: for it.
            name: of the model among several; see `Scorer`.
        """
        os.environ.setdefault("RAYON_NUM_THREADS", str(cores))
        checkpoint = self._checkpoint("cpu")
        encode = partial(checkpoint.task.encode, checkpoint.encoder)
        return RowEncoder(self.options.texts, encode, name)

    def encoding_of(self, model: RunningModel) -> tuple[object, ...] | None:
        """Returns what determines the model's inputs; None: no other model's are the same.

        Args:
            model: this one.
        """
        kind = type(model.encoder.tokenizer)
        own_code = kind.__module__.startswith("transformers_modules")
        if model.task.encoding is None or own_code:
            return None
        files = tokenizer_digest(stage(self.found, self.options.loading))
        cut_at = (self.options.max_length, model.encoder.max_length)
        return (files, kind, cut_at, self.options.texts, model.task.encoding)

    def _checkpoint(self, device: str, others: tuple[str, ...] = ()) -> Checkpoint:
        """Returns the model's files on this node, to be run as the gate decided."""
        path, verdict = stage(self.found, self.options.loading), self._decided()
        found = (verdict.max_length, verdict.layout)
        return Checkpoint(path, self.options, device, *found, others, self.found.fingerprint)

    def _decided(self) -> Verdict:
        if self.verdict is None:
            raise AssertionError("rows can be scored only after the gate has decided")
        return self.verdict

    @property
    def _lengths(self) -> tuple[int | None, int]:
        """The length limit that was asked for, and that which holds."""
        return self.options.max_length, self._decided().max_length
