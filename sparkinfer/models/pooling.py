"""Makes one vector of a text's token vectors, on the device: pooling, and layers over its result.

The numbers are those of sentence-transformers' modules of the same names, in float32 whatever the
model's own format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.messages import shown as value_shown
from sparkinfer.models.screening import refuse_bombs
from sparkinfer.models.sentence_files import Layer

Function = Callable[[Any], Any]
"""Makes vectors of vectors, float32 (sequences, numbers), on their device."""

MOST_NUMBERS = 1_000_000
"""Greatest size of a layer; the largest models have some thousand."""

_SMALLEST = 1e-9
"""Least divisor of a mean. Source: `Pooling` of sentence-transformers."""


@dataclass(frozen=True)
class _Tokens:
    """The token vectors of a batch.

    Attributes:
        vectors: float32 (sequences, longest, width).
        counted: 1 for those that count, int64 (sequences, longest).
        places: the place of each in its text, from 1, int64 (sequences, longest).
    """

    vectors: Any
    counted: Any
    places: Any

    def weighted_sum(self, weights: Any) -> Any:
        """Returns the sum of the vectors by weights, float32 (sequences, width)."""
        return (self.vectors * weights.float().unsqueeze(-1)).sum(dim=1)

    def at(self, places: Any) -> Any:
        """Returns one vector of each sequence, float32 (sequences, width)."""
        import torch

        return self.vectors[torch.arange(len(places), device=places.device), places]


def pooled(vectors: Any, places: Any, modes: Sequence[str], counted: Any = None) -> Any:
    """Returns one vector of each sequence's, float32 (sequences, width * len(modes)).

    Args:
        vectors: of the tokens, float (sequences, longest, width).
        places: the place of each token in its text, from 1; 0 for padding, int64 (sequences,
            longest).
        modes: keys of `POOLING_MODES`.
        counted: 1 for the tokens that count, int64 (sequences, longest); None: all do.
    """
    import torch

    if counted is None:
        counted = (places > 0).long()
    tokens = _Tokens(vectors.float(), counted, places)
    return torch.cat([_POOLINGS[mode](tokens) for mode in modes], dim=-1)


def _first(tokens: _Tokens) -> Any:
    return tokens.at(tokens.counted.argmax(dim=1))


def _last(tokens: _Tokens) -> Any:
    last = tokens.counted.shape[1] - 1 - tokens.counted.flip(1).argmax(dim=1)
    return tokens.at(last) * tokens.counted.any(dim=1, keepdim=True)


def _largest(tokens: _Tokens) -> Any:
    hidden = tokens.counted.unsqueeze(-1) == 0
    return tokens.vectors.masked_fill(hidden, float("-inf")).amax(dim=1)


def _mean(tokens: _Tokens) -> Any:
    total = tokens.counted.sum(dim=1, keepdim=True)
    return tokens.weighted_sum(tokens.counted) / total.float().clamp(min=_SMALLEST)


def _mean_by_root(tokens: _Tokens) -> Any:
    total = tokens.counted.sum(dim=1, keepdim=True)
    return tokens.weighted_sum(tokens.counted) / total.float().clamp(min=_SMALLEST).sqrt()


def _mean_by_place(tokens: _Tokens) -> Any:
    weights = tokens.counted * tokens.places
    total = weights.sum(dim=1, keepdim=True)
    return tokens.weighted_sum(weights) / total.float().clamp(min=_SMALLEST)


_POOLINGS: dict[str, Callable[[_Tokens], Any]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _mean_by_place,
    "lasttoken": _last,
}


@dataclass(frozen=True)
class SentenceHead:
    """Makes the embeddings of a batch of its token vectors.

    Attributes:
        modes: how token vectors become one; see `pooled`.
        layers: applied to the pooled vectors, in order.
        truncate_dim: numbers to which a vector is cut; None: it stays whole.
        normalizes: whether it is then given the length 1.
    """

    modes: Sequence[str]
    layers: Sequence[Function] = ()
    truncate_dim: int | None = None
    normalizes: bool = False

    def __call__(self, vectors: Any, places: Any, counted: Any = None) -> Any:
        """Returns the embeddings, float32 (sequences, numbers).

        Args:
            vectors: see `pooled`.
            places: see `pooled`.
            counted: see `pooled`.
        """
        return self.finished(pooled(vectors, places, self.modes, counted))

    def finished(self, made: Any) -> Any:
        """Returns embeddings of pooled vectors, float32 (sequences, numbers)."""
        for layer in self.layers:
            made = layer(made)
        made = made[:, : self.truncate_dim]
        return _normalized(made) if self.normalizes else made


def load_layers(
    folder: Path, layers: Sequence[Layer], numbers: int | None
) -> tuple[tuple[Function, ...], int | None]:
    """Returns the layers with their weights, in float32, and how many numbers they make.

    Args:
        folder: the model's.
        layers: what its files say.
        numbers: of a pooled vector; None: unknown.

    Raises:
        ModelLoadError: their files are incomplete or name what is not known, or they do not follow
            one another.
    """
    made = []
    for layer in layers:
        files = _LayerFiles(folder, layer, numbers)
        made.append(_LOADERS[layer.kind](files))
        numbers = files.numbers
    return tuple(made), numbers


class _LayerFiles:
    """What is in the folder of a layer.

    Args:
        model: the model's folder.
        layer: what its files say.
        numbers: of the vectors that it gets; None: unknown.

    Attributes:
        settings: its own.
        folder: its own.
        numbers: of the vectors that it makes; as given, unless it makes others.
    """

    def __init__(self, model: Path, layer: Layer, numbers: int | None) -> None:
        self.settings = layer.settings
        self.numbers = numbers
        self.folder = model / layer.folder
        self._shown = f"model {str(model)!r}: {layer.folder}"

    def filled(self, **modules: Any) -> Any:
        """Returns torch modules, made without memory, with the folder's weights in float32."""
        from torch import nn

        whole, weights = nn.ModuleDict(modules), self._weights()
        try:
            whole.load_state_dict(weights, assign=True)
        except Exception as error:  # of weights by odd names, torch raises what it runs into
            self.refuse(f"has other weights than it says ({' '.join(str(error).split())[:300]})")
        return whole.float().eval().requires_grad_(False)

    def _weights(self) -> dict[str, Any]:
        import torch
        from safetensors.torch import load_file

        safe, pickled = self.folder / "model.safetensors", self.folder / "pytorch_model.bin"
        if not (safe.is_file() or pickled.is_file()):
            self.refuse("has no model.safetensors")
        try:
            if safe.is_file():
                return dict(load_file(safe))
            refuse_bombs(self.folder, self._shown)
            return dict(torch.load(pickled, map_location="cpu", weights_only=True))
        except Exception as error:  # the libraries raise their own, pickle anything
            if isinstance(error, ModelLoadError):
                raise
            self.refuse(f"has weights that do not load ({type(error).__name__})")

    def size(self, name: str) -> int:
        """Returns a setting that is a number of numbers."""
        value = self.settings.get(name)
        if type(value) is not int or not 0 < value <= MOST_NUMBERS:
            self.refuse(f"says {name}={value_shown(value)}, expected 1 to {MOST_NUMBERS:,}")
        return value

    def takes(self, name: str) -> int:
        """Returns a setting that is the number of numbers which the layer takes."""
        value = self.size(name)
        if self.numbers not in (None, value):
            self.refuse(f"says {name}={value}, expected the {self.numbers} that it gets")
        return value

    def refuse(self, what: str) -> NoReturn:
        raise ModelLoadError(f"{self._shown} {what}; copy or save the model again")


