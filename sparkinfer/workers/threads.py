"""How many threads a worker's libraries use."""

from __future__ import annotations

import os
import sys


def limit_threads(cores: int, uses_torch: bool = True) -> None:
    """Gives torch and the tokenizer as many threads as the worker has cores.

    Args:
        cores: of the worker.
        uses_torch: whether it will need torch; if that is not known, it is not imported for this.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("RAYON_NUM_THREADS", str(cores))
    if not uses_torch and "torch" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(cores)
        return
    import torch

    torch.set_num_threads(cores)
