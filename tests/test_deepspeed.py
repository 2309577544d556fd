from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import load_way
from tests.model_options import options_of

accelerators: Any = pytest.importorskip("deepspeed.accelerator", reason="deepspeed is missing")


def test_a_model_on_the_cpu_stays_there_where_deepspeed_would_choose_a_gpu(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.accelerator import real_accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    monkeypatch.setattr(real_accelerator, "ds_accelerator", CUDA_Accelerator())
    options = options_of()
    checkpoint = Checkpoint(classifier, options, "cpu")
    runtime: Any = load_way(checkpoint, Acceleration("deepspeed", "float32")).runtime
    assert accelerators.get_accelerator().device_name() == "cpu"
    assert next(runtime.pipe.model.parameters()).device == torch.device("cpu")
