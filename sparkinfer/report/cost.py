"""What the rows cost, where it is known what the machines cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparkinfer.jobs.sessions import Session
from sparkinfer.plan.wording import format_seconds
from sparkinfer.report.parts import Number, Section, Table, in_thousands, plural


@dataclass(frozen=True)
class Cost:
    """Of the calls whose machines have a price.

    Attributes:
        amount: of all of them, in the unit of the price.
        rows: that they committed, rescored ones included.
        hours: from the call to its end, of all of them.
        calls: how many.
    """

    amount: float
    rows: int
    hours: float
    calls: int

    @property
    def per_million(self) -> float | None:
        """Cost of a million rows; None without rows."""
        return 1e6 * self.amount / self.rows if self.rows else None


def cost_of(sessions: Sequence[Session], price_per_hour: float | None) -> Cost | None:
    """Returns what calls cost; None if no price is known.

    Args:
        sessions: the calls.
        price_per_hour: of all machines together; None: as each call was given.
    """
    priced = [
        (session, session.price_per_hour if price_per_hour is None else price_per_hour)
        for session in sessions
    ]
    known = [(session, price) for session, price in priced if price is not None]
    if not known:
        return None
    return Cost(
        amount=sum(session.seconds / 3600 * price for session, price in known),
        rows=sum(session.rows + session.retried_rows for session, _ in known),
        hours=sum(session.seconds for session, _ in known) / 3600,
        calls=len(known),
    )


def costs(sessions: Sequence[Session], price_per_hour: float | None) -> Section:
    """Returns what the rows cost."""
    cost = cost_of(sessions, price_per_hour)
    if cost is None:
        says = (
            "Not known: give --price-per-hour, what all machines of the job cost together in an "
            "hour, to the run or to sparkinfer report."
        )
        if not sessions:
            says = "Not known: no call has left a record of how long it took."
        return Section("Cost", says)
    rows = [
        ("in all", Number(f"{cost.amount:,.4g}")),
        ("of a million rows", Number(_amount(cost.per_million))),
        ("rows", Number(in_thousands(cost.rows))),
        ("time", Number(format_seconds(3600 * cost.hours))),
    ]
    says = "In the unit of the price, over the whole time of the calls, their start included."
    if cost.calls < len(sessions):
        says += f" {plural(len(sessions) - cost.calls, 'call')} without a price are not in it."
    return Section("Cost", says, (Table("", ("what", "amount"), rows),))


def _amount(amount: float | None) -> str:
    return "–" if amount is None else f"{amount:,.4g}"
