"""An output that this process holds: what every step of a run on it needs."""

from __future__ import annotations

from dataclasses import dataclass

from sparkinfer.jobs.insistence import Insistence
from sparkinfer.jobs.ledger import Ledger
from sparkinfer.jobs.output import Output
from sparkinfer.plan.ports import Sink
from sparkinfer.sinks.vectors.delivery import Delivery


@dataclass(frozen=True)
class Hold:
    """An output whose lease is held, for the run of one manifest.

    Attributes:
        output: the folder as a whole.
        sink: where readers look.
        ledger: which chunks are done.
        insist: does each step that changes it.
        epoch: of the lease.
        delivery: the way to a vector store; None: there is none.
    """

    output: Output
    sink: Sink
    ledger: Ledger
    insist: Insistence
    epoch: int
    delivery: Delivery | None = None

    def staging_folder(self, *names: str) -> str:
        """Returns this epoch's folder for what is not published yet."""
        return self.output.staging_folder(self.epoch, *names)
