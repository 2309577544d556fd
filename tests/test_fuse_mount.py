from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuse_mount import FuseMount, Switches

WAIT_S = 20.0


def is_mounted(folder: Path) -> bool:
    return f" {folder} " in Path("/proc/mounts").read_text()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_mount_does_what_the_folder_does(mount: FuseMount) -> None:
    one, other = mount.hosts
    content = os.urandom(3_000_000)
    (one / "folder").mkdir()
    (one / "folder" / "file").write_bytes(content)
    assert (other / "folder" / "file").read_bytes() == content
    assert (mount.backing / "folder" / "file").read_bytes() == content
    (one / "folder" / "file").rename(one / "moved")
    assert names_in(other / "folder") == []
    os.link(one / "moved", one / "linked")
    (one / "pointer").symlink_to("linked")
    assert (other / "pointer").read_bytes() == content
    with (one / "linked").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(2)
        file.write(b"XX")
        file.truncate(5)
    with (one / "linked").open("ab") as file:
        file.write(b"end")
    assert (other / "linked").read_bytes() == content[:2] + b"XX" + content[4:5] + b"end"
    os.utime(one / "linked", (1, 2))
    assert (other / "linked").stat().st_mtime == 2
    with (one / "open").open("wb") as file:
        (one / "open").unlink()
        file.write(b"still there")
        file.flush()
        assert os.fstat(file.fileno()).st_size == 11
    shutil.rmtree(one / "folder")
    assert names_in(other) == ["linked", "moved", "pointer"]


@pytest.mark.parametrize("refusal", ["EPERM", "ENOSYS"])
def test_renames_and_links_can_be_refused(mount: FuseMount, refusal: str) -> None:
    file = mount.hosts[0] / "file"
    file.write_text("x")
    mount.switch(refused={"rename": refusal, "link": "EPERM"})
    with pytest.raises(OSError, match=os.strerror(getattr(errno, refusal))):
        file.rename(file.with_name("other"))
    with pytest.raises(OSError, match="not permitted"):
        file.with_name("linked").hardlink_to(file)
    mount.switch()
    file.rename(file.with_name("other"))


def test_what_appends_or_writes_elsewhere_can_be_refused(mount: FuseMount) -> None:
    file = mount.hosts[0] / "file"
    mount.switch(sequential=True)
    file.write_bytes(bytes(1_000_000))
    file.write_bytes(bytes(500_000))
    with file.with_name("jumps").open("wb", buffering=0) as jumping:
        jumping.write(b"x")
        jumping.seek(10)
        with pytest.raises(OSError, match="not supported"):
            jumping.write(b"x")
    for mode in ("ab", "r+b"):
        with pytest.raises(OSError, match="not supported"):
            file.open(mode)
    with pytest.raises(OSError, match="not supported"):
        os.truncate(file, 5)
    assert file.stat().st_size == 500_000


def test_a_mount_can_fail_for_a_while(mount: FuseMount) -> None:
    file = mount.hosts[0] / "file"
    mount.switch(refused={"*": "EIO"}, refused_for_s=0.5)
    with pytest.raises(OSError, match="Input/output error"):
        file.write_text("x")
    written, deadline = 0, time.monotonic() + WAIT_S
    while not written:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):
            written = file.write_text("x")


def test_a_full_disk_is_the_errors_of_writing_alone(mount: FuseMount) -> None:
    file = mount.hosts[0] / "file"
    file.write_text("x")
    mount.switch(refused={"write": "ENOSPC"})
    with pytest.raises(OSError, match="No space left"):
        file.write_text("more")
    assert file.read_text() == ""


def test_an_operation_can_be_slow(mount: FuseMount) -> None:
    mount.switch(delays_s={"mkdir": 0.3})
    started = time.monotonic()
    (mount.hosts[0] / "folder").mkdir()
    assert time.monotonic() - started >= 0.3


def create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def test_two_hosts_can_both_create_a_file_that_is_to_be_new(mount: FuseMount) -> None:
    one, other = (host / "file" for host in mount.hosts)
    create(one)
    with pytest.raises(FileExistsError):
        create(other)
    one.unlink()
    mount.switch(lookup_lag_s=WAIT_S)
    create(one)
    assert not other.exists()
    with pytest.raises(FileExistsError):
        create(other)
    mount.switch(lookup_lag_s=WAIT_S, exclusive=False)
    create(other)


def test_a_listing_can_lag(mount: FuseMount) -> None:
    one, other = mount.hosts
    (one / "old").touch()
    mount.switch(listing_lag_s=WAIT_S)
    (one / "new").touch()
    assert names_in(other) == []
    assert (other / "new").exists()
    mount.switch(listing_lag_s=0)
    assert names_in(other) == ["new", "old"]
    mount.switch(listing_lag_s=WAIT_S)
    (one / "old").unlink()
    assert "old" in names_in(other)
    assert not (other / "old").exists()


def test_a_mistyped_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="no operations: \\['renam'\\]"):
        Switches(refused={"renam": "EIO"})


def test_a_test_that_is_killed_leaves_no_mount(mount: FuseMount, tmp_path: Path) -> None:
    host = tmp_path / "killed"
    code = (
        "import os, pathlib, signal, sys\n"
        "from tests.fuse_mount import FuseMount\n"
        "host = pathlib.Path(sys.argv[1])\n"
        "with FuseMount(host.with_name('b'), host):\n"
        "    (host / 'file').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(host)], cwd=Path(__file__).parents[1])
    assert (host.with_name("b") / "file").exists()
    deadline = time.monotonic() + WAIT_S
    while is_mounted(host):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_is_killed_leaves_no_mount(tmp_path: Path, mount: FuseMount) -> None:
    host = tmp_path / "orphaned"
    with FuseMount(tmp_path / "b", host) as orphaned:
        orphaned._server.kill()
        orphaned._server.wait()
        with pytest.raises(OSError, match="not connected|aborted"):
            names_in(host)
    assert not is_mounted(host)
