"""Stands for vLLM, which needs a GPU: the same names and signatures, and what it documents.

It runs the model with transformers, one prompt after the other. Source of the signatures: the
documentation of vLLM 0.15 of `LLM`, `SamplingParams`, `PoolingParams`, `PoolerConfig` and the
outputs. That the adapter fits the real one is not shown by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import transformers

calls: list[tuple[str, int]] = []
"""What was called, with how many prompts."""

FAILS_ON = 7
"""A token that the engine fails on, where it is the only one of a prompt."""

DIES_ON = 8
"""Likewise, of which the engine dies."""


class EngineDeadError(Exception):
    """Likewise."""


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError("seed")


@dataclass
class PoolingParams:
    dimensions: int | None = None
    use_activation: bool | None = None


@dataclass
class PoolerConfig:
    pooling_type: str | None = None
    use_activation: bool | None = None


config = SimpleNamespace(PoolerConfig=PoolerConfig)


class TokensPrompt(dict[str, Any]):
    """Likewise."""


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[Any] = field(default_factory=list)


@dataclass
class PoolingRequestOutput:
    prompt_token_ids: list[int]
    outputs: Any


class LLM:
    def __init__(
        self,
        model: str,
        *,
        runner: str = "auto",
        convert: str = "auto",
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        trust_remote_code: bool = False,
        max_model_len: int | None = None,
        generation_config: str = "auto",
        max_logprobs: int = 20,
        pooler_config: PoolerConfig | None = None,
    ) -> None:
        self.arguments = dict(locals())
        self._longest = max_model_len
        self._pooler = pooler_config
        self._max_logprobs = max_logprobs
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        kinds = {"classify": "SequenceClassification", "embed": ""}
        kind = "CausalLM" if runner == "generate" else kinds[convert]
        loader = getattr(transformers, f"AutoModelFor{kind}" if kind else "AutoModel")
        self._model = loader.from_pretrained(model, torch_dtype=getattr(torch, dtype)).eval()

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        priority: list[int] | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        assert self.arguments["generation_config"] == "vllm"
        calls.append(("generate", len(prompts)))
        given = sampling_params if isinstance(sampling_params, list) else None
        every = given or [sampling_params] * len(prompts)
        pairs = zip(_told(prompts, use_tqdm), every, strict=True)
        return [self._continue(one, how) for one, how in pairs]

    def _continue(self, prompt: Any, how: Any) -> RequestOutput:
        ids = self._checked(prompt)
        made: list[int] = []
        found: list[dict[int, Logprob]] = []
        reason = "length"
        draw = torch.Generator().manual_seed(how.seed or 0)
        while len(made) < how.max_tokens:
            with torch.no_grad():
                logits = self._model(torch.tensor([ids + made])).logits[0, -1].float()
            found.append(dict(enumerate(map(Logprob, logits.log_softmax(-1).tolist()))))
            made.append(self._next(logits, ids + made, len(made), how, draw))
            if made[-1] in (how.stop_token_ids or ()):
                reason = "stop"
                break
            text = self._tokenizer.decode(made, skip_special_tokens=True)
            if any(stop in text for stop in how.stop or ()):
                reason = "stop"
                break
        if how.logprobs is not None:
            assert self._max_logprobs == how.logprobs == -1
        logprobs = found if how.logprobs is not None else None
        return RequestOutput(ids, [CompletionOutput(0, "", made, None, logprobs, reason)])

    def _next(self, logits: Any, seen: list[int], made: int, how: Any, draw: Any) -> int:
        for token in set(seen):
            value = logits[token]
            penalty = how.repetition_penalty
            logits[token] = value / penalty if value > 0 else value * penalty
        if made < how.min_tokens:
            logits[how.stop_token_ids or []] = -torch.inf
        if how.temperature == 0:
            return int(logits.argmax())
        probabilities = (logits / how.temperature).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=draw))

    def classify(
        self,
        prompts: Any,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[PoolingRequestOutput]:
        assert pooling_params is not None
        calls.append(("classify", len(prompts)))
        made = []
        for prompt in _told(prompts, use_tqdm):
            logits = self._run(prompt).logits[0].float()
            probs = logits.softmax(-1) if pooling_params.use_activation is not False else logits
            output = SimpleNamespace(probs=probs.tolist())
            made.append(PoolingRequestOutput(prompt["prompt_token_ids"], output))
        return made

    def embed(
        self,
        prompts: Any,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[PoolingRequestOutput]:
        assert pooling_params is not None
        assert self._pooler is not None
        calls.append(("embed", len(prompts)))
        pool: Any = {
            "MEAN": lambda hidden: hidden.mean(0),
            "CLS": lambda hidden: hidden[0],
            "LAST": lambda hidden: hidden[-1],
        }[str(self._pooler.pooling_type)]
        made = []
        for prompt in _told(prompts, use_tqdm):
            vector = pool(self._run(prompt).last_hidden_state[0].float())
            output = SimpleNamespace(embedding=vector.tolist())
            made.append(PoolingRequestOutput(prompt["prompt_token_ids"], output))
        return made

    def _run(self, prompt: Any) -> Any:
        ids = torch.tensor([self._checked(prompt)])
        kinds = {"token_type_ids": torch.tensor([prompt["token_type_ids"]])}
        with torch.no_grad():
            return self._model(ids, **(kinds if "token_type_ids" in prompt else {}))

    def _checked(self, prompt: Any) -> list[int]:
        assert isinstance(prompt, TokensPrompt)
        ids: list[int] = prompt["prompt_token_ids"]
        if ids == [FAILS_ON]:
            raise ValueError("The decoder prompt cannot be used")
        if ids == [DIES_ON]:
            raise EngineDeadError("EngineCore encountered an issue")
        if self._longest is not None and len(ids) > self._longest:
            raise ValueError("The decoder prompt is longer than the maximum model length")
        return ids


def _told(prompts: Any, use_tqdm: bool | Callable[..., Any]) -> Iterator[Any]:
    assert use_tqdm is not True  # workers have no terminal
    bar = use_tqdm(total=len(prompts), desc="Processed", dynamic_ncols=True) if use_tqdm else None
    for prompt in prompts:
        yield prompt
        if bar is not None:
            bar.update(1)
    if bar is not None:
        bar.close()
