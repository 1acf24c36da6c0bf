"""Whether pytest was asked for everything (--all): what a module chooses as it is read, before there are fixtures."""

import sys

EVERYTHING = "--all" in sys.argv
