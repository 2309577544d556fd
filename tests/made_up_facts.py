"""Facts of outputs that were never made, for tests of the pages that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from sparkinfer.jobs.sessions import Session, SessionDevice
from sparkinfer.metrics.distributions import CONFIDENCE_BINS, LENGTH_EDGES, Distributions
from sparkinfer.metrics.measure import Measure, States
from sparkinfer.models.tasks import TASKS
from sparkinfer.report.facts import ChunkFacts, ErrorSample, Facts, ModelFacts
from sparkinfer.report.status import RunStatus
from sparkinfer.workers.statistics import ScoringStatistics

LABELS = ("negative", "neutral", "positive")
ROWS = 4_000


def facts(
    *,
    labels: Sequence[str] = LABELS,
    models: Mapping[str, ModelFacts] | None = None,
    sessions: Sequence[Session] | None = None,
    chunks: Sequence[ChunkFacts] | None = None,
    samples: Sequence[ErrorSample] = (),
    **status: Any,
) -> Facts:
    """Returns facts of a finished classification in two calls; arguments change a part of them."""
    both = (session(0), session(1, rows_before=ROWS // 2))
    done = tuple(made_up_chunks(8) if chunks is None else chunks)
    return Facts(
        status=made_up_status(**{"chunks": len(done), **status}),
        sessions=both if sessions is None else tuple(sessions),
        chunks=done,
        models={"": model(labels)} if models is None else models,
        samples=tuple(samples),
    )


def made_up_status(**changes: Any) -> RunStatus:
    """Returns the status of a finished run."""
    status = RunStatus(
        output="/data/scored",
        state="finished",
        settings={"input": "/data/reviews.parquet", "columns": {"id": "int64", "text": "string"}},
        created="2026-11-27T08:00:00+00:00",
        overwrites=False,
        rows=ROWS,
        rows_made=ROWS,
        total_rows=ROWS,
        chunks=8,
        total_chunks=8,
        missing=(),
        errors=0,
        reasons={},
        truncated=12,
        tokens=100_000,
        rows_per_s=200.0,
        metrics={},
        metrics_problem=None,
        metrics_of_run=(),
        writer=None,
        vector_store=None,
        vector_chunks=0,
    )
    return replace(status, **changes)


def statistics(rows: int = ROWS, speed: float = 1.0) -> ScoringStatistics:
    """Returns what scoring some rows took."""
    return ScoringStatistics(
        rows=rows,
        truncated=6,
        forward_rows=rows,
        tokens=25 * rows,
        padded_tokens=27 * rows,
        batches=rows // 50,
        load_s=1.0,
        read_s=rows / 9e4,
        tokenize_s=rows / 8e3,
        wait_s=rows / 4e3,
        forward_s=rows / 150 / speed,
        decode_s=rows / 9e3,
        write_s=rows / 5e4,
    )


def session(number: int, **changes: Any) -> Session:
    """Returns one of two calls that shared the rows."""
    before = changes.get("rows_before", 0)
    rows = ROWS // 2
    timeline = tuple((3.0 + step * 0.5, before + rows * step // 20) for step in range(21))
    plain = Session(
        number=number,
        started=f"2026-11-27T08:0{number % 10}:00+00:00",
        outcome="finished",
        reason="",
        seconds=14.0,
        phases={"checks": 0.5, "gate": 2.0, "score": 10.0},
        engine="local",
        workers=2,
        device_type="cpu",
        rows=rows,
        rows_before=before,
        retried_rows=0,
        errors=0,
        devices=(
            SessionDevice("cpu on one", statistics(rows // 2)),
            SessionDevice("cpu on two", statistics(rows // 2, 0.5)),
        ),
        timeline=timeline,
        options={"input": "/data/reviews.parquet", "output": "/data/scored", "model": "/m/mood"},
        versions={"python": "3.11.2", "sparkinfer": "0.1.0"},
        hosts={"one": {"cpu": "Xeon", "cores": 2, "memory_bytes": 2**33, "gpus": {"0": "H100"}}},
    )
    return replace(plain, **changes)


def made_up_chunks(number: int) -> list[ChunkFacts]:
    """Returns chunks that are done, one of them slow."""
    rows = max(1, ROWS // number)
    return [
        ChunkFacts(
            number=at,
            rows=rows,
            errors=0,
            seconds=9.0 if at == 5 else 3.0 + at % 3 / 10,
            finished=f"2026-11-27T08:{at // 60 % 60:02}:{at % 60:02}+00:00",
            devices={"cpu on one": rows},
            statistics=statistics(rows),
            attempts=1 + (at == 5),
        )
        for at in range(number)
    ]


VERDICT = {
    "accepted": {
        "backend": "openvino",
        "dtype": "bfloat16",
        "variant": "",
        "processes": 1,
        "offloads": False,
    },
    "device": "cpu",
    "max_difference": 0.0021,
    "tolerance": 0.01,
    "max_length": 512,
    "rejected": [["deepspeed in bfloat16", "it is not installed"]],
    "unpadded": "",
    "reference": "float32",
    "uncompared": "",
    "memory": "0.1 GiB of weights",
    "device_model": "Xeon",
    "speeds": [["openvino in bfloat16", 21_000.0], ["none in bfloat16", 15_000.0]],
    "is_remembered": False,
}


def model(labels: Sequence[str] = LABELS, **changes: Any) -> ModelFacts:
    """Returns a classifier whose labels were measured."""
    measure = measure_of(labels)
    states = made_up_states(measure) if labels else {}
    measured = measure.values([states])
    plain = ModelFacts(
        settings={
            "task": "text-classification",
            "input_col": "text",
            "label_col": "label",
            "model_fingerprint": "0123456789abcdef",
        },
        verdict=VERDICT,
        labels=tuple(labels),
        distributions=distributions(labels),
        metrics=measured.metrics,
        metrics_problem=measured.problem,
        states=states,
    )
    return replace(plain, **changes)


def measure_of(labels: Sequence[str]) -> Measure:
    """Returns what is measured of a classifier."""
    return Measure(TASKS["text-classification"].evaluation, "label", "", tuple(labels))


def made_up_states(measure: Measure, rows: int = 600) -> States:
    """Returns the states of the metrics over rows of which most are right."""
    labels, random = measure.labels, np.random.default_rng(7)
    true = random.integers(len(labels), size=rows)
    raw = random.random((rows, len(labels)))
    raw[np.arange(rows), true] += 1.2 * random.random(rows) + 0.3
    shares = (raw**3 / (raw**3).sum(axis=1, keepdims=True)).astype(np.float32)
    columns = {
        "label": pa.array([labels[at] for at in true]),
        "prediction": pa.array([labels[at] for at in shares.argmax(axis=1)]),
        "probabilities": pa.array(shares.tolist(), pa.list_(pa.float32())),
    }
    measuring = measure.start()
    measuring.add(pa.table(columns))
    return measuring.states()


def distributions(labels: Sequence[str] = LABELS) -> Distributions:
    """Returns distributions of a classifier's rows."""
    lengths = [0] * (len(LENGTH_EDGES) + 1)
    lengths[:14] = [3, 0, 1, 4, 12, 40, 160, 420, 800, 1_000, 800, 500, 200, 60]
    truncated = [0] * len(lengths)
    truncated[13] = 12
    confidences = [0] * CONFIDENCE_BINS
    confidences[20:] = [10 + 4 * at for at in range(30)]
    counts = {label: 1 + 7 * at for at, label in enumerate(labels)}
    return Distributions(lengths, truncated, counts, 0, confidences)


