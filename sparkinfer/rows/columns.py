"""Which columns a run reads, keeps and adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from sparkinfer.rows.reading import is_made


@dataclass(frozen=True)
class Columns:
    """The columns of a run, chosen once on the driver; engines and workers only follow them.

    Attributes:
        carried: input columns that the output keeps, in order.
        inputs: input columns that the processor reads, in its order.
        scored: columns that the processor adds, with their prefix and metadata.
        notes: metadata of a file as a whole.
    """

    carried: pa.Schema
    inputs: pa.Schema
    scored: pa.Schema
    notes: Mapping[bytes, bytes] = field(default_factory=dict)

    @property
    def read(self) -> pa.Schema:
        """What chunks are read with: the carried columns, then the inputs that are not carried."""
        return pa.schema({field.name: field for field in [*self.carried, *self.inputs]}.values())

    @property
    def stored(self) -> list[str]:
        """Names of what is read and is in the input, unlike the ids that rows get."""
        return [field.name for field in self.read if not is_made(field)]

    @property
    def output(self) -> pa.Schema:
        """What the output's files hold."""
        carried = [field.remove_metadata() for field in self.carried]
        return pa.schema([*carried, *self.scored], metadata=dict(self.notes) or None)
