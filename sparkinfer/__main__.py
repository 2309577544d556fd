"""`python -m sparkinfer` takes the same arguments as `sparkinfer`."""

import sys

from sparkinfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
