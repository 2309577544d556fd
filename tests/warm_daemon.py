"""Spark's daemon for Python workers, which imports what they need once, before it forks them."""

import pandas  # noqa: F401
import pyarrow.dataset  # noqa: F401
import torch  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401
from pyspark.daemon import manager

if __name__ == "__main__":
    manager()
