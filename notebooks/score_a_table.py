# Databricks notebook source
# MAGIC %md
# MAGIC # Score a table
# MAGIC Adds a model's prediction and probabilities to each row of a table. Fill in the names.

# COMMAND ----------

dbutils.widgets.text("model", "models:/sentiment/1")  # noqa: F821
dbutils.widgets.text("input", "main.reviews.raw")  # noqa: F821
dbutils.widgets.text("input_col", "text")  # noqa: F821
dbutils.widgets.text("output", "/Volumes/main/reviews/scored")  # noqa: F821
dbutils.widgets.dropdown("engine", "pandas_udf", ["pandas_udf", "horovod"])  # noqa: F821

# COMMAND ----------

import sparkinfer
from sparkinfer.report.live import live_display

names = ("model", "input", "input_col", "output", "engine")
options = {name: dbutils.widgets.get(name) for name in names}  # noqa: F821
result = sparkinfer.run(sparkinfer.ScoringConfig(**options), spark, live_display)  # noqa: F821

# COMMAND ----------

print(result.verdict)
display(spark.read.parquet(options["output"]).limit(20))  # noqa: F821
