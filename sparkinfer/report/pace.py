"""When rows were done, where the time went, and how evenly workers and chunks shared it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import numpy as np

from sparkinfer.jobs.sessions import Session
from sparkinfer.plan.wording import format_seconds
from sparkinfer.report import charts
from sparkinfer.report.asked import NO_CALLS, scoring_rate
from sparkinfer.report.facts import ChunkFacts, Facts
from sparkinfer.report.parts import (
    Number,
    Part,
    Picture,
    Section,
    Stack,
    Table,
    Unknown,
    in_thousands,
    percent,
    plural,
    rate_of,
    table_of,
)
from sparkinfer.workers.statistics import ScoringStatistics

RATE_BINS = 60
"""Parts of the time, of each of which the rate is drawn."""

MOST_POINTS = 300
"""Points of a curve, or chunks, that are drawn one by one."""

LISTED_POINTS = 40
"""Points of a curve that a table lists."""

MOST_MARKS = 20
"""Beginnings of calls that are drawn."""

SLOW = 1.5
"""Times the median of the seconds per row, from which on a chunk or a device is called slow."""

LEAST_CHUNKS = 3
"""Chunks that can be compared with one another."""

MOST_DEVICES = 40

MOST_HOSTS = 20
HOST = {"cpu": "processor", "cores": "cores", "memory_bytes": "memory", "gpus": "GPUs"}
"""What is shown of a machine, and how it is called."""

PHASES = {
    "checks": "checks of the call",
    "session": "start of the Spark session",
    "gate": "trial of the model",
    "prepare": "preparation of the input",
    "start": "start of the workers",
    "score": "scoring",
}

STEPS = {
    "reading": ("read_s", "rows from the input, in parallel with the model"),
    "tokenising": ("tokenize_s", "tokens of texts, in parallel with the model"),
    "forward": ("forward_s", "the model, until its output is on the CPU"),
    "decoding": ("decode_s", "columns of outputs"),
    "writing": ("write_s", "files, in parallel with the model"),
}

ADVICE = {
    "reading": "The model waited for rows: larger row groups, or an input that is nearer, help.",
    "tokenising": "The model waited for tokens: more CPU cores for each worker help.",
    "forward": "The model itself: more or faster devices help, and what sparkinfer tune finds.",
    "decoding": "Making columns of outputs: more CPU cores for each worker help.",
    "writing": "The model waited for files to be written: an output that is nearer, or fewer kept "
    "columns, help.",
}


@dataclass(frozen=True)
class Course:
    """How rows became done.

    Attributes:
        points: seconds at work and rows done by then, in their order.
        begins: seconds at which a call begins, but for the first.
        source: what it is known by.
    """

    points: tuple[tuple[float, float], ...]
    begins: tuple[float, ...]
    source: str


def pace(facts: Facts) -> Section:
    """Returns rows and rate over time."""
    course = _course(facts)
    if len(course.points) < 2 or not course.points[-1][1]:
        text = "When rows were done is not known: no call has left a record of it."
        nothing = facts.status.total_rows == 0
        return Section("Rows over time", "There were no rows." if nothing else text)
    parts = (_rows_drawn(course), _rate_drawn(course), *_chunk_parts(facts.chunks))
    return Section("Rows over time", course.source, parts)


def _course(facts: Facts) -> Course:
    """Returns how rows became done: by the calls' own records, else by the ends of chunks."""
    timed = [session for session in facts.sessions if len(session.timeline) > 1]
    if timed:
        return _course_of_calls(timed)
    return _course_of_chunks(facts.chunks)


def _course_of_calls(sessions: Sequence[Session]) -> Course:
    points: list[tuple[float, float]] = []
    begins = []
    at = 0.0
    for session in sessions:
        begins.append(at)
        points += [(at + seconds, float(rows)) for seconds, rows in _timeline(session)]
        at += max(session.seconds, session.timeline[-1][0])
    source = "By what the calls recorded while they ran; the time between calls is left out."
    return Course(tuple(points), tuple(begins[1:]), source if len(sessions) > 1 else "")


def _timeline(session: Session) -> tuple[tuple[float, int], ...]:
    """Returns seconds of a call and rows done by then; rescored rows were done before."""
    if session.rows:
        return session.timeline
    return tuple((seconds, session.rows_before) for seconds, _ in session.timeline)


