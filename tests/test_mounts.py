from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparkinfer import mounts
from sparkinfer.doctor.folders import describe_mount
from sparkinfer.mounts import APPEND, LINK, RENAME, REWRITE, refusals
from tests.fuse_mount import FuseMount


def test_a_disk_refuses_nothing_and_nothing_is_left_there(tmp_path: Path) -> None:
    assert refusals(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
    assert describe_mount(str(tmp_path)) == ""


@pytest.mark.parametrize(
    ("switches", "refused"),
    [
        ({"refused": {"rename": "EPERM"}}, {RENAME: "Operation not permitted"}),
        ({"refused": {"link": "EOPNOTSUPP"}}, {LINK: "Operation not supported"}),
        ({"sequential": True}, dict.fromkeys((APPEND, REWRITE), "Operation not supported")),
    ],
)
def test_what_a_mount_refuses_is_found(
    mount: FuseMount, switches: dict[str, Any], refused: dict[str, str]
) -> None:
    mount.switch(**switches)
    assert refusals(mount.hosts[0]) == refused
    assert list(mount.hosts[0].iterdir()) == []
    name, reason = next(iter(refused.items()))
    assert f"{name} ({reason})" in describe_mount(str(mount.hosts[0]))


def test_a_folder_that_takes_no_file_is_an_error(mount: FuseMount) -> None:
    mount.switch(refused={"mkdir": "EROFS"})
    with pytest.raises(OSError, match="Read-only"):
        refusals(mount.hosts[0])


def test_a_mount_that_fails_for_a_while_is_not_taken_for_one_without_renames(
    mount: FuseMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_has_renames", {})
    mount.switch(refused={"rename": "EIO"})
    with pytest.raises(OSError, match="Input/output error"):
        mounts.renames(mount.hosts[0])
    mount.switch()
    assert mounts.renames(mount.hosts[0])
