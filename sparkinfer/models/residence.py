"""Where the weights of several models are: all on the device, or each in its turn.

What does not fit together waits in the host's memory. It is read from disk once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sparkinfer.models.running import RunningModel
from sparkinfer.workers.devices import free_memory, release_memory

WEIGHTS_SHARE = 0.7
"""Of a device's memory that weights may take: batches need some, and what they need is halved only
where it runs out."""

HOST = "cpu"


class Residence:
    """Several models in one process.

    Args:
        load: returns each model on its device, by its name; called one after the other.
        device: torch device.
        takes_turns: whether only one of them is on the device at a time; None: only if they do not
            fit there together.

    Attributes:
        models: by their names.
        takes_turns: as found.
    """

    def __init__(
        self,
        load: Mapping[str, Callable[[], RunningModel]],
        device: str,
        takes_turns: bool | None = None,
    ) -> None:
        self._device = device
        self._here: str | None = None
        self.models: dict[str, RunningModel] = {}
        for name, load_one in load.items():
            self.models[name] = load_one()
            if device != HOST and takes_turns is not False:  # it must not be in the next one's way
                self._leave(name)
        if takes_turns is None:
            takes_turns = not self._fit()
        self.takes_turns = takes_turns
        if not takes_turns:
            self._move(self.models, device)

    def order(self, names: Iterable[str]) -> list[str]:
        """Returns names in the order that costs least: the model that is on the device first."""
        return sorted(names, key=lambda name: name != self._here)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights of all models."""
        return sum(model.weights_bytes for model in self.models.values())

    def bring(self, name: str) -> None:
        """Sees to it that a model is on the device."""
        if not self.takes_turns or name == self._here or name not in self.models:
            return
        if self._here is not None:
            self._leave(self._here)
        self._move([name], self._device)
        self._here = name

    def _fit(self) -> bool:
        free = free_memory(self._device)
        return free is None or self.weights_bytes <= WEIGHTS_SHARE * free

    def _leave(self, name: str) -> None:
        self._move([name], HOST)
        release_memory(self._device)

    def _move(self, names: Iterable[str], device: str) -> None:
        for name in names:
            self.models[name].move(device)