@dataclass(frozen=True)
class _Dense:
    """A linear layer with an activation, and perhaps a second one around both."""

    linear: Any
    activation_function: Any
    residual: Any = None

    def __call__(self, vectors: Any) -> Any:
        activation = self.activation_function.to(vectors.device)
        made = activation(self.linear.to(vectors.device)(vectors))
        if self.residual is None:
            return made
        return made + self.residual.to(vectors.device)(vectors)


def _dense(files: _LayerFiles) -> Function:
    import torch
    from torch import nn

    sizes = files.takes("in_features"), files.size("out_features")
    files.numbers = sizes[1]
    modules: dict[str, Any] = {}
    with torch.device("meta"):
        bias = files.settings.get("bias", True) is not False
        modules["linear"] = nn.Linear(*sizes, bias=bias)
        modules["activation_function"] = _activation(files)
        if files.settings.get("use_residual"):
            is_same = sizes[0] == sizes[1]
            modules["residual"] = nn.Identity() if is_same else nn.Linear(*sizes, bias=False)
    return _Dense(**files.filled(**modules))


def _activation(files: _LayerFiles) -> Any:
    """Returns the module that a dense layer names; one that is not torch's is not called."""
    from torch import nn

    path = files.settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    *module, name = str(path).split(".")
    known = (*nn.modules.activation.__all__, "Identity")
    if module[:2] != ["torch", "nn"] or name not in known:
        files.refuse(f"names the activation {value_shown(path)}, expected one of torch.nn")
    try:
        return getattr(nn, name)()
    except TypeError:  # one that takes arguments, which the files do not have
        files.refuse(f"names the activation {value_shown(path)}, expected one without arguments")


def _layer_norm(files: _LayerFiles) -> Function:
    import torch
    from torch import nn

    with torch.device("meta"):
        norm = nn.LayerNorm(files.takes("dimension"))
    norm = files.filled(norm=norm)["norm"]
    return lambda vectors: norm.to(vectors.device)(vectors)


def _normalized(vectors: Any) -> Any:
    from torch.nn.functional import normalize

    return normalize(vectors, p=2, dim=-1)


_LOADERS: dict[str, Callable[[_LayerFiles], Function]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": lambda _: _normalized,
}