def _course_of_chunks(chunks: Sequence[ChunkFacts]) -> Course:
    ends = sorted((_second(chunk), chunk.rows) for chunk in chunks)
    if not ends:
        return Course((), (), "")
    first = ends[0][0]
    rows = np.cumsum([rows for _, rows in ends])
    points = tuple(
        (second - first, float(done)) for (second, _), done in zip(ends, rows, strict=True)
    )
    return Course(points, (), "By the ends of the chunks, the first of which is at 0.")


def _second(chunk: ChunkFacts) -> float:
    return datetime.fromisoformat(chunk.finished).timestamp()


def _rows_drawn(course: Course) -> Picture:
    unit, size = _unit(course.points[-1][0])
    points = _thinned([(second / size, rows) for second, rows in course.points], MOST_POINTS)
    svg = charts.line("rows", points, unit, _marks(course, size))
    listed = _thinned(points, LISTED_POINTS)
    cells = [(f"{x:.1f}", Number(in_thousands(rows))) for x, rows in listed]
    says = f"{plural(course.points[-1][1], 'row')} in {format_seconds(course.points[-1][0])}."
    if course.begins:
        says += " A call went on with what the one before had left"
        says += ", at the dotted lines." if len(course.begins) <= MOST_MARKS else "."
    return Picture("Rows done", says, svg, table_of((unit, "rows"), cells))


def _rate_drawn(course: Course) -> Part:
    seconds, rows = (np.array(one) for one in zip(*course.points, strict=True))
    if seconds[-1] <= seconds[0]:
        return Unknown("Rate", "All rows were done at the same moment.")
    edges = np.linspace(seconds[0], seconds[-1], 1 + min(RATE_BINS, 4 * len(seconds)))
    done = np.interp(edges, seconds, np.maximum.accumulate(rows))
    rates = np.diff(done) / np.diff(edges)
    unit, size = _unit(seconds[-1])
    points = [*zip(edges[:-1] / size, rates, strict=True), (edges[-1] / size, rates[-1])]
    moving = rates[rates > 0]
    level = float(median(moving)) if len(moving) else 0.0
    svg = charts.line("rate", points, unit, _marks(course, size), level, is_step=True)
    cells = [(f"{x:.1f}", Number(rate_of(rate))) for x, rate in points[:-1]]
    says = (
        f"Rows per second; where rows moved, {rate_of(level)} in the middle (dashed) and "
        f"{rate_of(float(rates.max()))} at most."
    )
    return Picture("Rate", says, svg, table_of((f"from ({unit})", "rows/s"), cells))


def _marks(course: Course, size: float) -> list[float]:
    """Returns where calls begin, unless they are too many to be told from one another."""
    return [begin / size for begin in course.begins if len(course.begins) <= MOST_MARKS]


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Returns at most so many of the points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    chosen = np.unique(np.linspace(0, len(points) - 1, most).round().astype(int))
    return [points[at] for at in chosen]


def _unit(seconds: float) -> tuple[str, float]:
    if seconds < 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def where_time_went(facts: Facts) -> Section:
    """Returns the phases of the calls, and the steps of the workers."""
    total = total_statistics(facts)
    parts: list[Part] = [_phases(facts.sessions), *_steps(total)]
    return Section("Where the time went", _bottleneck(total), parts)


def total_statistics(facts: Facts) -> ScoringStatistics:
    """Returns what all workers did: by the calls' records, or by the chunks' if there is more."""
    of_calls, of_chunks = ScoringStatistics(), ScoringStatistics()
    for session in facts.sessions:
        for device in session.devices:
            of_calls.add(device.statistics)
    for chunk in facts.chunks:
        of_chunks.add(chunk.statistics)
    return of_calls if of_calls.rows >= of_chunks.rows else of_chunks


def _phases(sessions: Sequence[Session]) -> Part:
    if not sessions:
        return Unknown("Phases", NO_CALLS)
    seconds: dict[str, float] = {}
    for session in sessions:
        for name, taken in session.phases.items():
            seconds[name] = seconds.get(name, 0.0) + taken
    total = sum(session.seconds for session in sessions)
    rest = total - sum(seconds.values())
    if rest > 0.05:
        seconds["checks and publishing" if "checks" not in seconds else "all else"] = rest
    longest = max(seconds.values(), default=0.0) or 1.0
    rows = [
        (PHASES.get(name, name), Number(_precisely(taken), taken / longest), percent(taken / total))
        for name, taken in seconds.items()
        if total
    ]
    says = f"{format_seconds(total)} from the call to its end"
    says += f", over {len(sessions):,} calls." if len(sessions) > 1 else "."
    return Table("Phases", ("phase", "time", "share"), rows, says)


