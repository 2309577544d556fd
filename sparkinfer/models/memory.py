"""Whether a model fits in memory, and in which ways, by its files' headers before any is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.weights import Weights, weights_of
from sparkinfer.workers.devices import free_memory
from sparkinfer.workers.host_memory import free_host_memory

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 4}
"""Of a number, by format. A graph in int8 is made from one in float32."""

TESTED_TOKENS = 4096
"""Longest text whose needs are looked at: of a longer one, nobody knows that it comes."""

LAYERS_AT_ONCE = 2
"""Layers that are on a GPU together where the others wait in the host's memory."""

SPLITS = (2, 4, 8)
"""GPUs of one host among which a model may be advised to be split."""


@dataclass(frozen=True)
class Need:
    """What running a model takes, in bytes.

    Attributes:
        device: of each GPU; 0: it runs on the CPU.
        host: of the host's memory.
    """

    device: int
    host: int


@dataclass(frozen=True)
class Room:
    """What there is, in bytes; None: nobody knows.

    Attributes:
        device: free on the fullest of the GPUs.
        host: free on the host.
    """

    device: int | None
    host: int | None

    def holds(self, need: Need) -> bool:
        """Returns whether what is needed is there."""
        pairs = ((need.device, self.device), (need.host, self.host))
        return all(free is None or wanted <= free for wanted, free in pairs)


@dataclass(frozen=True)
class Fit:
    """The ways of running a model that fit.

    Attributes:
        reference: what the others are compared with, and in which the model is tried.
        ways: in the order in which to try them; the reference may be among them.
        rejected: those that do not fit, by name, and why.
        uncompared: why nothing is compared with float32; empty if it is.
        plan: what the first of them takes, and what there is; empty if nobody knows.
    """

    reference: Acceleration
    ways: tuple[Acceleration, ...]
    rejected: tuple[tuple[str, str], ...] = ()
    uncompared: str = ""
    plan: str = ""

    @property
    def shown(self) -> str:
        """What ways are compared with, as a phrase."""
        exact = self.reference.dtype == "float32"
        return "float32" if exact else str(self.reference)


def fitting(
    checkpoint: Checkpoint,
    ways: Sequence[Acceleration],
    longest_text: int | None,
    on_host: int = 1,
) -> Fit:
    """Returns the ways that fit, and what they are compared with: float32 if it does.

    Args:
        checkpoint: the model, of which nothing is loaded yet.
        ways: the preferred one first, plain float32 among them.
        longest_text: an upper bound of the UTF-8 bytes of the job's longest text, None if unknown.
        on_host: replicas that load it on this host.

    Raises:
        ConfigError: none fits; says what would.
    """
    weights = weights_of(checkpoint.path)
    others = [way for way in ways if way != PLAIN]
    if weights is None:
        return Fit(PLAIN, tuple(others))
    plan = _Plan(checkpoint, weights, longest_text, on_host)
    fit = plan.fit(others, PLAIN)
    return replace(fit, plan=plan.shown([*fit.ways, fit.reference][0]))


