"""How one model generates: what its files say, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.option_groups import GenerationConfig

if TYPE_CHECKING:
    from sparkinfer.models.tasks.base import ModelFiles

DEFAULT_NEW_TOKENS = 256
"""Source: `_default_generation_config` of transformers' pipelines that generate text."""

_LIBRARY_MAX_LENGTH = 20
"""What old files hold where nobody chose a length. Source: `GenerationConfig` of transformers 4."""

_FOR_SAMPLING = ("temperature", "top_k", "top_p", "seed")
_FOR_BEAMS = ("length_penalty", "early_stopping")

_PLAIN = {
    *("max_length", "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k"),
    *("top_p", "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id"),
    *("stop_strings", "length_penalty", "early_stopping", "use_cache", "cache_implementation"),
    *("cache_config", "max_cache_len", "output_attentions", "output_hidden_states"),
    *("output_scores", "output_logits", "return_dict_in_generate", "num_return_sequences"),
    *("transformers_version", "renormalize_logits", "disable_compile", "compile_config"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_lookbehind", "target_lookbehind", "is_assistant", "prefill_chunk_size"),
}
"""Attributes of a generation config that our own loop follows, or that change no token."""

_NEUTRAL = {
    **{"num_beams": 1, "num_beam_groups": 1, "repetition_penalty": 1, "typical_p": 1},
    **{"encoder_repetition_penalty": 1, "guidance_scale": 1, "min_length": 0},
}
"""Values of other attributes that change no token either, beside none, false, zero and nothing."""

_OTHER_SAMPLERS = ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")

_OF_BEAMS = {"num_beams", "length_penalty", "early_stopping"}

_OF_INPUTS = {"encoder_no_repeat_ngram_size", "encoder_repetition_penalty"}
"""Attributes that look at what the encoder reads."""


@dataclass(frozen=True)
class Settings:
    """How one model generates.

    Attributes:
        max_new_tokens: most tokens of a row.
        min_new_tokens: least tokens before a row may end.
        do_sample: whether tokens are drawn.
        temperature: divides the logits before.
        top_k: most tokens among which is drawn; 0: all.
        top_p: share of the probability that these have at least.
        seed: of what is drawn.
        ends: tokens that end a row.
        start: first token of the decoder of an encoder-decoder.
        forces_end: whether the last of the most tokens is an end in any case.
        stop: texts that end a row.
        repetition_penalty: above 1, makes tokens less probable that were there before.
        beside: attributes that ask for more than our own loop follows.
        reads_tokens: whether that looks at the tokens of the prompt, so that none may be padding.
        arguments: of `model.generate`.
    """

    max_new_tokens: int
    min_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    seed: int
    ends: tuple[int, ...]
    start: int | None
    forces_end: bool
    stop: tuple[str, ...]
    repetition_penalty: float
    beside: frozenset[str]
    reads_tokens: bool
    arguments: Mapping[str, Any]

    @property
    def by_library(self) -> bool:
        """Whether `model.generate` is to do it."""
        return bool(self.beside)

    @property
    def brief(self) -> Settings:
        """The same for two tokens."""
        most = min(self.max_new_tokens, 2)
        arguments = {**self.arguments, "max_new_tokens": most, "min_new_tokens": 0}
        return replace(self, max_new_tokens=most, min_new_tokens=0, arguments=arguments)


def check_options(options: GenerationConfig) -> None:
    """Raises ConfigError for options that contradict one another, whatever the model is."""
    if options.do_sample is False:
        _refuse_sampling(options)
    given = _given(options)
    if options.num_beams is not None:
        _check_beams(given, options.num_beams, bool(options.do_sample))
    least, most = options.min_new_tokens or 0, options.max_new_tokens
    if most is not None and least > most:
        raise ConfigError(
            f"generation.min_new_tokens={least} with generation.max_new_tokens={most}: expected at "
            "most as many; change one of them"
        )


def _given(options: GenerationConfig) -> set[str]:
    return {name for name in options.given if getattr(options, name) is not None}


def _refuse_sampling(options: GenerationConfig) -> None:
    """Raises ConfigError for options that say how to draw, where nothing is drawn."""
    given = _given(options)
    for name in _FOR_SAMPLING:
        if name in given:
            raise ConfigError(
                f"generation.{name}={getattr(options, name)} without generation.do_sample=true: "
                "nothing is drawn; give both or neither"
            )


def _check_beams(given: set[str], beams: int, do_sample: bool) -> None:
    if beams > 1 and do_sample:
        raise ConfigError(
            f"generation.do_sample=true with num_beams={beams}: beams are not drawn; give "
            "generation.num_beams=1 or generation.do_sample=false"
        )
    for name in _FOR_BEAMS:
        if name in given and beams == 1:
            raise ConfigError(
                f"generation.{name} without beams: it is for beams; give generation.num_beams=4, "
                "say, or drop it"
            )


def settings_of(
    files: ModelFiles, options: GenerationConfig, of_task: Mapping[str, Any]
) -> Settings:
    """Returns how a model generates.

    Args:
        files: the model's.
        options: what was asked for.
        of_task: what the model's files say for the task in particular; beside what it says of
            generation, anything else.

    Raises:
        ConfigError: the options do not fit the model.
        ModelLoadError: its files say what there is not.
    """
    own = _own(files)
    known = vars(_library_config())
    chosen = {name: value for name, value in of_task.items() if name in known}
    asked = _asked(options)
    if "min_new_tokens" in asked:  # as `generate` has it, which also has the shorter one of these
        own.pop("min_length", None)
        chosen.pop("min_length", None)
    merged = {**own, **chosen, **asked}
    most = _most(files, merged)
    least = _least(files, merged, most)
    _check_beams(set(asked), merged.get("num_beams") or 1, bool(merged.get("do_sample")))
    others = {name for name, value in merged.items() if _changes_tokens(name, value)}
    do_sample = bool(merged.get("do_sample"))
    if do_sample:
        _refuse_samplers(others)
    else:
        _refuse_sampling(options)
    return Settings(
        max_new_tokens=most,
        min_new_tokens=least,
        do_sample=do_sample,
        temperature=_number(merged, "temperature", 1.0),
        top_k=int(_number(merged, "top_k", 50)),
        top_p=_number(merged, "top_p", 1.0),
        seed=options.seed or 0,
        ends=_tokens(merged.get("eos_token_id")),
        start=_start(files, merged),
        forces_end=merged.get("forced_eos_token_id") is not None,
        stop=options.stop or tuple(merged.get("stop_strings") or ()),
        repetition_penalty=_number(merged, "repetition_penalty", 1.0),
        beside=frozenset(others),
        reads_tokens=bool(
            others & _OF_INPUTS if files.config.is_encoder_decoder else others - _OF_BEAMS
        ),
        arguments=_arguments({**chosen, **asked}, most),
    )


def _library_config(**values: Any) -> Any:
    import transformers

    return transformers.GenerationConfig(**values)


def _own(files: ModelFiles) -> dict[str, Any]:
    """Returns what the model's files say, by name. Source: `PreTrainedModel.from_pretrained`."""
    import transformers

    kind = transformers.GenerationConfig
    try:
        if (files.path / "generation_config.json").is_file():
            found = kind.from_pretrained(files.path)
        else:
            found = kind.from_model_config(files.config)
    except Exception as error:  # transformers raises OSError, ValueError, ...
        reason = " ".join(str(error).split())[:300]
        raise ModelLoadError(
            f"model {str(files.path)!r}: generation_config.json cannot be used ({reason}); correct "
            "it, or remove it to generate by the options alone"
        ) from error
    return {
        name: value
        for name, value in found.to_diff_dict().items()
        if value is not None and not name.startswith("_")
    }


def _asked(options: GenerationConfig) -> dict[str, Any]:
    """Returns the options that were given, by transformers' names."""
    given = {name: getattr(options, name) for name in options.given - {"seed", "stop"}}
    return {name: value for name, value in given.items() if value is not None}


def _most(files: ModelFiles, merged: Mapping[str, Any]) -> int:
    of_model, length = merged.get("max_new_tokens"), merged.get("max_length")
    if of_model is not None or length in (None, _LIBRARY_MAX_LENGTH):
        return int(of_model or DEFAULT_NEW_TOKENS)
    if not files.config.is_encoder_decoder:
        raise ConfigError(
            f"the model's generation_config.json has max_length={length}, which counts the prompt, "
            "and no max_new_tokens; give generation.max_new_tokens"
        )
    return max(int(length) - 1, 1)  # the decoder's first token is given


def _least(files: ModelFiles, merged: Mapping[str, Any], most: int) -> int:
    least = int(merged.get("min_new_tokens") or 0)
    length = int(merged.get("min_length") or 0) - 1 if files.config.is_encoder_decoder else 0
    if max(least, length) > most:
        raise ConfigError(
            f"generation.max_new_tokens={most}: the model's files ask for at least "
            f"{max(least, length)} new tokens; give more, or generation.min_new_tokens as well"
        )
    return least


def _changes_tokens(name: str, value: Any) -> bool:
    """Returns whether our own loop would make other tokens than an attribute asks for."""
    if name in _PLAIN or not value:
        return False
    return name not in _NEUTRAL or bool(value != _NEUTRAL[name])


def _refuse_samplers(others: set[str]) -> None:
    for name in _OTHER_SAMPLERS:
        if name in others:
            raise ConfigError(
                f"the model's generation_config.json samples by {name}, expected temperature, "
                "top_k and top_p alone; give generation.do_sample=false, or remove it there"
            )


def _number(merged: Mapping[str, Any], name: str, default: float) -> float:
    value = merged.get(name)
    return default if value is None else float(value)


def _tokens(value: Any) -> tuple[int, ...]:
    """Returns tokens that are named as a list, alone or not at all; -1 means none."""
    named = value if isinstance(value, list | tuple) else [value]
    return tuple(token for token in named if token is not None and token >= 0)


def _start(files: ModelFiles, merged: Mapping[str, Any]) -> int | None:
    if not files.config.is_encoder_decoder:
        return None
    named = (merged.get("decoder_start_token_id"), merged.get("bos_token_id"))
    start = next((token for token in named if token is not None), None)
    if not isinstance(start, int):
        raise ModelLoadError(
            f"model {str(files.path)!r} names no decoder_start_token_id, expected the token that "
            "its decoder begins with; add it to generation_config.json"
        )
    return start


def _arguments(given: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Returns the arguments of `generate`, which draws nothing itself; see `library`."""
    kept = {name: value for name, value in given.items() if name != "max_length"}
    neutral = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    single = {"num_return_sequences": 1, "return_dict_in_generate": False}
    return {**kept, "max_new_tokens": most, **neutral, **single}
