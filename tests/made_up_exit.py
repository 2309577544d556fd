"""A module that ends the process which imports it, as a script without a guard does."""

import sys

sys.exit("not here")
