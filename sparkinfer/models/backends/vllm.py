"""The backend `vllm`: vLLM runs the model with a scheduler of its own.

It is given token ids, so that prompts, limits and errors are those of the task under any backend,
and as many as a window has at once. What the task decodes is what vLLM returns: tokens, logits or
pooled vectors. Written against the interface that vLLM 0.15 documents (`LLM`, `SamplingParams`,
`PoolingParams`, `PoolerConfig`, `TokensPrompt`).
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ConfigError, DeviceError
from sparkinfer.messages import first_line
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.generation.draws import keys_of
from sparkinfer.models.generation.made import LENGTH, STOP, Made
from sparkinfer.models.generation.settings import Settings
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.tasks.base import Tensors
from sparkinfer.models.tasks.embedding import EmbeddingModel
from sparkinfer.models.tasks.generating import GeneratingModel
from sparkinfer.models.tokens import NO_LIMIT

WINDOW_TOKENS = 2**22
"""Tokens, padding included, that are handed over at once: a window, unless its texts are long."""

POOLINGS = {"cls": "CLS", "lasttoken": "LAST", "mean": "MEAN"}
"""vLLM's names of ways to pool. Source: `SequencePoolingType` of vLLM."""

_FOLLOWED = frozenset({"repetition_penalty"})
"""Attributes of a generation config, beside those of our own loop, that vLLM has, too."""

_SEEDS = 2**63 - 1


class VllmBackend:
    """Runs the model in vLLM's engine."""

    name = "vllm"

    def problem(self) -> str | None:
        """Returns how to install the package if it is missing, else None."""
        if importlib.util.find_spec("vllm") is not None:
            return None
        return (
            "the package vllm is not installed; run pip install 'vllm>=0.15' on every node, or use "
            "--acceleration auto"
        )

    def check(self, options: ModelOptions) -> None:
        """Raises ConfigError for what vLLM does not do; see `Backend`."""
        task = options.task.name
        if task not in KINDS:
            raise ConfigError(
                f"acceleration='vllm' with task={task!r}: vLLM runs {', '.join(KINDS)}; use "
                "--acceleration auto"
            )
        if options.parallel.offload != "none":
            raise ConfigError(
                "acceleration='vllm' with parallel.offload=cpu: weights in the host's memory are "
                "DeepSpeed's; use acceleration='deepspeed', or parallel.tensor"
            )

    def warm_up(self) -> None:
        """Imports the package."""
        importlib.import_module("vllm")

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        """Returns the one way."""
        return [Acceleration(self.name, dtype, processes=options.parallel.tensor)]

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> VllmRuntime:
        """Returns vLLM's engine around the model.

        Raises:
            ConfigError: the model generates, or pools, in a way that vLLM does not have.
        """
        checkpoint.release()
        return VllmRuntime(checkpoint, KINDS[checkpoint.options.task.name](checkpoint), way)


class VllmRuntime:
    """A model in vLLM's engine; a `TaskRuntime`.

    Args:
        checkpoint: the model's files.
        kind: how its task is done.
        way: how it is run.
    """

    module = None
    batch_tokens = WINDOW_TOKENS

    def __init__(self, checkpoint: Checkpoint, kind: Kind, way: Acceleration) -> None:
        vllm = importlib.import_module("vllm")
        self._kind = kind
        tokens = checkpoint.most_tokens
        if checkpoint.vocabulary is None:
            checkpoint.vocabulary = _vocabulary(checkpoint.config)
        with _devices(checkpoint):
            self._llm: Any = vllm.LLM(
                model=str(checkpoint.path),
                dtype=way.dtype,
                tensor_parallel_size=way.processes,
                trust_remote_code=checkpoint.options.loading.trust_remote_code,
                max_model_len=None if tokens >= NO_LIMIT else tokens,
                **kind.engine(vllm),
            )

    def score(self, tensors: Tensors, moved: Callable[[], None]) -> pa.RecordBatch:
        """Returns what the task decodes; see `TaskRuntime`.

        Raises:
            DeviceError: the engine has died.
        """
        with _engine_deaths():
            return self._kind.score(self._llm, tensors, moved)

    def try_out(self, tensors: Tensors) -> pa.RecordBatch:
        """Returns the numbers by which ways are compared; see `TaskRuntime`."""
        with _engine_deaths():
            return self._kind.try_out(self._llm, tensors)


