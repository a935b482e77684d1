"""Pictures that a command wrote, as arrays."""

from pathlib import Path

import numpy as np
from PIL import Image


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))
