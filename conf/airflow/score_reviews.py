"""Two ways to score new reviews each night from Airflow 3: a Databricks job, or a Spark cluster.

The command goes on where it was broken off, so a retry costs what is left. One run at a time writes
to an output: hence `max_active_runs=1`.
"""

from datetime import datetime, timedelta

from airflow.providers.databricks.operators.databricks import DatabricksRunNowOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

COMMAND = """
sparkinfer score
    --master spark://spark:7077
    --input s3://lake/reviews
    --input-col text
    --incremental
    --model s3://lake/models/sentiment
    --output s3://lake/scored
    --progress lines
"""

with DAG(
    "sparkinfer_databricks",
    start_date=datetime(2026, 1, 1),
    schedule="30 2 * * *",
    catchup=False,
    max_active_runs=1,
):
    # The job has retries of its own.
    DatabricksRunNowOperator(task_id="score", job_name="sparkinfer-nightly", retries=0)

with DAG(
    "sparkinfer_cluster",
    start_date=datetime(2026, 1, 1),
    schedule="30 2 * * *",
    catchup=False,
    max_active_runs=1,
):
    # Airflow stops a task by SIGTERM, which ends a run in order.
    BashOperator(
        task_id="score",
        bash_command=" ".join(COMMAND.split()),
        retries=3,
        retry_delay=timedelta(minutes=5),
        execution_timeout=timedelta(hours=12),
    )
