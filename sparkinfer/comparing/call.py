"""`compare`: how two outputs over the same rows differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pyarrow as pa

from sparkinfer.comparing import SHOWN_ROWS
from sparkinfer.comparing.compared import ComparedModels
from sparkinfer.comparing.matching import FoundRows, Matching
from sparkinfer.comparing.model_pairs import model_pairs
from sparkinfer.comparing.outputs import PLACE, ScoredModel, ScoredOutput, open_output
from sparkinfer.comparing.page import page_of
from sparkinfer.comparing.parts import Parts, parts_for
from sparkinfer.comparing.result import Comparison, Side
from sparkinfer.comparing.row_key import RowKey, asked_key, shared_key, unseen_inputs
from sparkinfer.comparing.row_pairs import PairedRows
from sparkinfer.comparing.setting_pairs import unlike_settings
from sparkinfer.comparing.speed import speed_of
from sparkinfer.comparing.values import hashes_of
from sparkinfer.exceptions import ConfigError
from sparkinfer.report.page import write_page
from sparkinfer.storage import absolute

Outputs = tuple[ScoredOutput, ScoredOutput]


def compare(
    a: str,
    b: str,
    on: str | Sequence[str] = (),
    *,
    model_a: str | None = None,
    model_b: str | None = None,
    rows: int = SHOWN_ROWS,
    to: str | None = None,
) -> Comparison:
    """Returns how two outputs over the same rows differ.

    Rows are found again by their values, whatever the order and the files in which the outputs have
    them. They are divided through a temporary file, so that memory holds a part of them at a time.

    Args:
        a: folder of the one output.
        b: folder of the other.
        on: columns that tell every row from the others; none: all columns that both outputs have
            from their inputs. Rows with the same values there are paired with one another, those
            with the same results first.
        model_a: name of a model in the one; None: all models whose names both outputs have.
        model_b: name of the model in the other that it is compared with.
        rows: how many rows of each kind to show.
        to: file for the comparison as an HTML page; None: none is written.

    Raises:
        OutputError: a folder is no output of a run, or the page cannot be written.
        ConfigError: an option does not fit the outputs.
        InputError: it is not known which rows belong together, or results cannot be compared.
        JobError: there is no room for temporary files.
    """
    if rows < 0:
        raise ConfigError(f"rows={rows}: expected how many rows to show, from 0")
    outputs = open_output(a), open_output(b)
    names = [on] if isinstance(on, str) else list(dict.fromkeys(on))
    key = asked_key(*outputs, names) if names else shared_key(*outputs)
    pairs = model_pairs(*outputs, model_a, model_b)
    compared = [
        ComparedModels((_without(key, one), _without(key, other)), outputs, rows)
        for one, other in pairs
    ]
    matching = Matching(key, [name for one in compared for name in one.result_names], rows)
    for part_a, part_b in _parts(outputs, key, compared):
        rows_a, rows_b = matching.match(part_a, part_b)
        together = part_a.take(pa.array(rows_a)), part_b.take(pa.array(rows_b))
        for one in compared:
            one.add(*together)
    matching.check(*outputs, unseen_inputs(key, [model for pair in pairs for model in pair]))
    found = _comparison(outputs, key, matching, compared)
    if to is not None:
        write_page("page", absolute(to), page_of(found))
    return found


def _without(key: RowKey, model: ScoredModel) -> ScoredModel:
    """Returns a model without the columns of the key among its results; functions make those."""
    columns = {k: full for k, full in model.columns.items() if full not in key.columns.names}
    return replace(model, columns=columns)


def _parts(
    outputs: Outputs, key: RowKey, compared: Sequence[ComparedModels]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yields the rows of both outputs, part by part; those that are equal are in the same."""
    read = [_read_columns(side, key, compared) for side in range(2)]
    size = sum(output.bytes_of(one) for output, one in zip(outputs, read, strict=True))
    with ExitStack() as files:
        divided = []
        for output, columns in zip(outputs, read, strict=True):
            parts = Parts(pa.schema([*columns, PLACE]), parts_for(size))
            divided.append(files.enter_context(parts))
            for batch in output.read(columns):
                parts.add(batch, hashes_of([batch.column(n) for n in key.columns.names]))
        yield from zip(*(parts.read() for parts in divided), strict=True)


def _read_columns(side: int, key: RowKey, compared: Sequence[ComparedModels]) -> pa.Schema:
    fields = [*key.columns, *(field for one in compared for field in one.fields(side))]
    return pa.schema(list({field.name: field for field in fields}.values()))


def _comparison(
    outputs: Outputs, key: RowKey, matching: Matching, compared: Sequence[ComparedModels]
) -> Comparison:
    texts = [name for one in compared for model in one.models for name in model.inputs]
    rows = PairedRows(outputs, key.columns.names if key.is_asked else (), texts)
    sides = [_side(output, found) for output, found in zip(outputs, matching.found, strict=True)]
    alone = [
        rows.alone(side, found.first_alone.tolist()) for side, found in enumerate(matching.found)
    ]
    return Comparison(
        a=sides[0],
        b=sides[1],
        columns=tuple(key.columns.names),
        is_key=key.is_asked,
        rows=matching.pairs,
        repeated=matching.repeated,
        only_a=alone[0],
        only_b=alone[1],
        settings=tuple(pair for one in compared for pair in unlike_settings(outputs, one.models)),
        models=tuple(one.result(rows) for one in compared),
        notes=tuple(_notes(outputs, key, compared)),
    )


def _side(output: ScoredOutput, found: FoundRows) -> Side:
    status = output.status
    return Side(
        output=status.output,
        state=status.state,
        rows=output.rows,
        total_rows=status.total_rows,
        only_here=found.alone,
        speed=speed_of(output),
    )


def _notes(outputs: Outputs, key: RowKey, compared: Sequence[ComparedModels]) -> Iterator[str]:
    for name, output in zip("AB", outputs, strict=True):
        if not output.is_finished:
            done = f"{output.status.rows:,} of {output.status.total_rows:,} rows of its input"
            yield f"{name} is not finished ({output.status.state}): it has {done}"
    for name, reason in key.left_out:
        yield f"column {name!r} does not tell rows apart: it {reason}"
    for side, output in enumerate(outputs):
        names = {one.models[side].name for one in compared}
        others = [name for name in output.models if name not in names]
        if others:
            yield f"not compared: {', '.join(others)} of {'AB'[side]}"
