"""Which pipelines of the installed transformers can be given a text."""

from __future__ import annotations

from typing import Any

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.tasks import TASKS

NOT_A_TEXT = {"table-question-answering": "a table with a question"}
"""What pipelines read that transformers counts among those of texts."""


def refuse_unfit(name: str) -> None:
    """Raises ConfigError unless a task names a pipeline that reads a text."""
    kinds = _kinds()
    if name not in kinds:
        others = sorted(one for one in kinds if _reads(one, kinds) == "a text")
        more = [one for one in others if one not in TASKS]
        raise ConfigError(
            f"task={name!r}: expected one of {', '.join(sorted(TASKS))}, or another pipeline of "
            f"the installed transformers that reads a text ({', '.join(more) or 'it has none'}); "
            "transformers.pipelines.get_supported_tasks() lists all it has"
        )
    found = _reads(name, kinds)
    if found != "a text":
        raise ConfigError(
            f"task={name!r}: this pipeline reads {found}, expected one that reads a text, such as "
            f"{', '.join(sorted(TASKS)[:3])}"
        )


def _reads(name: str, kinds: dict[str, str]) -> str:
    kind = kinds[name]
    return NOT_A_TEXT.get(name, "a text") if kind == "text" else f"other inputs ({kind})"


def _kinds() -> dict[str, str]:
    """Returns what each pipeline reads, as transformers calls it, by name."""
    from transformers.pipelines import PIPELINE_REGISTRY

    def kind(name: str) -> str:
        task: tuple[Any, Any, Any] = PIPELINE_REGISTRY.check_task(name)
        return str(task[1].get("type"))

    return {name: kind(name) for name in PIPELINE_REGISTRY.get_supported_tasks()}