def _precisely(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)


def _steps(total: ScoringStatistics) -> Iterator[Part]:
    spent = {name: getattr(total, field) for name, (field, _) in STEPS.items()}
    longest = max(spent.values())
    if not longest:
        text = "How long reading, the model and writing took is not recorded in this output."
        yield Unknown("Steps of the workers", text)
        return
    rows = [
        (name, Number(_precisely(seconds), seconds / longest), STEPS[name][1])
        for name, seconds in spent.items()
    ]
    waits = [
        ("waiting for tokens", total.wait_s, "the model had nothing to do"),
        ("waiting for files", total.write_wait_s, "scored rows waited for those before them"),
        ("loading the model", total.load_s, "until it was ready, in each worker"),
    ]
    rows += [
        (name, Number(_precisely(seconds), min(1.0, seconds / longest)), meaning)
        for name, seconds, meaning in waits
    ]
    says = "Seconds of all workers together; steps overlap, so that they do not add up."
    yield Table("Steps of the workers", ("step", "time", "what for"), rows, says, columns=2)


def _bottleneck(total: ScoringStatistics) -> str:
    if total.bottleneck is None:
        return ""
    step, share = total.bottleneck
    return (
        f"Bottleneck: {step}, {percent(share)} of the workers' time. {ADVICE.get(step, '')}".strip()
    )


def workers(facts: Facts) -> Section:
    """Returns what each device did, and what was lost."""
    parts: list[Part] = [*_devices(facts), *_hosts(facts.sessions)]
    return Section("Workers", _losses(facts), parts)


def _losses(facts: Facts) -> str:
    lost = sum(session.lost_workers for session in facts.sessions)
    again = sum(chunk.attempts > 1 for chunk in facts.chunks)
    halved = total_statistics(facts).out_of_memory
    told = []
    if lost:
        told.append(f"Ended before their time: {plural(lost, 'worker')}; others took their rows.")
    if again:
        told.append(f"Recorded more than once: {plural(again, 'chunk')}.")
    if halved:
        told.append(f"Devices ran out of memory {plural(halved, 'time')}; batches were halved.")
    if told or not facts.sessions:
        return " ".join(told)
    return "No worker was lost, no device ran out of memory."


def _devices(facts: Facts) -> Iterator[Part]:
    devices = _by_device(facts)
    if not devices:
        yield Unknown("Devices", "What each device did is not recorded in this output.")
        return
    speeds = {name: _device_rate(one) for name, one in devices.items()}
    known = [speed for speed in speeds.values() if speed]
    middle = median(known) if known else 0.0
    order = sorted(devices, key=lambda name: speeds[name] or 0.0)
    rows = [_device_row(name, devices[name], speeds[name], middle) for name in order[:MOST_DEVICES]]
    slow = sum(1 for speed in known if speed * SLOW < middle)
    says = "Rows per second of the workers' own time, without loading."
    if slow:
        says += f" {plural(slow, 'device')} took more than {SLOW:g} times the median."
    if len(order) > MOST_DEVICES:
        says += f" The {MOST_DEVICES} slowest of {len(order):,}."
    head = ("device", "rows", "rows/s", "the model", "waiting", "how its time was spent")
    legend = [(part, colour) for part, (colour, _) in SPENT.items()]
    yield Table("Devices", head, rows, says, legend, columns=3)


def _by_device(facts: Facts) -> dict[str, ScoringStatistics]:
    devices: dict[str, ScoringStatistics] = {}
    for session in facts.sessions:
        for device in session.devices:
            devices.setdefault(device.device, ScoringStatistics()).add(device.statistics)
    return devices


SPENT: Mapping[str, tuple[str, Callable[[ScoringStatistics], float]]] = {
    "the model": ("main", lambda one: one.forward_s),
    "decoding": ("series-3", lambda one: one.decode_s),
    "waiting for tokens": ("warn", lambda one: one.wait_s),
    "waiting for files": ("soft", lambda one: one.write_wait_s),
}
"""How a worker's own time is spent, after the model is loaded: colour and seconds."""


def _own_seconds(one: ScoringStatistics) -> float:
    return sum(seconds(one) for _, seconds in SPENT.values())


def _device_rate(one: ScoringStatistics) -> float | None:
    seconds = _own_seconds(one)
    return one.rows / seconds if seconds and one.rows else None