class _Plan:
    """What a model takes, and what there is.

    Args:
        checkpoint: the model.
        weights: of it.
        longest_text: see `fitting`.
        on_host: see `fitting`.
    """

    def __init__(
        self, checkpoint: Checkpoint, weights: Weights, longest_text: int | None, on_host: int
    ) -> None:
        self._checkpoint = checkpoint
        self._weights = weights
        self._longest_text = longest_text
        self._on_host = on_host
        self._on_gpu = checkpoint.device.startswith("cuda")

    def fit(self, others: Sequence[Acceleration], plain: Acceleration) -> Fit:
        fits = {way: self._room.holds(self.need(way)) for way in [*others, plain]}
        ways = tuple(way for way in others if fits[way])
        rejected = tuple((str(way), self._too_large(way)) for way in others if not fits[way])
        if fits[plain]:
            return Fit(plain, ways, rejected)
        if not ways:
            raise ConfigError(self._nothing_fits([*others, plain][0]))
        exact = replace(ways[0], dtype="float32")
        if exact != plain and self._room.holds(self.need(exact)):
            return Fit(exact, ways, rejected)
        reference = next((way for way in ways if way.backend == PLAIN.backend), ways[0])
        return Fit(reference, ways, rejected, self._too_large(plain))

    def shown(self, way: Acceleration) -> str:
        """Returns what a way takes and what there is, as a phrase."""
        return f"{self._needs(way)}; {self._free(way)}"

    def need(self, way: Acceleration) -> Need:
        """Returns what a way takes."""
        size = BYTES[way.dtype]
        weights, working = self._weights.total * size, self._working(size, way.processes)
        if way.offloads:
            layers = LAYERS_AT_ONCE * self._weights.largest * size
            return self._with(layers + working, weights)
        if way.processes > 1:
            split = (self._weights.beside + self._weights.in_layers // way.processes) * size
            # Each process loads the model whole before it keeps its part.
            return self._with(split + working, way.processes * weights)
        if not self._on_gpu:
            return Need(0, weights + working)
        return Need(weights + working, weights)

    def _with(self, device: int, host: int) -> Need:
        return Need(device, host) if self._on_gpu else Need(0, host + device)

    def _working(self, size: int, processes: int) -> int:
        """Returns about what one text takes beside the weights: what layers make, and the cache.

        Batches of several texts take more; where they do not fit, the scorer halves them.
        """
        shape, tokens = _Shape(self._checkpoint.config), self._tokens
        passing = tokens * (8 * shape.hidden + 2 * shape.inner) * size
        kept = 2 * tokens * shape.layers * shape.keys * size // processes
        return int(passing + (kept if self._checkpoint.task.made_tokens else 0))

    @property
    def _tokens(self) -> int:
        """Tokens of the longest text, with what is made of it."""
        made = self._checkpoint.task.made_tokens
        known = [TESTED_TOKENS, self._checkpoint.max_length]
        if self._longest_text is not None:
            known.append(self._longest_text + 8)
        return min(known) + made

    @cached_property
    def _room(self) -> Room:
        devices = [self._checkpoint.device, *self._checkpoint.others]
        free = [free_memory(device) for device in devices]
        known = [one for one in free if one is not None]
        host = free_host_memory()
        return Room(min(known, default=None), None if host is None else host // self._on_host)

    def _too_large(self, way: Acceleration) -> str:
        return f"it does not fit: {self.shown(way)}"

    def _needs(self, way: Acceleration) -> str:
        need = self.need(way)
        return f"needs {_shown(need.device or need.host)} in {way.dtype}"

    def _free(self, way: Acceleration) -> str:
        need, room = self.need(way), self._room
        on_device, on_host = Need(need.device, 0), Need(0, need.host)
        if not need.device or (room.holds(on_device) and not room.holds(on_host)):
            beside = f" of which {_shown(need.host)} are needed" if need.device else ""
            each = f" for each of {self._on_host} replicas" if self._on_host > 1 else ""
            return f"this host has {_shown(room.host or 0)} free{each}{beside}"
        return f"this GPU has {_shown(room.device or 0)} free"

    def _nothing_fits(self, way: Acceleration) -> str:
        advice = " or ".join(self._advice(way)) or "use a machine with more, or a smaller model"
        weights = _shown(self._weights.total * BYTES[way.dtype])
        return (
            f"model {str(self._checkpoint.path)!r} {self._needs(way)}, of which {weights} are its "
            f"weights; {self._free(way)}: {advice}"
        )

    def _advice(self, way: Acceleration) -> list[str]:
        """Returns what would fit, of what was not asked for."""
        found = []
        if 0 < (most := self._most_replicas(way)) < self._on_host:
            found.append(f"use fewer workers (num_workers), {most} on this host")
        half = replace(way, dtype="bfloat16")
        if way.dtype == "float32" and self._room.holds(self.need(half)):
            found.append(f"give dtype=bfloat16, which {self._needs(half)}")
        if not self._on_gpu or self._checkpoint.options.parallel.is_asked:
            return found
        plain = Acceleration("deepspeed", way.dtype)
        if self._room.holds(self.need(replace(plain, offloads=True))):
            found.append("offload to CPU (parallel.offload=cpu)")
        for processes in SPLITS:
            if self._room.holds(self.need(replace(plain, processes=processes))):
                found.append(f"parallel.tensor={processes}, with as many such GPUs on a host")
                break
        return found

    def _most_replicas(self, way: Acceleration) -> int:
        """Returns how many replicas the host holds; 0 if the device does not hold one."""
        need = self.need(way)
        if self._room.host is None or not self._room.holds(Need(need.device, 0)):
            return 0
        return self._room.host * self._on_host // need.host


class _Shape:
    """Sizes of a model's layers, by its configuration; 0 for what it does not say."""

    def __init__(self, config: Any) -> None:
        text = getattr(config, "get_text_config", lambda: config)()  # older ones have none
        self.hidden = _first(text, "hidden_size", "d_model", "n_embd", "dim")
        self.layers = _first(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
        self.inner = _first(text, "intermediate_size", "d_ff", "ffn_dim") or 4 * self.hidden
        heads = _first(text, "num_attention_heads", "n_head", "num_heads") or 1
        each = _first(text, "head_dim") or self.hidden // heads
        self.keys = each * (_first(text, "num_key_value_heads") or heads)


def _first(config: Any, *names: str) -> int:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), 0)


def _shown(size: int) -> str:
    """Returns bytes as people write them, such as `26.1 GB`."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1000:.1f} kB"
