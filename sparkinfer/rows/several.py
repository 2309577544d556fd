"""Several processors over one reading of the rows: what the driver plans with and workers open.

Each is any entry of `PROCESSORS` and has a name, which distinguishes it from the others in messages
and settings. What they add is side by side, in the order of the names. Models whose inputs are the
same share them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import ConfigError, SparkInferError
from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.models.encoded import EncodedRows
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.residence import Residence
from sparkinfer.models.row_encoder import RowEncoder
from sparkinfer.models.running import RunningModel
from sparkinfer.models.scorer import Scorer
from sparkinfer.option_groups import BatchingConfig
from sparkinfer.rows.processor import (
    LooksAtRows,
    PlannedProcessor,
    ProcessorSpec,
    Report,
    RowsOfInput,
)
from sparkinfer.rows.several_scoring import ModelPart, Part, RowsPart, SeveralScoring
from sparkinfer.workers import resident
from sparkinfer.workers.devices import release_memory
from sparkinfer.workers.gpus import release_gpus
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.steps import step
from sparkinfer.workers.suspects import Suspects


@dataclass(frozen=True)
class SeveralVerdict:
    """How several models are run, for people and for the manifest.

    Attributes:
        models: the verdict on each, by its name; None for what is no model.
        takes_turns: whether only one of them is on the device at a time.
        weights_bytes: bytes of the weights of all.
        encoded_alike: names of models whose inputs are made once, in groups.
    """

    models: Mapping[str, Any]
    takes_turns: bool
    weights_bytes: int
    encoded_alike: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Found:
    """What one worker finds out of several processors; see `SeveralVerdict`.

    Attributes:
        members: of each processor, by its name.
    """

    members: Mapping[str, Any]
    takes_turns: bool
    weights_bytes: int
    encoded_alike: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SeveralProcessors:
    """Processors over the same rows; see `PlannedProcessor`.

    Attributes:
        members: by their names, in the order of their columns.
        found: what was found of them together; None before they are tried out.
        dedupe: whether equal inputs follow one another.
    """

    members: Mapping[str, PlannedProcessor]
    found: Found | None = field(default=None)
    dedupe: bool = False

    prefix = ""
    evaluation = None
    replaces_rows = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that any of them reads."""
        return tuple(dict.fromkeys(name for one in self.members.values() for name in one.inputs))

    @property
    def fields(self) -> pa.Schema:
        """What they add, one after the other, with the prefix of each."""
        return pa.schema([column for one in self.members.values() for column in one.fields])

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Of each, by its name."""
        return {name: tuple(one.labels) for name, one in self.members.items()}

    @property
    def verdict(self) -> SeveralVerdict | None:
        """How they are run."""
        if self.found is None:
            return None
        found = self.found
        verdicts = {name: one.verdict for name, one in self.members.items()}
        return SeveralVerdict(verdicts, found.takes_turns, found.weights_bytes, found.encoded_alike)

    def check(self) -> None:
        """Raises UsageError for mistakes that show without a worker; see `PlannedProcessor`."""
        for name, one in self.members.items():
            with errors_naming(name):
                _refuse_parallel(one)
                one.check()
        times = Counter(column.lower() for column in self.fields.names)
        repeated = [column for column in self.fields.names if times[column.lower()] > 1]
        if repeated:
            raise ConfigError(
                f"models {', '.join(self.members)}: more than one adds a column "
                f"{repeated[0]!r}; give them other values of output_prefix"
            )

    def check_names(self, columns: Sequence[str]) -> None:
        """Raises InputError for a column that is not there."""
        for name, one in self.members.items():
            with errors_naming(name):
                one.check_names(columns)

    def check_types(self, inputs: pa.Schema) -> None:
        """Raises InputError for a column of the wrong type."""
        for name, one in self.members.items():
            with errors_naming(name):
                one.check_types(pa.schema([inputs.field(column) for column in one.inputs]))

    def longest_text(self, of_column: Callable[[str], int | None]) -> int | None:
        """Returns an upper bound of the bytes of the longest text of any; None if unknown."""
        known = [one.longest_text(of_column) for one in self.members.values()]
        lengths = [length for length in known if length is not None]
        return max(lengths) if len(lengths) == len(known) else None

    def resolved(self) -> SeveralProcessors:
        """Returns the spec pinned to exact files."""
        return self._with(lambda name, one: one.resolved())

    def settings(self) -> dict[str, Any]:
        """Returns their names, and the settings of each as `models.NAME.SETTING`."""
        return {"models": list(self.members)} | {
            f"models.{name}.{key}": value
            for name, one in self.members.items()
            for key, value in one.settings().items()
        }

    def pinned(self, verdict: Mapping[str, Any]) -> SeveralProcessors:
        """Returns the spec, each to be tried out only as an earlier trial decided for it."""
        earlier = verdict.get("models", {})

        def pin(name: str, one: PlannedProcessor) -> PlannedProcessor:
            return one.pinned(earlier[name]) if earlier.get(name) else one

        return self._with(pin)

    def looking_at(self, first_rows: Callable[[], RowsOfInput]) -> SeveralProcessors:
        """Returns the spec, each that looks at rows to be tried out on them; see `LooksAtRows`."""

        def look(_: str, one: PlannedProcessor) -> PlannedProcessor:
            return one.looking_at(first_rows) if isinstance(one, LooksAtRows) else one

        return self._with(look)

    def warm_up(self) -> None:
        """Imports what any of them needs."""
        for one in self.members.values():
            one.warm_up()

    def try_out(self, slot: WorkerSlot, ahead: RowsAhead = NOTHING_KNOWN) -> Found:
        """Returns what one worker finds out of each, and whether they fit on the device together.

        The models stay loaded if this process is likely to score later.
        """
        resident.release()
        found: dict[str, Any] = {}

        def trial(name: str, one: ModelScoring) -> RunningModel:
            with errors_naming(name), step(f"trying out models.{name}"):
                model, found[name] = one.tried(slot, ahead)
            return model

        load = {name: partial(trial, name, one) for name, one in self._models.items()}
        residence = Residence(load, slot.device)
        for name, one in self.members.items():
            if name not in found:
                with errors_naming(name):
                    found[name] = one.try_out(slot, ahead)
        groups = _encoded_alike(self._models, residence.models)
        outcome = Found(found, residence.takes_turns, residence.weights_bytes, groups)
        release = partial(release_memory, slot.device)
        if slot.scores_later:
            resident.keep(self.decided(outcome)._key(slot), residence, release)
        else:
            del residence
            release()
            release_gpus()
        return outcome

    def decided(self, found: Found) -> SeveralProcessors:
        """Returns the spec as every worker opens it."""
        return replace(self._with(lambda name, one: one.decided(found.members[name])), found=found)

    def open(self, slot: WorkerSlot, report: Report) -> SeveralScoring:
        """Returns them, ready in this process; models that are loaded are not loaded again."""
        residence: Residence = resident.get(
            self._key(slot), partial(self._load, slot), partial(release_memory, slot.device)
        )
        limits = self._limits
        scoring = SeveralScoring(self.inputs, self.fields, limits, residence, report, self.dedupe)
        for name, one in self.members.items():
            scoring.add(name, self._part(name, one, residence, slot, scoring.report))
        return scoring

    @property
    def encodings(self) -> int:
        """How often rows are tokenised."""
        return len(self._decided().encoded_alike)

    @property
    def read_beside(self) -> tuple[str, ...]:
        """Columns that functions over rows read."""
        others = [one for name, one in self.members.items() if name not in self._models]
        return tuple(dict.fromkeys(column for one in others for column in one.inputs))

    def encoder(self, cores: int) -> Callable[[pa.RecordBatch, Suspects], tuple[EncodedRows, ...]]:
        """Returns what makes the inputs of all models of rows; see `EncodesAhead`."""
        firsts = [group[0] for group in self._decided().encoded_alike]

        def load() -> list[RowEncoder]:
            return [self._models[name].load_encoder(cores, name) for name in firsts]

        key = ("tokenizers", *(self._models[name].encoder_key for name in firsts))
        encoders: list[RowEncoder] = resident.get(key, load, lambda: None)

        def encode(batch: pa.RecordBatch, suspects: Suspects) -> tuple[EncodedRows, ...]:
            return tuple(one.encode(batch, suspects) for one in encoders)

        return encode

    @property
    def _models(self) -> dict[str, ModelScoring]:
        return {name: one for name, one in self.members.items() if isinstance(one, ModelScoring)}

    @property
    def _limits(self) -> tuple[int, int]:
        """The most rows of a window and the most bytes: the least that any model asks for."""
        asked = [one.options.batching for one in self._models.values()] or [BatchingConfig()]
        return min(one.window_rows for one in asked), min(one.window_bytes for one in asked)

    def _part(
        self,
        name: str,
        one: ProcessorSpec,
        residence: Residence,
        slot: WorkerSlot,
        report: Callable[[ScoringStatistics], None],
    ) -> Part:
        if not isinstance(one, ModelScoring):
            return RowsPart(one.open(slot, report), one.inputs, one.fields)
        [encoding] = [
            number for number, group in enumerate(self._decided().encoded_alike) if name in group
        ]
        scorer = Scorer(residence.models[name], one.options, report, name)
        return ModelPart(scorer, encoding)

    def _load(self, slot: WorkerSlot) -> Residence:
        load = {name: partial(one.load, slot) for name, one in self._models.items()}
        return Residence(load, slot.device, self._decided().takes_turns)

    def _key(self, slot: WorkerSlot) -> tuple[object, ...]:
        return tuple((name, one.key(slot)) for name, one in self._models.items())

    def _decided(self) -> Found:
        if self.found is None:
            raise AssertionError("rows can be scored only after the models have been tried out")
        return self.found

    def _with(
        self, change: Callable[[str, PlannedProcessor], PlannedProcessor]
    ) -> SeveralProcessors:
        changed = {}
        for name, one in self.members.items():
            with errors_naming(name):
                changed[name] = change(name, one)
        return replace(self, members=changed)


def _refuse_parallel(one: PlannedProcessor) -> None:
    """Raises ConfigError for a model that would take all that the others need."""
    if not isinstance(one, ModelScoring):
        return
    is_vllm = one.options.acceleration == "vllm"
    if is_vllm or one.options.parallel.is_asked:
        what = "acceleration='vllm'" if is_vllm else one.options.parallel.shown
        raise ConfigError(
            f"{what} with several models: such a model has its worker's memory to itself; score "
            "with it in a run of its own"
        )


def members_of(processor: PlannedProcessor) -> Mapping[str, PlannedProcessor]:
    """Returns several processors by their names; one alone by an empty name."""
    if isinstance(processor, SeveralProcessors):
        return processor.members
    return {"": processor}


@contextmanager
def errors_naming(name: str) -> Iterator[None]:
    """Says in an error which of several models it is about."""
    try:
        yield
    except SparkInferError as error:
        raise type(error)(f"models.{name}: {error.message}") from error


def _encoded_alike(
    specs: Mapping[str, ModelScoring], models: Mapping[str, RunningModel]
) -> tuple[tuple[str, ...], ...]:
    """Returns the names of models in groups whose inputs are the same."""
    groups: dict[object, list[str]] = {}
    for name, one in specs.items():
        encoding = one.encoding_of(models[name])
        groups.setdefault(name if encoding is None else encoding, []).append(name)
    return tuple(map(tuple, groups.values()))
