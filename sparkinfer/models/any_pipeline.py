"""Any other pipeline of transformers that reads a text, as a processor of rows.

A task of this package's own batches, compares and accelerates; here the pipeline is called as it
is, with one text after the other, in float32. Its results become columns of a schema that the user
gives, or that is inferred from the first rows before the run.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.logs import get_logger
from sparkinfer.messages import first_line
from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.models.checkpoint import quiet_transformers
from sparkinfer.models.ddl import columns_as_ddl, parse_columns
from sparkinfer.models.options import settings_of_texts, texts_of
from sparkinfer.models.pipeline_calls import LoadedPipeline, PipelineScorer
from sparkinfer.models.pipeline_names import refuse_unfit
from sparkinfer.models.probes import PROBE_TEXTS
from sparkinfer.models.results import MisfitError, as_row, infer_columns
from sparkinfer.models.sources import ModelSource, resolve, stage
from sparkinfer.models.tasks.base import ROW_FIELDS, Pairs, column_metadata
from sparkinfer.models.text_sources import TextSource
from sparkinfer.option_groups import LoadingConfig
from sparkinfer.validation import Options, read_by, read_group
from sparkinfer.workers import resident
from sparkinfer.workers.devices import release_memory
from sparkinfer.workers.gpus import release_gpus
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics

logger = get_logger(__name__)

LOOKED_AT = 64
"""Texts of which columns are inferred, or which are tried with given ones."""

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""What a pipeline's feature extractor or processor reads, beside what a tokenizer does."""

_SCHEMA = "task.schema"

FirstRows = Callable[[], Iterable[pa.RecordBatch]]


def _as_json(value: Any) -> Any:
    """Returns a mapping as JSON, which is all that a call may be given."""
    if isinstance(value, str):
        return value
    try:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        pass
    raise ValueError("a mapping of names to numbers, texts, true, false, null or lists of those")


def _not_mapping(value: Any) -> Any:
    """Returns what is no mapping, as which YAML reads a colon with a space after it."""
    if isinstance(value, Mapping):
        raise ValueError("columns, without a space after a colon, as in 'a struct<b:string>'")
    return value


@dataclass(frozen=True, init=False)
class PipelineOptions(Options):
    """How a pipeline is called, and which columns its results are."""

    schema: str | None = field(default=None, metadata=read_by(_not_mapping))
    """The columns, such as `label string, score double`; None: inferred from the first rows."""
    call: str = field(default="{}", metadata=read_by(_as_json))
    """Arguments of each call beside the text, such as `{max_new_tokens: 20}`."""


class _OneText:
    pairs: Pairs = "never"
    takes_messages = False


@dataclass(frozen=True)
class PipelineVerdict:
    """What the trial of a pipeline found.

    Attributes:
        accepted: what every worker runs.
        device: kind of device it was tried on, `cpu` or `cuda`.
        schema: the columns of its results, as DDL.
        rejected: nothing: there is no other way to run it.
        unpadded: nothing: texts share no batch.
    """

    accepted: str
    device: str
    schema: str
    rejected: tuple[tuple[str, str], ...] = ()
    unpadded: str = ""

    @property
    def details(self) -> str:
        """What to know of it, as a phrase."""
        return f"columns {self.schema}"

    @property
    def found(self) -> str:
        """All that was found."""
        return f"{self.accepted} on {self.device}, {self.details}"


