"""The `horovod` engine: ranks that score what Spark prepared."""
