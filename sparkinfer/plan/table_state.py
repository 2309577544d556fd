"""What a table was when it was copied, so that a later run can tell whether it has changed."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TableState:
    """The rows of a table at a time; two with the same rows in any order are equal.

    Attributes:
        rows: number of rows.
        digest: of their values in the columns that count, whatever their order: the sum and the
            exclusive or of a 64-bit hash of each row, in decimal. None where the values differ each
            time that they are looked at.
        version: the table's own, such as Delta keeps; None if it has none.
        taken: when the copy was begun, ISO 8601 in UTC.
    """

    rows: int
    digest: tuple[str, str] | None
    version: str | None = None
    taken: str = ""

    def is_same(self, other: TableState) -> bool:
        """Returns whether the rows are the same."""
        is_known = self.digest is not None and other.digest is not None
        return self.rows == other.rows and (self.digest == other.digest or not is_known)

    def plus(self, added: TableState) -> TableState:
        """Returns the state with more rows, as of the time at which these were taken."""
        digest = None
        if self.digest is not None and added.digest is not None:
            total = int(self.digest[0]) + int(added.digest[0])
            digest = (str(total), str(int(self.digest[1]) ^ int(added.digest[1])))
        return replace(added, rows=self.rows + added.rows, digest=digest)


@dataclass(frozen=True)
class Mark:
    """How far a column goes in the rows that are done.

    Attributes:
        column: its name.
        value: the largest value, as text.
    """

    column: str
    value: str
