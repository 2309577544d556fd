"""The backend `deepspeed`: `deepspeed.init_inference` around the pipeline's module.

For models that are larger than one GPU, its ZeRO-Inference and its tensor parallelism, in processes
of their own; see `processes`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from typing import Any

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.processes import ProcessesRuntime
from sparkinfer.models.backends.torch import PipelineRuntime, runtime_of
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.options import ModelOptions

KERNELS = "kernel injection"
"""The variant in which DeepSpeed replaces layers with its own kernels."""


class DeepSpeedBackend:
    """Runs the module inside DeepSpeed's inference engine."""

    name = "deepspeed"

    def problem(self) -> str | None:
        """Returns how to install the package if it is missing, else None."""
        if importlib.util.find_spec("deepspeed") is not None:
            return None
        return (
            "the package deepspeed is not installed; run pip install deepspeed (the extra "
            "[deepspeed]) or use --acceleration auto"
        )

    def check(self, options: ModelOptions) -> None:
        """Raises for options that contradict each other, or need a package; see `Backend`."""
        parallel = options.parallel
        offloads = parallel.offload == "cpu"
        if offloads and parallel.tensor > 1:
            raise ConfigError(
                f"parallel.offload=cpu with {parallel.shown}: one keeps the weights in the host's "
                "memory, the other on several GPUs; drop one of them"
            )
        if parallel.is_asked and options.deepspeed.kernel_inject:
            raise ConfigError(
                f"{parallel.shown} with deepspeed.kernel_inject=true: DeepSpeed's own kernels are "
                "for models on one GPU; drop one of them"
            )
        if offloads and importlib.util.find_spec("accelerate") is None:
            raise EngineUnavailableError(
                f"{parallel.shown}: the package accelerate is not installed, with which "
                "transformers reads DeepSpeed's settings; run pip install accelerate on every node"
            )

    def warm_up(self) -> None:
        """Imports the package."""
        import_deepspeed()

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        """Returns the plain wrapper, preceded by the kernels if they were requested.

        Kernels are used only on request: they are wrong or absent for most architectures, and
        right for none of those measured so far.
        """
        parallel = options.parallel
        if parallel.is_asked:
            offloads = parallel.offload == "cpu"
            return [Acceleration(self.name, dtype, "", parallel.tensor, offloads)]
        plain = Acceleration(self.name, dtype)
        if not options.deepspeed.kernel_inject:
            return [plain]
        return [Acceleration(self.name, dtype, KERNELS), plain]

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> PipelineRuntime | ProcessesRuntime:
        """Returns the pipeline around DeepSpeed's engine, or the processes that run the model."""
        if way.is_large:
            checkpoint.release()
            return ProcessesRuntime(checkpoint, way)
        pipe = checkpoint.pipeline(checkpoint.take_module(way.dtype))
        pipe.model = self._wrap(pipe.model, checkpoint, way)
        return runtime_of(pipe)

    def _wrap(self, module: Any, checkpoint: Checkpoint, way: Acceleration) -> Any:
        import torch

        deepspeed = import_deepspeed()
        stay_on(checkpoint.device)
        dtype = getattr(torch, way.dtype)
        # The pipeline disables the cache through a parameter that it looks for in the signature of
        # `forward`, which DeepSpeed's wrapper hides.
        module.config.use_cache = False
        if way.variant != KERNELS:
            return deepspeed.init_inference(module, dtype=dtype, replace_with_kernel_inject=False)
        module.set_attn_implementation("eager")  # with sdpa, injected layers misread padding
        module.config.return_tuple = False  # transformers 5 expects layers to return a tensor
        return deepspeed.init_inference(
            module,
            dtype=dtype,
            replace_with_kernel_inject=True,
            max_out_tokens=checkpoint.encoder.max_length,
        )


def stay_on(device: str) -> None:
    """Keeps DeepSpeed from moving a module to a GPU that was not asked for.

    It moves every module to the accelerator of its choice, which is a GPU where there is one.
    """
    accelerator = importlib.import_module("deepspeed.accelerator")
    if device == "cpu" and accelerator.get_accelerator().device_name() != "cpu":
        cpu = importlib.import_module("deepspeed.accelerator.cpu_accelerator")
        accelerator.set_accelerator(cpu.CPU_Accelerator())


def import_deepspeed() -> Any:
    """Returns the package, which says less than it would and looks for no GPU where there is none.

    Source: the variables of `deepspeed.utils.logging` and `deepspeed.accelerator`.
    """
    import torch

    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return importlib.import_module("deepspeed")