UNRECORDED = replace(
    facts(
        sessions=(),
        chunks=[replace(one, statistics=ScoringStatistics()) for one in made_up_chunks(3)],
        models={"": model(verdict={}, distributions=Distributions(), metrics={}, states={})},
    )
)
"""Of an output that an older version made: neither calls nor distributions nor seconds."""

EMPTY = facts(
    sessions=[
        session(
            0,
            rows=0,
            workers=0,
            devices=(),
            timeline=((1.0, 0),),
            phases={"checks": 0.5, "score": 0.1},
        )
    ],
    chunks=(),
    models={"": model(distributions=Distributions(), metrics={}, states={})},
    **dict.fromkeys(("rows", "rows_made", "total_rows", "total_chunks", "tokens", "truncated"), 0),
    rows_per_s=None,
)

ONLY_ERRORS = facts(
    sessions=[session(0, rows=ROWS, errors=ROWS)],
    models={"": model(distributions=Distributions(), metrics={}, states={})},
    samples=[ErrorSample("text is null", {"id": "1"}), ErrorSample("text is null", {"id": "2"})],
    errors=ROWS,
    reasons={"text is null": ROWS - 5, "model: made up": 2},
    tokens=0,
    truncated=0,
)

UNFINISHED = facts(
    sessions=[
        session(0, outcome="stopped"),
        session(
            1, outcome="failed", reason="a worker died", lost_workers=2, rows=0, rows_before=2_000
        ),
    ],
    state="broken off",
    rows=ROWS // 2,
    rows_made=ROWS // 2,
    chunks=made_up_chunks(4),
    missing=(4, 5, 6, 7),
)

