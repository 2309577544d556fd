"""`python -m sparkinfer` takes the same arguments as `sparkinfer`.

This file is also what `spark-submit` is given: it then runs by itself, wherever it lies.
"""

import signal
import sys
from pathlib import Path

PACKED = "spark-submit --archives ENVIRONMENT.tar.gz#environment"


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


def main_of_a_file() -> int:
    """Runs the command of the package that this Python has installed.

    A file's own folder is the first in which Python looks for modules. Where that is the package,
    its `logs` and `signals` would be everybody's.
    """
    here = Path(__file__).resolve().parent
    if (here / "__init__.py").exists():
        sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    try:
        return main()
    except ModuleNotFoundError as error:
        print(
            f"sparkinfer: error: the driver's Python ({sys.executable}) has no module "
            f"{error.name!r}; set spark.pyspark.driver.python to one that has, or send one along "
            f"by {PACKED} (docs/spark_submit.md)",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main() if __package__ else main_of_a_file())