@dataclass(frozen=True)
class AnyPipeline:
    """Scores rows with a pipeline; see `PlannedProcessor`.

    Attributes:
        model: the model as the user gave it.
        revision: branch, tag or commit of a hub model.
        name: of the pipeline.
        texts: where the text comes from.
        options: of the task.
        prefix: of the name of each scored column.
        loading: what is allowed.
        source: the model's files; None before they are resolved.
        verdict: what a trial found; None before one.
        first_rows: for the trial; None: there are none to look at.
        dedupe: whether equal texts follow one another, so that none need be scored again.
    """

    model: str
    revision: str | None
    name: str
    texts: tuple[TextSource, ...]
    options: PipelineOptions
    prefix: str = ""
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    source: ModelSource | None = None
    verdict: PipelineVerdict | None = None
    first_rows: FirstRows | None = None
    dedupe: bool = False

    labels = ()
    evaluation = None
    replaces_rows = False

    @classmethod
    def of(cls, config: ScoringConfig) -> AnyPipeline:
        """Returns the configured pipeline.

        Raises:
            ConfigError: there is none of that name, or an option is not for it.
        """
        name = config.task.name
        refuse_unfit(name)
        _refuse_options_of_models(config)
        options = read_group(PipelineOptions, config.task.options, "task.")
        texts = texts_of(config, _OneText())
        return cls(
            str(config.model),
            config.revision,
            name,
            texts,
            options,
            config.output_prefix,
            config.loading,
            dedupe=config.dedupe,
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that the text is made of."""
        return self.texts[0].made_of.columns

    @property
    def fields(self) -> pa.Schema:
        """The scored columns; those of the results are missing until they are known."""
        metadata = None
        if self.verdict and self.source:
            metadata = column_metadata(self.source.fingerprint, ())
        fields = [*(self._columns or ()), *ROW_FIELDS]
        return pa.schema(
            [one.with_name(self.prefix + one.name).with_metadata(metadata) for one in fields]
        )

    def check(self) -> None:
        """Raises UsageError for a text that cannot be made, or a schema that cannot be."""
        self.texts[0].check()
        if self._columns is not None:
            _refuse_names_of_rows(self._columns)

    def check_names(self, columns: Sequence[str]) -> None:
        """Raises InputError for columns that the input does not have."""
        self.texts[0].check_names(columns)

    def check_types(self, inputs: pa.Schema) -> None:
        """Raises InputError for columns of which no text is made."""
        self.texts[0].made_of.check_types(inputs)

    def longest_text(self, of_column: Callable[[str], int | None]) -> int | None:
        """Returns None: the trial does not need it."""

    def resolved(self) -> AnyPipeline:
        """Returns the spec with the model's files found and fetched."""
        found = resolve(
            self.model, revision=self.revision, loading=self.loading, files=PROCESSOR_FILES
        )
        return replace(self, source=found)

    def settings(self) -> dict[str, Any]:
        """Returns the settings that determine the output, by name."""
        settings = {
            "model_fingerprint": self._found.fingerprint,
            **settings_of_texts(self.texts),
            "task": self.name,
            "task.call": json.loads(self.options.call),
        }
        columns = self._columns
        return settings if columns is None else {**settings, "task.schema": columns_as_ddl(columns)}

    def decided(self, found: PipelineVerdict) -> AnyPipeline:
        """Returns the spec with the columns of its results."""
        if self.options.schema is None and self.first_rows is not None:
            logger.warning(
                "task=%r: columns inferred from the first rows: %s; a row that does not fit gets "
                "an error, give --set task.schema=... to have others", self.name, found.schema
            )  # fmt: skip
        return replace(self, verdict=found, first_rows=None)

    def looking_at(self, first_rows: Callable[[], FirstRows]) -> AnyPipeline:
        """Returns the spec, to be tried out on rows of the input; see `LooksAtRows`."""
        return replace(self, first_rows=first_rows())

    def pinned(self, verdict: Mapping[str, Any]) -> AnyPipeline:
        """Returns the spec with the columns of an earlier trial, unless others are asked for."""
        if self.options.schema is not None:
            return self
        options = PipelineOptions(schema=verdict["schema"], call=self.options.call)
        return replace(self, options=options)

    def warm_up(self) -> None:
        """Imports what it needs."""
        quiet_transformers()
        importlib.import_module("transformers.pipelines")

    def try_out(self, slot: WorkerSlot, ahead: RowsAhead = NOTHING_KNOWN) -> PipelineVerdict:
        """Returns the columns of the results, tried in this process on the first texts.

        Raises:
            ModelLoadError: the model does not load, or fails with all of them.
            ConfigError: no result fits the schema, or none can be inferred.
        """
        resident.release()
        pipe = self._load(slot.device)
        pipe.refuse_another_head()
        pipe.refuse_random_weights()
        results = self._results(pipe)
        columns = self._columns
        if columns is None:
            columns = self._inferred(results)
        elif results:
            self._refuse_misfit(results, columns)
        if slot.scores_later:
            resident.keep(self._key(slot.device), pipe, lambda: release_memory(slot.device))
        else:
            del pipe
            release_memory(slot.device)
            release_gpus()
        accepted = f"transformers' pipeline {self.name!r} in float32"
        return PipelineVerdict(accepted, slot.device.partition(":")[0], columns_as_ddl(columns))

    def open(self, slot: WorkerSlot, report: Callable[[ScoringStatistics], None]) -> PipelineScorer:
        """Returns a scorer with this process's one copy of the pipeline; loads it if needed."""
        if self.verdict is None:
            raise AssertionError("rows can be scored only after the trial")

        def load() -> LoadedPipeline:
            return self._load(slot.device)

        key = self._key(slot.device)
        pipe = resident.get(key, load, lambda: release_memory(slot.device))
        columns = parse_columns(self.verdict.schema, _SCHEMA, of_results=True)
        return PipelineScorer(pipe, self.texts[0], columns, report, self.prefix, self.dedupe)

    @property
    def _columns(self) -> pa.Schema | None:
        """The columns of the results, None if they are not known."""
        given = self.verdict.schema if self.verdict else self.options.schema
        return None if given is None else parse_columns(given, _SCHEMA, of_results=True)

    @property
    def _found(self) -> ModelSource:
        if self.source is None:
            raise AssertionError("the model's files must be resolved before they are used")
        return self.source

    def _load(self, device: str) -> LoadedPipeline:
        path = stage(self._found, self.loading)
        return LoadedPipeline(self.name, path, device, self.loading, json.loads(self.options.call))

    def _key(self, device: str) -> tuple[object, ...]:
        return ("pipeline", self._found.fingerprint, self.name, device, self.options.call)

    def _first_texts(self) -> list[str]:
        if self.first_rows is None:
            return list(PROBE_TEXTS)
        rows = self.first_rows()
        texts = (text for batch in rows for text in self.texts[0].read(batch).values)
        return list(islice((text for text in texts if text is not None), LOOKED_AT))

    def _results(self, pipe: LoadedPipeline) -> list[Any]:
        """Returns the results for the first texts that have one.

        Raises:
            ModelLoadError: there are texts, but no result.
        """
        results: list[Any] = []
        failure: Exception | None = None
        for text in self._first_texts():
            try:
                results.append(pipe(text))
            except Exception as error:  # a pipeline may raise anything, for some texts
                failure = failure or error
        if failure is not None and not results:
            raise ModelLoadError(
                f"model {self.model!r} as the pipeline {self.name!r} fails with every text that "
                f"was tried ({type(failure).__name__}: {first_line(failure)}); try "
                "transformers.pipeline with it, and see task.call for the arguments of a call"
            ) from failure
        return results

    def _inferred(self, results: Sequence[Any]) -> pa.Schema:
        shown = f"task={self.name!r}: no columns can be inferred"
        advice = "give them with --set task.schema='label string, score double'"
        if not results:
            raise ConfigError(f"{shown} from an input without a text; {advice}")
        try:
            return infer_columns(results, not_named=[one.name for one in ROW_FIELDS])
        except MisfitError as error:
            raise ConfigError(f"{shown}: {error}; {advice}") from None

    def _refuse_misfit(self, results: Sequence[Any], columns: pa.Schema) -> None:
        """Raises ConfigError if no result fits the columns."""
        misfits = []
        for result in results:
            try:
                as_row(result, columns)
            except MisfitError as error:
                misfits.append(str(error))
        if len(misfits) == len(results):
            raise ConfigError(
                f"task.schema={self.options.schema!r} fits no result of the pipeline: "
                f"{misfits[0]}; correct it, or leave it out to have it inferred from files"
            )


def _refuse_names_of_rows(columns: pa.Schema) -> None:
    taken = {one.name for one in ROW_FIELDS}
    for name in columns.names:
        if name.lower() in taken:
            raise ConfigError(
                f"task.schema with {name!r}: every row has a column of that name; take the whole "
                "result with --set task.schema='result struct<...>'"
            )


def _refuse_options_of_models(config: ScoringConfig) -> None:
    """Raises ConfigError for options of what only this package's own tasks do."""
    given = {
        f"dtype={config.dtype!r}": config.dtype not in ("auto", "float32"),
        f"acceleration={config.acceleration!r}": config.acceleration not in ("auto", "none"),
        f"max_length={config.max_length!r}": config.max_length is not None,
        "parallel": config.parallel.is_asked,
    }
    for what, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"{what} with task={config.task.name!r}: such a pipeline is called as it is, in "
                "float32; drop the option, or see task.call for the arguments of a call"
            )
