"""The report on an output: one HTML page that needs nothing else, no network and no script.

It is read from the output alone. What is not known is said to be so, never shown as zero.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sparkinfer import __version__
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, OutputError, causes_without_secrets
from sparkinfer.jobs.clock import utc_now
from sparkinfer.jobs.manifest import manifest_numbers
from sparkinfer.jobs.output import REPORT_FILE
from sparkinfer.logs import get_logger
from sparkinfer.redaction import without_secrets
from sparkinfer.report.asked import asked, calls, is_function, shown_value
from sparkinfer.report.cost import costs
from sparkinfer.report.facts import Facts, read_facts
from sparkinfer.report.failures import failures
from sparkinfer.report.going_on import going_on
from sparkinfer.report.head import head_of
from sparkinfer.report.pace import pace, total_statistics, where_time_went, workers
from sparkinfer.report.parts import Pairs, Part, Section
from sparkinfer.report.quality import quality_parts
from sparkinfer.report.spread import confidence_parts, label_parts, length_parts
from sparkinfer.report.ways import way_parts
from sparkinfer.storage import WORK_FOLDER, absolute, join, replace_text
from sparkinfer.terminal import printable

logger = get_logger(__name__)

FRAME_HEIGHT = 720
"""Of the page within a notebook, in pixels; it scrolls."""


@dataclass(frozen=True)
class Report:
    """A page that has been written; a notebook shows it.

    Attributes:
        path: of its file.
        page: its HTML.
    """

    path: str
    page: str

    def _repr_html_(self) -> str:
        """Returns the page in a frame of its own, so that its style is not the notebook's."""
        inside = html.escape(self.page)
        style = f"width:100%;height:{FRAME_HEIGHT}px;border:0"
        return f'<iframe sandbox title="report" srcdoc="{inside}" style="{style}"></iframe>'


@causes_without_secrets()
def write_report(
    output: str, to: str | None = None, *, price_per_hour: float | None = None
) -> Report:
    """Writes the report on an output and returns it.

    Args:
        output: the folder that a run wrote, finished or not.
        to: where the page goes; None: `report.html` in the output's work folder.
        price_per_hour: of all machines of the job together; None: as the calls were given.

    Raises:
        ConfigError: the price is not above 0.
        OutputError: no run wrote there, or the page cannot be written.
        ResumeError: its manifest is damaged.
    """
    if price_per_hour is not None and not 0 < price_per_hour < math.inf:
        raise ConfigError(f"price_per_hour={price_per_hour!r}: expected a number above 0")
    page = page_of(read_facts(output), price_per_hour)
    path = join(output, WORK_FOLDER, REPORT_FILE) if to is None else absolute(to)
    write_page("report", path, page)
    return Report(path, page)


def write_page(what: str, path: str, page: str) -> None:
    """Writes a page.

    Args:
        what: it is, for the message.
        path: where it goes.
        page: its HTML.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        replace_text(path, page)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{what} {path!r} cannot be written: {reason}; name a file in a folder that can be "
            "written, with --to or `to`"
        ) from error


def report_at_end(config: ScoringConfig) -> str | None:
    """Returns the path of the report on a run that has just ended; None if there is none.

    A report that cannot be written is a warning: the run is as good without it.
    """
    output = config.output
    try:
        if not config.report or output is None or not manifest_numbers(output):
            return None
        return write_report(output).path
    except Exception as error:  # each store has its own
        logger.warning("the report on output %r is not written: %s", output, error)
        return None


def page_of(facts: Facts, price_per_hour: float | None = None) -> str:
    """Returns a page as HTML."""
    return rendered(
        "report.html",
        kind="report",
        source="the output",
        head=head_of(facts, price_per_hour),
        sections=tuple(_sections(facts, price_per_hour)),
        made=utc_now(),
        version=__version__,
    )


def _sections(facts: Facts, price_per_hour: float | None) -> Iterator[Section]:
    yield asked(facts)
    yield from _models(facts)
    yield pace(facts)
    yield where_time_went(facts)
    yield workers(facts)
    yield calls(facts)
    yield failures(facts)
    yield costs(facts.sessions, price_per_hour)
    yield going_on(facts)
    yield _made_with(facts)


def _models(facts: Facts) -> Iterator[Section]:
    """Yields a section for each model, one for each of several."""
    total = total_statistics(facts) if len(facts.models) == 1 else None
    for number, (name, model) in enumerate(facts.models.items()):
        parts: list[Part] = [*way_parts(model)]
        if not is_function(model):
            parts += length_parts(str(number), model, total)
            parts += label_parts(model)
            parts += confidence_parts(str(number), model)
            parts += quality_parts(str(number), model)
        title = "The function" if is_function(model) else "The model"
        yield Section(f"{title} {name}" if name else title, "", parts)


def _made_with(facts: Facts) -> Section:
    if not facts.sessions:
        return Section("Versions", "They are not recorded in this output.")
    versions = facts.sessions[-1].versions
    items = tuple((name, shown_value(version)) for name, version in versions.items())
    return Section("Versions", "Of the last call.", (Pairs("", items),) if items else ())


def rendered(template: str, **values: Any) -> str:
    """Returns a page made of a template of this package.

    Whatever comes from values is escaped; characters that act, and secrets, are not shown.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sparkinfer.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text: str = environment.get_template(template).render(values)
    return text


def _shown(value: Any) -> Any:
    is_plain = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(without_secrets(value)) if is_plain else value
