"""A figure of matplotlib as a file that is whole, or as it was before."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from detectors.utils import files


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Replace `path` by the figure, in the format that its suffix names.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=dpi)
    files.replace(path, lambda file: file.write(drawn.getbuffer()))
