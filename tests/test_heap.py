import resource
from pathlib import Path

import pytest

from sparkinfer.workers import heap


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(heap._malloc_trim is None, reason="the C library is not glibc")
def test_pages_that_hold_nothing_go_back_though_something_lies_above_them() -> None:
    blocks = [b"x" * 65_536 for _ in range(2000)]
    del blocks[:-1]
    held = resident_bytes()
    heap.trim()
    assert held - resident_bytes() > 1000 * 65_536
