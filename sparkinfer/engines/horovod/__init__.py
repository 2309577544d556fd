"""The `horovod` engine: ranks score what Spark prepared."""