@contextmanager
def _engine_deaths() -> Iterator[None]:
    """Raises DeviceError where vLLM's engine has died, which would fail every later row."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "EngineDeadError":
            raise DeviceError(
                f"vLLM's engine has died ({first_line(error)}); the worker process ends so that a "
                "new one starts it again"
            ) from error
        raise


@contextmanager
def _devices(checkpoint: Checkpoint) -> Iterator[None]:
    """Has the processes that vLLM starts see the GPUs of this replica alone."""
    if not checkpoint.device.startswith("cuda"):
        yield
        return
    import torch

    name, before = "CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = before.split(",") if before else []
    indices = [torch.device(one).index or 0 for one in (checkpoint.device, *checkpoint.others)]
    os.environ[name] = ",".join(seen[i] if i < len(seen) else str(i) for i in indices)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _vocabulary(config: Any) -> int | None:
    text = getattr(config, "get_text_config", lambda: config)()
    found = getattr(text, "vocab_size", None)
    return found if isinstance(found, int) else None


class Kind(ABC):
    """How vLLM does a task.

    Args:
        checkpoint: the model's files.

    Raises:
        ConfigError: the model asks for what vLLM does not have.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.task: Any = checkpoint.task

    @abstractmethod
    def engine(self, vllm: Any) -> dict[str, Any]:
        """Returns further arguments of `LLM`."""

    @abstractmethod
    def score(self, llm: Any, tensors: Tensors, moved: Callable[[], None]) -> pa.RecordBatch:
        """Returns what the task decodes of a batch; see `TaskRuntime`."""

    def try_out(self, llm: Any, tensors: Tensors) -> pa.RecordBatch:
        """Returns the numbers by which ways are compared, for a batch."""
        return self.score(llm, tensors, lambda: None)


class Generates(Kind):
    """Text generation: `LLM.generate`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.task: GeneratingModel
        self._settings: Settings = self.task.settings
        self._vocabulary = _vocabulary(checkpoint.config)
        unknown = sorted(self._settings.beside - _FOLLOWED)
        if unknown:
            raise ConfigError(
                f"acceleration='vllm' with {', '.join(unknown)} of the generation options, or of "
                "the model's generation_config.json: vLLM has no such option; drop it there, or "
                "use --acceleration none"
            )

    def engine(self, vllm: Any) -> dict[str, Any]:
        """Returns further arguments of `LLM`: nothing is taken from the model's own files."""
        return {"runner": "generate", "generation_config": "vllm", "max_logprobs": -1}

    def score(self, llm: Any, tensors: Tensors, moved: Callable[[], None]) -> pa.RecordBatch:
        """Returns a row for each prompt; see `Kind`."""
        prompts = _token_ids(tensors)
        parameters = [self._parameters(key) for key in keys_of(prompts)]
        outputs = llm.generate(_prompts(prompts, {}), parameters, use_tqdm=_bar(moved))
        made = Made([], [])
        for output in outputs:
            [one] = output.outputs
            made.tokens.append(list(one.token_ids))
            made.reasons.append(_reason(one.finish_reason))
        return self.task.decode(made, tensors)

    def try_out(self, llm: Any, tensors: Tensors) -> pa.RecordBatch:
        """Returns what the model says of the next token; see `ModelTask.try_out`."""
        import torch

        how = _class("SamplingParams")(max_tokens=1, temperature=0.0, logprobs=-1)
        outputs = llm.generate(_prompts(_token_ids(tensors), {}), how, use_tqdm=False)
        width = self._vocabulary or 0
        logits = torch.full((len(outputs), width), -torch.inf)
        for row, output in enumerate(outputs):
            [found] = output.outputs[0].logprobs
            ids = torch.tensor(list(found))
            logits[row, ids] = torch.tensor([one.logprob for one in found.values()])
        return self.task.compared(logits)

    def _parameters(self, key: np.int64) -> Any:
        """Returns how a prompt is continued; equal prompts have equal seeds.

        Args:
            key: identifies the prompt.
        """
        settings = self._settings
        drawn: dict[str, Any] = {"temperature": 0.0}
        if settings.do_sample:
            drawn = {
                "temperature": settings.temperature,
                "top_k": settings.top_k or -1,
                "top_p": settings.top_p,
                "seed": (int(key) ^ settings.seed) & _SEEDS,
            }
        return _class("SamplingParams")(
            max_tokens=settings.max_new_tokens,
            min_tokens=settings.min_new_tokens,
            repetition_penalty=settings.repetition_penalty,
            stop=list(settings.stop) or None,
            stop_token_ids=list(settings.ends),
            ignore_eos=True,  # what ends a text is among the tokens above
            **drawn,
        )


