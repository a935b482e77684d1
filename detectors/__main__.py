"""The command `jol`, and `python -m detectors`: detectors/cli.py, which takes a while to import."""

import sys


def main() -> int:
    """Run `jol` with the words of this process, and return the exit status."""
    try:
        from detectors.cli import main as run
    except KeyboardInterrupt:
        print("jol: interrupted", file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
