"""`python -m sparkinfer` takes the same arguments as `sparkinfer`."""

import signal
import sys


def main() -> int:
    """Runs the command; Ctrl-C before it hears of it and after it has ended shows no traceback.

    Raises:
        SystemExit: it did not end with 0. A caller that throws away what functions return must not
            take a failure for a success.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sparkinfer.cli import main as run_command

    if code := run_command():
        sys.exit(code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