def _device_row(
    name: str, one: ScoringStatistics, speed: float | None, middle: float
) -> tuple[str | Number | Stack, ...]:
    seconds = _own_seconds(one)
    if not seconds or speed is None:
        unknown = Number("–")
        return (name, Number(in_thousands(one.rows)), unknown, unknown, unknown, "not known")
    pieces = [(part, colour, spent(one) / seconds) for part, (colour, spent) in SPENT.items()]
    waiting = (one.wait_s + one.write_wait_s) / seconds
    return (
        name,
        Number(in_thousands(one.rows)),
        Number(rate_of(speed), is_notable=speed * SLOW < middle),
        Number(percent(one.forward_s / seconds)),
        Number(percent(waiting)),
        Stack(pieces),
    )


def _chunk_parts(chunks: Sequence[ChunkFacts]) -> Iterator[Part]:
    timed = [chunk for chunk in chunks if chunk.rows and chunk.seconds > 0]
    if len(timed) < LEAST_CHUNKS:
        return
    middle = median(_per_thousand(chunk) for chunk in timed)
    slow = [chunk for chunk in timed if _per_thousand(chunk) > SLOW * middle]
    says = (
        f"Seconds per 1,000 rows, from a chunk's start until its files were complete; the median "
        f"is {rate_of(middle)}"
    )
    says += (
        f", and {plural(len(slow), 'chunk')} took more than {SLOW:g} times that." if slow else "."
    )
    drawn = _chunks_drawn(timed, slow, middle)
    yield Picture("Chunks", says, drawn, _slowest(timed, middle))


def _per_thousand(chunk: ChunkFacts) -> float:
    return 1000 * chunk.seconds / chunk.rows


def _chunks_drawn(timed: Sequence[ChunkFacts], slow: Sequence[ChunkFacts], middle: float) -> str:
    if len(timed) <= MOST_POINTS:
        points = [(float(chunk.number), _per_thousand(chunk)) for chunk in timed]
        notable = [(float(chunk.number), _per_thousand(chunk)) for chunk in slow]
        return charts.dots("chunks", points, notable, "number of the chunk", middle)
    groups = np.array_split(np.arange(len(timed)), MOST_POINTS // 3)
    took = np.array([_per_thousand(chunk) for chunk in timed])
    places = [float(timed[group[len(group) // 2]].number) for group in groups]
    middles = [float(np.median(took[group])) for group in groups]
    ranges = [(float(took[group].min()), float(took[group].max())) for group in groups]
    return charts.band("chunks", places, middles, ranges, "number of the chunk")


def _slowest(timed: Sequence[ChunkFacts], middle: float) -> Table:
    order = sorted(timed, key=_per_thousand, reverse=True)[:LISTED_POINTS]
    rows = [
        (
            str(chunk.number),
            Number(in_thousands(chunk.rows)),
            Number(_precisely(chunk.seconds)),
            Number(rate_of(_per_thousand(chunk))),
            Number(rate_of(_per_thousand(chunk) / middle)),
            Number(in_thousands(chunk.errors)),
            Number(str(chunk.attempts)),
            ", ".join(chunk.devices) or "not known",
        )
        for chunk in order
    ]
    head = (
        *("chunk", "rows", "time", "s per 1,000 rows", "times the median", "errors"),
        *("recorded", "devices"),
    )
    shown = "All chunks" if len(order) == len(timed) else f"The slowest of {len(timed):,} chunks"
    return Table("", head, rows, f"{shown}, slowest first.")


def _hosts(sessions: Sequence[Session]) -> Iterator[Part]:
    hosts = {name: host for session in sessions for name, host in session.hosts.items()}
    rows = [
        (name, *(_host_value(key, hosts[name].get(key)) for key in HOST))
        for name in list(hosts)[:MOST_HOSTS]
    ]
    says = f"{MOST_HOSTS} of {len(hosts):,} machines." if len(hosts) > MOST_HOSTS else ""
    if rows:
        yield Table("Machines", ("host", *HOST.values()), rows, says, columns=3)


def _host_value(key: str, value: object) -> str:
    if value is None:
        return "not known"
    if key == "memory_bytes" and isinstance(value, int | float):
        return f"{value / 2**30:,.1f} GiB"
    if isinstance(value, Mapping):
        return ", ".join(dict.fromkeys(map(str, value.values()))) or "none"
    return str(value)


def overall_rate(facts: Facts) -> float | None:
    """Returns rows per second of scoring; None if it is not known."""
    return scoring_rate(facts.sessions) or facts.status.rows_per_s
