"""What a user writes: a processor of batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkinfer.batch_process.context import TorchBatchProcessorContext


class TorchBatchProcessor(ABC):
    """Does something with each batch of a dataset; one is made in each rank.

    What it keeps in memory must be written down in `on_checkpoint_start`: a rank that goes on from
    a checkpoint has a new one.
    """

    @abstractmethod
    def __init__(self, context: TorchBatchProcessorContext) -> None:
        """Prepares what batches need, such as a model.

        Args:
            context: of this rank.
        """

    @abstractmethod
    def process_batch(self, batch: Any, batch_idx: int) -> None:
        """Processes a batch; not called again for one whose step is committed.

        Args:
            batch: what the dataset's rows were collated to.
            batch_idx: number of the step, from 0 in each rank.
        """

    def on_checkpoint_start(self) -> None:  # noqa: B027
        """Writes down what was made since the last checkpoint; called right before each."""

    def on_finish(self) -> None:  # noqa: B027
        """Called in each rank once all steps of all ranks are committed.

        If a rank dies before all have returned from it, it is called again in all of them.
        """
