"""`python -m sparkinfer` takes the same arguments as `sparkinfer`."""

import signal
import sys


def main() -> int:
    """Runs the command; Ctrl-C before it hears of it and after it has ended shows no traceback."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sparkinfer.cli import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
