"""The one error of the machine."""


class PtxError(Exception):
    """A fault of a compiled kernel or of what it was given, in one line that names it."""
