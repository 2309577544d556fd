"""How much memory a process may still take on its host, within its container's limit."""

from __future__ import annotations

from pathlib import Path

_NO_LIMIT = 2**60
"""Version 1 of control groups writes a number near this one where there is no limit."""


def free_host_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes that are free on this host, at most those left of this process's limit.

    Args:
        root: of the file system.

    Returns:
        None where the host does not tell.
    """
    known = [_available(root / "proc/meminfo"), *_left_of_limits(root)]
    return min((free for free in known if free is not None), default=None)


def _available(meminfo: Path) -> int | None:
    for line in _text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_of_limits(root: Path) -> list[int | None]:
    """Returns what is left of the limits of the process's control groups, and of those above."""
    found: list[int | None] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounted, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mounted = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = mounted / path.lstrip("/")
        groups = [own, *own.parents]
        found += [_left(group, *names) for group in groups if group.is_relative_to(mounted)]
    return found


def _left(group: Path, limit: str, used: str) -> int | None:
    """Returns the bytes left in a control group; its cache of files makes room."""
    most, taken = _number(group / limit), _number(group / used)
    if most is None or taken is None or most >= _NO_LIMIT:
        return None
    rows = (line.split() for line in _text(group / "memory.stat").splitlines())
    cached = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    given_back = cached.get("total_inactive_file", cached.get("inactive_file", 0))
    return max(0, most - taken + given_back)


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
