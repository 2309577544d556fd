"""What the files of sentence-transformers say about a model: how it makes one vector of a text.

And how its cross-encoders score two texts.

`modules.json` names the parts in order, each with a folder of its own: the transformer, the pooling
of its token vectors, and layers over the pooled vector. Source: `SentenceTransformer` and its
modules, sentence-transformers 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.messages import shown as value_shown
from sparkinfer.models.files import matches, read_json

MODULES = "modules.json"

WHOLE_MODEL = "config_sentence_transformers.json"

SENTENCE_FILES = (
    *(MODULES, WHOLE_MODEL, "sentence_bert_config.json"),
    *("sentence_*_config.json", "[0-9]*_*/config.json"),
    *("[0-9]*_*/model.safetensors", "[0-9]*_*/pytorch_model.bin"),
)
"""Patterns of the files."""

PAIR_FILES = (MODULES, WHOLE_MODEL, "sentence_*_config.json")
"""Patterns of those of a cross-encoder."""

POOLING_MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Ways to pool, each with the setting that switches it on in older files; several that are on there
are joined in this order."""

LAYERS = ("Dense", "LayerNorm", "Normalize")
"""Kinds of layers over the pooled vector."""

_KINDS = ("Transformer", "Pooling", *LAYERS, "Dropout")
"""Kinds of modules; the last only matters in training."""

_ENCODER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where the transformer's settings are; the first that is there counts."""

_ENCODER_SETTINGS: Mapping[str, Any] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "processing_kwargs": {},
    "tokenizer_name_or_path": None,
}
"""Settings of the transformer that would change its vectors, with the value that does not."""

_PAIR_SETTINGS: Mapping[str, Any] = {
    **_ENCODER_SETTINGS,
    "transformer_task": "sequence-classification",
    "module_output_name": "scores",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "do_lower_case": False,
}
"""Likewise, of a cross-encoder."""

_HARMLESS = {
    *("trust_remote_code", "attn_implementation", "torch_dtype", "dtype"),
    *("padding_side", "add_pooling_layer"),
}
"""Arguments with which the transformer may be loaded and yet make the same vectors."""


@dataclass(frozen=True)
class Pooling:
    """How token vectors become one.

    Attributes:
        modes: keys of `POOLING_MODES`; their results are put one after the other.
        includes_prompt: whether the tokens of the prompt count.
    """

    modes: tuple[str, ...]
    includes_prompt: bool = True


@dataclass(frozen=True)
class Layer:
    """What is done to the pooled vector.

    Attributes:
        kind: one of `LAYERS`.
        folder: of its files, in the model's.
        settings: its own.
    """

    kind: str
    folder: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SentenceFiles:
    """What the files say.

    Attributes:
        pooling: how token vectors become one.
        layers: what is done to that one, in order.
        max_length: tokens at which texts are truncated; None: as tokenizer and model say.
        lowers_case: whether texts are put in lower case before the tokenizer.
        prompts: texts to put before each text, by name.
        default_prompt: name of the prompt that is put before each text unless another is asked
            for; None: there is none.
        truncate_dim: numbers to which the vector is cut at last; None: it stays whole.
    """

    pooling: Pooling
    layers: tuple[Layer, ...] = ()
    max_length: int | None = None
    lowers_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    default_prompt: str | None = None
    truncate_dim: int | None = None


@dataclass(frozen=True)
class PairFiles:
    """What the files of a cross-encoder say.

    Attributes:
        activation: name of the function that is applied to its logits; None: not said.
        prompt: put before the first text.
        max_length: tokens at which pairs are truncated; None: as tokenizer and model say.
    """

    activation: str | None = None
    prompt: str = ""
    max_length: int | None = None


def read_pair_files(folder: Path) -> PairFiles | None:
    """Returns what the files in a cross-encoder's folder say, None if it has none.

    Raises:
        ModelLoadError: they name what is not known.
    """
    reader = _Reader(folder)
    if not reader.has(WHOLE_MODEL) or not reader.is_cross_encoder:
        return None
    reader.refuse_modules_after_transformer()
    whole, encoder = reader.whole_model("CrossEncoder"), reader.encoder(_PAIR_SETTINGS)
    prompt = whole["prompts"].get(whole["default_prompt"], "")
    return PairFiles(reader.activation, prompt, encoder["max_length"])


