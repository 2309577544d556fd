"""DeepSpeed for models that are larger than one GPU; called in a process of the model's own.

What it needs of a process (a torch world, settings that outlive a call) a worker cannot have.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.deepspeed import import_deepspeed, stay_on
from sparkinfer.models.backends.torch import PipelineRuntime
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.held_module import HeldModule
from sparkinfer.workers.devices import use_gpu

FORMATS = {"float16": "fp16", "bfloat16": "bf16"}
"""DeepSpeed's names of number formats."""


def load_large(
    checkpoint: Checkpoint, way: Acceleration, rank: int, meeting: str
) -> PipelineRuntime:
    """Returns this process's part of a model.

    Args:
        checkpoint: the model, on the device of this process.
        way: how it is run.
        rank: of this process.
        meeting: where the processes find one another; see `Job`.
    """
    import torch

    on_gpu = checkpoint.device.startswith("cuda")
    index = torch.device(checkpoint.device).index or 0 if on_gpu else rank
    place = {"RANK": rank, "WORLD_SIZE": way.processes, "LOCAL_RANK": index}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)  # of a world that the worker belongs to
    if on_gpu:
        use_gpu(index)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=way.processes,
    )
    deepspeed = import_deepspeed()
    stay_on(checkpoint.device)
    # Compiled where it is first used, for minutes, and a stopped compilation blocks the next one.
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    load = _offloaded if way.offloads else _split
    return PipelineRuntime(HeldModule(load(deepspeed, checkpoint, way), _device(checkpoint)))


def _device(checkpoint: Checkpoint) -> Any:
    import torch

    return torch.device(checkpoint.device)


def _split(deepspeed: Any, checkpoint: Checkpoint, way: Acceleration) -> Any:
    """Returns a module of which each layer's products are split among the processes."""
    import torch

    engine = deepspeed.init_inference(
        checkpoint.take_module(way.dtype),
        dtype=getattr(torch, way.dtype),
        tensor_parallel={"tp_size": way.processes},
        replace_with_kernel_inject=False,
    )
    return engine.module


def _offloaded(deepspeed: Any, checkpoint: Checkpoint, way: Acceleration) -> Any:
    """Returns a module whose weights are in the host's memory, each brought when it is needed."""
    from transformers.integrations import HfDeepSpeedConfig

    on_gpu = checkpoint.device.startswith("cuda")
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # asked for, and without meaning here
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "cpu", "pin_memory": on_gpu},
        },
        **{name: {"enabled": way.dtype == one} for one, name in FORMATS.items()},
    }
    kept = HfDeepSpeedConfig(settings)  # while it lives, transformers loads what ZeRO can part
    module = checkpoint.take_module(way.dtype)
    engine = deepspeed.initialize(model=module, config=settings)[0]
    module.sparkinfer_keeps = (kept, engine)
    return module.eval()