EMBEDDING = facts(
    models={
        "": model(
            (),
            settings={"task": "embedding", "input_col": "text", "label_col": None},
            distributions=replace(distributions(()), confidences=[]),
            metrics={},
            states={},
        )
    },
    vector_store="chroma:library#reviews",
    vector_chunks=8,
)

GENERATION = facts(
    models={
        "": model(
            (),
            settings={
                "task": "text-generation",
                "input_template": "{title}: {body}",
                "generation.max_new_tokens": 32,
            },
            distributions=replace(distributions(()), confidences=[], truncated=[]),
            metrics={},
            states={},
        )
    }
)

FUNCTION = facts(
    models={
        "": ModelFacts(
            settings={
                "fn": ["my_functions:Predictor 0123"],
                "fn.input_cols": ["id", "text"],
                "fn.schema": "id bigint, label string",
            },
            verdict={"accepted": "my_functions:Predictor", "schema": "id bigint, label string"},
            labels=(),
            distributions=Distributions(),
            metrics={},
            metrics_problem=None,
            states={},
        )
    },
    sessions=[session(0, options={"input": "/data/r.parquet", "fn.function": ["my_functions:P"]})],
    rows_made=2 * ROWS,
    tokens=0,
    truncated=0,
)

SEVERAL = facts(
    models={
        "mood": model(),
        "topic": model([f"topic {at}" for at in range(30)]),
        "vectors": EMBEDDING.models[""],
    },
    sessions=[
        session(
            0,
            rows=ROWS,
            options={"models.mood.model": "/m/mood", "models.topic.model": "org/topic"},
        )
    ],
)

LARGE = facts(
    models={"": model([f"label {at}" for at in range(1_000)])},
    sessions=[session(at, rows=ROWS // 100) for at in range(100)],
    chunks=made_up_chunks(10_000),
    total_chunks=10_000,
)

CASES = {
    "finished": facts(),
    "unrecorded": UNRECORDED,
    "empty": EMPTY,
    "only errors": ONLY_ERRORS,
    "unfinished": UNFINISHED,
    "embedding": EMBEDDING,
    "generation": GENERATION,
    "function": FUNCTION,
    "several": SEVERAL,
    "large": LARGE,
    "no labels": facts(models={"": model(metrics={}, metrics_problem="label_col='x': none fits")}),
    "running": facts(state="running", rows=10, rows_made=10, sessions=()),
    "ready": facts(state="ready to finish"),
}