def read_sentence_files(folder: Path) -> SentenceFiles | None:
    """Returns what the files in a model's folder say, None if there are none.

    Raises:
        ModelLoadError: they are incomplete, of another kind of model, or name what is not known.
    """
    reader = _Reader(folder)
    if not reader.has(MODULES):
        reader.refuse_rest()
        return None
    pooling, layers = reader.modules()
    return SentenceFiles(pooling, layers, **reader.encoder(), **reader.whole_model())


class _Reader:
    """Reads the files of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, name: str) -> bool:
        """Returns whether a file is there."""
        return (self._folder / name).is_file()

    def refuse_rest(self) -> None:
        """Raises where other files are there, but not the one that says what they are for."""
        for name in (WHOLE_MODEL, *_ENCODER_FILES):
            if self.has(name):
                self._refuse(f"{name} is there, but {MODULES} is missing; complete the copy")

    @property
    def is_cross_encoder(self) -> bool:
        """Whether the model as a whole is one."""
        return bool(self._read(WHOLE_MODEL).get("model_type") == "CrossEncoder")

    @property
    def activation(self) -> str | None:
        """Name of what is applied to the logits of a cross-encoder; None: not said."""
        name = self._read(WHOLE_MODEL).get("activation_fn")
        return None if name is None else str(name)

    def refuse_modules_after_transformer(self) -> None:
        """Raises where modules other than a transformer make the scores."""
        listed = self._read(MODULES, list) if self.has(MODULES) else []
        entries = [self._module(entry) for entry in listed]
        if entries not in ([], [("Transformer", "")]):
            self._refuse(
                f"{MODULES} names {', '.join(kind for kind, _ in entries)}, expected a Transformer "
                "alone, in the model's own folder; give a model that is built so"
            )

    def modules(self) -> tuple[Pooling, tuple[Layer, ...]]:
        """Returns the pooling and the layers that are named after the transformer."""
        listed = self._read(MODULES, list)
        entries = [self._module(entry) for entry in listed]
        kinds = [kind for kind, _ in entries]
        if kinds[:2] != ["Transformer", "Pooling"] or {*kinds[2:]} & {*kinds[:2]}:
            self._refuse(
                f"{MODULES} names {', '.join(kinds) or 'nothing'}, expected Transformer, Pooling, "
                f"then layers ({', '.join(LAYERS)}); give a model that is built so"
            )
        (_, at), (_, pooling), *others = entries
        if at:
            self._refuse(
                f"{MODULES} has the transformer in the folder {at!r}, expected it in the model's "
                "own; load the model with sentence-transformers and save it again"
            )
        layers = tuple(self._layer(kind, inner) for kind, inner in others if kind in LAYERS)
        return self._pooling(pooling), layers

    def _module(self, entry: Any) -> tuple[str, str]:
        """Returns the kind of a module and its folder."""
        if not isinstance(entry, dict):
            self._refuse(f"{MODULES} holds {value_shown(entry)}, expected a module's type and path")
        name, path = str(entry.get("type")), str(entry.get("path", ""))
        kind = name.rpartition(".")[-1]
        if not name.startswith("sentence_transformers.") or kind not in _KINDS:
            self._refuse(
                f"{MODULES} names the module {value_shown(name)}, expected modules of "
                f"sentence-transformers ({', '.join(_KINDS)}); give a model that is made of these"
            )
        if path and not matches(f"{path}/config.json", SENTENCE_FILES):
            self._refuse(
                f"{MODULES} has a module in the folder {value_shown(path)}, expected one such as "
                "'1_Pooling'; load the model with sentence-transformers and save it again"
            )
        return kind, path

    def _pooling(self, folder: str) -> Pooling:
        settings = self._settings(folder)
        modes = settings.get("pooling_mode")
        if modes is None:
            modes = [mode for mode, old in POOLING_MODES.items() if settings.get(old)] or ["mean"]
        modes = [modes] if isinstance(modes, str) else modes
        known = isinstance(modes, list) and all(mode in [*POOLING_MODES] for mode in modes)
        if not known or not modes:
            expected = f"some of {', '.join(POOLING_MODES)}"
            self._refuse_setting(f"{folder}/config.json", "pooling_mode", modes, expected)
        return Pooling(tuple(modes), settings.get("include_prompt", True) is not False)

    def _layer(self, kind: str, folder: str) -> Layer:
        has_none = kind == "Normalize" and not self.has(f"{folder}/config.json")
        settings = {} if has_none else self._settings(folder)
        for key in ("module_input_name", "module_output_name"):
            value = settings.get(key) or "sentence_embedding"
            if value != "sentence_embedding":
                self._refuse_setting(f"{folder}/config.json", key, value, "sentence_embedding")
        return Layer(kind, folder, settings)

    def _settings(self, folder: str) -> dict[str, Any]:
        name = f"{folder}/config.json"
        if not folder or not self.has(name):
            self._refuse(f"{MODULES} names {folder!r}, but {name} is missing; complete the copy")
        settings: dict[str, Any] = self._read(name)
        return settings

    def encoder(self, plain: Mapping[str, Any] = _ENCODER_SETTINGS) -> dict[str, Any]:
        """Returns the transformer's settings, by their names in `SentenceFiles`.

        Args:
            plain: settings that may only have this value.
        """
        name = next(filter(self.has, _ENCODER_FILES), None)
        settings = {} if name is None else self._read(name)
        for key, value in settings.items():
            if value is not None and value != (expected := plain.get(key, value)):
                self._refuse_setting(str(name), key, value, expected)
            if key.endswith(("_args", "_kwargs")) and not _is_harmless(value):
                self._refuse_setting(str(name), key, value, f"only {', '.join(sorted(_HARMLESS))}")
        most = self._count(str(name), "max_seq_length", settings)
        return {"max_length": most, "lowers_case": settings.get("do_lower_case") is True}

    def whole_model(self, expected: str = "SentenceTransformer") -> dict[str, Any]:
        """Returns the settings of the model as a whole, by their names in `SentenceFiles`.

        Args:
            expected: what kind of model it must be.
        """
        settings = self._read(WHOLE_MODEL) if self.has(WHOLE_MODEL) else {}
        kind = settings.get("model_type", "SentenceTransformer")
        if kind != expected:
            self._refuse_setting(WHOLE_MODEL, "model_type", kind, expected)
        named = settings.get("prompts") or {}
        if not isinstance(named, dict) or not all(isinstance(p, str) for p in named.values()):
            self._refuse_setting(WHOLE_MODEL, "prompts", named, "a text by each name")
        prompts = {"query": "", "document": ""} | named
        default = settings.get("default_prompt_name")
        if default is not None and default not in [*prompts]:
            names = f"one of {', '.join(prompts)}"
            self._refuse_setting(WHOLE_MODEL, "default_prompt_name", default, names)
        dims = self._count(WHOLE_MODEL, "truncate_dim", settings)
        return {"prompts": prompts, "default_prompt": default, "truncate_dim": dims}

    def _count(self, file: str, name: str, settings: Mapping[str, Any]) -> int | None:
        value = settings.get(name)
        if value is not None and (type(value) is not int or value < 1):
            self._refuse_setting(file, name, value, "a number from 1")
        return value

    def _read(self, name: str, kind: type = dict) -> Any:
        return read_json(self._folder, name, self._shown, kind)

    @property
    def _shown(self) -> str:
        return f"model {str(self._folder)!r}"

    def _refuse_setting(self, file: str, name: str, value: Any, expected: Any) -> NoReturn:
        self._refuse(
            f"{file} says {name}={value_shown(value)}, expected {expected}; give a model that was "
            "saved so"
        )

    def _refuse(self, what: str) -> NoReturn:
        raise ModelLoadError(f"{self._shown}: {what}")


def _is_harmless(arguments: Any) -> bool:
    return not arguments or (isinstance(arguments, dict) and {*arguments} <= _HARMLESS)
