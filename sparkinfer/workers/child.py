"""Python processes of our own, and the connection with each.

A child imports what this process imports. It ends with this process, however that ends: its end of
the connection is then closed.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

_START = """\
import sys
sys.path[:] = {path!r}
from {module} import {function}
{function}({descriptor})
"""


def start_child(
    home: str, environment: Mapping[str, str], *, in_session: bool = False
) -> tuple[subprocess.Popen[bytes], Connection]:
    """Returns a process that calls a function with its end of a connection, and our end.

    Args:
        home: the function, as `package.module:function`; it is given a descriptor.
        environment: what differs from this process's.
        in_session: whether it has a session of its own, which signals to our group do not reach.
    """
    ours, theirs = socket.socketpair()
    module, _, function = home.partition(":")
    path = [one or str(Path.cwd()) for one in sys.path]
    with theirs:
        start = _START.format(
            path=path, module=module, function=function, descriptor=theirs.fileno()
        )
        process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **environment},
            start_new_session=in_session,
        )
    return process, Connection(ours.detach())


def end_with_parent(descriptor: int, act: Callable[[], None] = lambda: None) -> None:
    """Has this child end with its parent, whatever it is at then.

    Args:
        descriptor: of the connection.
        act: called just before.
    """

    def wait() -> None:
        watched = select.poll()
        watched.register(descriptor, 0)  # that the other end is closed is always reported
        watched.poll()
        act()
        os._exit(0)

    threading.Thread(target=wait, name="sparkinfer-parent", daemon=True).start()
