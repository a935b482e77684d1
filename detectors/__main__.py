"""`python -m detectors`: the same as the command `jol`."""

import sys

from detectors.cli import main

if __name__ == "__main__":
    sys.exit(main())
