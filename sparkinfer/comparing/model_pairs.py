"""Which model of the one output is compared with which of the other."""

from __future__ import annotations

from sparkinfer.comparing.outputs import ScoredModel, ScoredOutput
from sparkinfer.exceptions import ConfigError


def model_pairs(
    a: ScoredOutput, b: ScoredOutput, model_a: str | None, model_b: str | None
) -> list[tuple[ScoredModel, ScoredModel]]:
    """Returns the models to compare: those that are named, or of all names that both have.

    An output of one model alone has one without a name, which is compared with the only one of
    the other.

    Args:
        a: the one output.
        b: the other.
        model_a: name of a model in the one; None: it need not be told from others.
        model_b: likewise in the other; None: the same, if that has one of this name.

    Raises:
        ConfigError: an output has no such model, or several of which it is not clear which one.
    """
    if model_a is not None or model_b is not None:
        return [(_one(a, "model_a", model_a, model_b), _one(b, "model_b", model_b, model_a))]
    both = [name for name in a.models if name in b.models]
    if both:
        return [(a.models[name], b.models[name]) for name in both]
    return [(_one(a, "model_a", None, None), _one(b, "model_b", None, None))]


def _one(output: ScoredOutput, option: str, name: str | None, as_other: str | None) -> ScoredModel:
    """Returns the model of an output that is meant."""
    models = output.models
    if name is not None and name not in models:
        raise ConfigError(f"{option}={name!r}: {output.path!r} has {_listed(output)}")
    if name is None and len(models) == 1:
        [name] = models
    if name is None and as_other in models:
        name = as_other
    if name is None:
        raise ConfigError(f"{output.path!r} has {_listed(output)}: name one as {option}")
    return models[name]


def _listed(output: ScoredOutput) -> str:
    names = [name for name in output.models if name]
    return f"the models {', '.join(names)}" if names else "one model, which has no name"
