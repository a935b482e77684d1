"""Where the file of an image is, by the name that an annotation file gives it."""

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from detectors.utils.names import brief, short_path

_DRIVE = re.compile(r"[A-Za-z]:/")
_WEB = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def find_image(folder: Path, name: str) -> tuple[Path, str | None]:
    """The file, and in words in which other form its name was found.

    The name is looked up in `folder`. Where the last folders of `folder` are the first ones of the
    name they count once: "images/a.jpg" is found in .../train as well as in .../train/images. An
    absolute name counts from `folder`, or, written on another machine, from where the last two
    folders of `folder` are in it. Of a name that leads out of `folder`, such as Label Studio's
    "../../upload/1/a.jpg", the last two or more parts are looked up, unless there is a file where
    it leads. Back-slashes part folders where no file has them in its name; a name in another
    Unicode form is the same.

    Raises:
        ValueError: says why there is none.
    """
    tried: list[Path] = []
    for text, other in _forms(name):
        for file in _candidates(folder, PurePosixPath(text)):
            if os.path.isfile(file):  # unlike Path.is_file, never raises on a strange name
                return file, other or _oddity(text)
            tried.append(file)
    words = f"file_name {brief(name)}"
    if _WEB.match(name):
        raise ValueError(f"{words} is a web address, wanted a file in {folder}")
    slashes = name.replace("\\", "/")
    if _is_absolute(slashes) or ".." in PurePosixPath(slashes).parts:
        last = PurePosixPath(slashes).parts[-2:]
        other = f", or the image there as {brief('/'.join(last))}" if ".." not in last else ""
        raise ValueError(f"{words} leaves the images folder {folder}, wanted one in it{other}")
    raise ValueError(f"no file {' or '.join(map(short_path, dict.fromkeys(tried)))}")


def _forms(name: str) -> Iterator[tuple[str, str | None]]:
    """The name as it is and in other forms, and what each is called."""
    yield name, None
    slashes = name.replace("\\", "/")
    if slashes != name:
        yield slashes, "file names with back-slashes"
    for form in ("NFC", "NFD"):  # macOS writes the second, others the first
        other = unicodedata.normalize(form, slashes)
        if other != slashes:
            yield other, "file names in another Unicode form"


def _oddity(name: str) -> str | None:
    """What a name that was found is called in a remark."""
    if ".." in PurePosixPath(name).parts:
        return "file names that leave the images folder, found in it by their last parts"
    return "absolute file names" if _is_absolute(name) else None


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or bool(_DRIVE.match(name))


def _candidates(folder: Path, name: PurePosixPath) -> list[Path]:
    """Where in the folder this name may be."""
    if ".." in name.parts:
        if os.path.isfile(folder / name):  # one of the same name is another
            return []
        inside = name.parts[len(name.parts) - name.parts[::-1].index("..") :]
        each = (PurePosixPath(*inside[k:]) for k in range(len(inside) - 1))
        return [file for end in each for file in _candidates(folder, end)]
    tail = Path(os.path.abspath(folder)).parts  # without '..', links not followed
    if _is_absolute(str(name)):
        for whole in (tail, Path(os.path.realpath(folder)).parts):
            if name.parts[: len(whole)] == whole:
                return [folder.joinpath(*name.parts[len(whole) :])]
        ends = [k for k in range(2, len(name.parts)) if name.parts[k - 2 : k] == tail[-2:]]
        return [folder.joinpath(*name.parts[k:]) for k in ends]
    shared = [k for k in range(1, len(name.parts)) if tail[-k:] == name.parts[:k]]
    return [folder.joinpath(*name.parts[k:]) for k in [0, *shared]]