class Classifies(Kind):
    """Text classification: `LLM.classify`, of which the task makes probabilities."""

    def engine(self, vllm: Any) -> dict[str, Any]:
        """Returns further arguments of `LLM`."""
        return {"runner": "pooling", "convert": "classify"}

    def score(self, llm: Any, tensors: Tensors, moved: Callable[[], None]) -> pa.RecordBatch:
        """Returns a row for each text; see `Kind`."""
        import torch

        how = _class("PoolingParams")(use_activation=False)
        prompts = _prompts(_token_ids(tensors), tensors)
        outputs = llm.classify(prompts, pooling_params=how, use_tqdm=_bar(moved))
        logits = torch.tensor([output.outputs.probs for output in outputs])
        decoded: pa.RecordBatch = self.task.decode(logits, tensors)
        return decoded


class Embeds(Kind):
    """Embedding: `LLM.embed`, of which the task makes vectors of the length it has."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.task: EmbeddingModel
        head, layers = self.task.head, self.task.resolved["layers"]
        others = [mode for mode in head.modes if mode not in POOLINGS]
        if others or len(head.modes) > 1 or self.task.skips_prompt:
            what = "not over the prompt" if self.task.skips_prompt else ", ".join(head.modes)
            raise ConfigError(
                f"acceleration='vllm' with a model that pools {what}: vLLM pools over all tokens "
                f"by one of {', '.join(POOLINGS)}; use --acceleration auto"
            )
        if set(layers) - {"Normalize"}:
            raise ConfigError(
                f"acceleration='vllm' with a model that has the layers {', '.join(layers)} over "
                "its vectors: those are not vLLM's; use --acceleration auto"
            )

    def engine(self, vllm: Any) -> dict[str, Any]:
        """Returns further arguments of `LLM`."""
        [mode] = self.task.head.modes
        pooler = vllm.config.PoolerConfig(pooling_type=POOLINGS[mode], use_activation=False)
        return {"runner": "pooling", "convert": "embed", "pooler_config": pooler}

    def score(self, llm: Any, tensors: Tensors, moved: Callable[[], None]) -> pa.RecordBatch:
        """Returns a row for each text; see `Kind`."""
        import torch

        how = _class("PoolingParams")(use_activation=False)
        prompts = _prompts(_token_ids(tensors), tensors)
        outputs = llm.embed(prompts, pooling_params=how, use_tqdm=_bar(moved))
        vectors = torch.tensor([output.outputs.embedding for output in outputs])
        return self.task.decode(self.task.head.finished(vectors), tensors)


KINDS: Mapping[str, type[Kind]] = {
    "text-generation": Generates,
    "text-classification": Classifies,
    "embedding": Embeds,
}
"""By the name of the task."""


def _bar(moved: Callable[[], None]) -> Callable[..., Any]:
    """Returns what makes a progress bar that shows nothing and tells that something moves."""
    tqdm: Any = importlib.import_module("tqdm").tqdm

    class Bar(tqdm):  # type: ignore[misc,unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            moved()
            return bool(super().update(n))

    return Bar


def _class(name: str) -> Any:
    return getattr(importlib.import_module("vllm"), name)


def _token_ids(tensors: Tensors, name: str = "input_ids") -> list[npt.NDArray[np.int64]]:
    """Returns each row's values without padding."""
    pairs = zip(tensors[name].numpy(), tensors["attention_mask"].numpy(), strict=True)
    return [values[mask > 0] for values, mask in pairs]


def _prompts(ids: Sequence[npt.NDArray[np.int64]], tensors: Tensors) -> list[Any]:
    """Returns prompts as vLLM takes them, with the kinds of tokens where a batch has them."""
    prompts = [{"prompt_token_ids": one.tolist()} for one in ids]
    kinds = "token_type_ids"
    if kinds in tensors:
        for prompt, row in zip(prompts, _token_ids(tensors, kinds), strict=True):
            prompt[kinds] = row.tolist()
    return [_class("TokensPrompt")(**prompt) for prompt in prompts]


def _reason(found: str | None) -> str:
    """Returns why a text ended, in our words.

    Raises:
        RuntimeError: it did not end.
    """
    if found not in (STOP, LENGTH):
        raise RuntimeError(f"vLLM gave a text up ({found}), expected {STOP} or {LENGTH}")
    return found
