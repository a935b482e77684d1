"""Pictures as cameras and microscopes write them: which way up, and how many bits."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectors.data import CocoDetection, train_batches
from detectors.data.images import decode, displayed_size, read_picture
from detectors.errors import DataError

CORNER = (255, 0, 0)


def save_turned(file: Path, turn: int, size: tuple[int, int] = (40, 30)) -> None:
    """Black pixels, red at the upper left as stored, with an EXIF orientation."""
    picture = Image.new("RGB", size)
    picture.paste(CORNER, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.save(file, exif=exif, **({"quality": 95} if file.suffix == ".jpg" else {}))


# Where the pixel stored at the upper left is displayed: Exif 2.32, tag 274.
SHOWN_AT = {
    1: "upper left",
    2: "upper right",
    3: "lower right",
    4: "lower left",
    5: "upper left",
    6: "upper right",
    7: "lower right",
    8: "lower left",
}


def red_corner(pixels: np.ndarray) -> str:
    """Which corner of [3, H, W] is red."""
    corners = {
        f"{row} {column}": pixels[:, y, x]
        for row, y in (("upper", 2), ("lower", -3))
        for column, x in (("left", 2), ("right", -3))
    }
    (found,) = [name for name, (red, _, blue) in corners.items() if red > 200 and blue < 50]
    return found


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_training_and_prediction_see_displayed_pixels(tmp_path: Path, turn: int, suffix: str):
    """Pillow itself has turned a TIFF when it is loaded, no other format."""
    file = tmp_path / f"a.{suffix}"
    save_turned(file, turn)
    size = (30, 40) if turn >= 5 else (40, 30)
    predicted, trained = decode(file, None, "x"), decode(file, size, "x")
    assert (predicted == trained).all() and trained.shape == (3, *size[::-1])
    assert red_corner(trained.numpy()) == SHOWN_AT[turn]
    assert displayed_size(file) == size
    if suffix == "png":  # where the orientation follows the pixels
        chunks = file.read_bytes()
        at = chunks.index(b"eXIf") - 4
        end = at + 12 + int.from_bytes(chunks[at : at + 4])
        file.write_bytes(chunks[:at] + chunks[end:-12] + chunks[at:end] + chunks[-12:])
        assert displayed_size(file) == size and (decode(file, size, "x") == trained).all()
    picture = read_picture(file, size, "x")
    assert (picture.turn, picture.as_stored) == (turn, False)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("turn", range(5, 9))
def test_stored_pixels_where_only_they_have_the_size(tmp_path: Path, turn: int, suffix: str):
    file = tmp_path / f"a.{suffix}"
    save_turned(file, turn)
    picture = read_picture(file, (40, 30), "x")
    assert picture.as_stored and picture.turn == turn
    assert red_corner(picture.pixels.transpose(2, 0, 1)) == "upper left"


@pytest.mark.parametrize("turn", [3, 6])
def test_displayed_pixels_where_both_have_the_size(tmp_path: Path, turn: int):
    save_turned(tmp_path / "a.jpg", turn, (40, 40))
    assert red_corner(decode(tmp_path / "a.jpg", (40, 40), "x").numpy()) == SHOWN_AT[turn]


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_another_size_is_refused_however_turned(tmp_path: Path, turn: int):
    save_turned(tmp_path / "a.jpg", turn)
    for size in ((41, 30), (30, 41), *([] if turn == 6 else [(30, 40)])):
        with pytest.raises(DataError, match="is 40x30 pixels, the annotation file says"):
            decode(tmp_path / "a.jpg", size, "x")


def test_damaged_exif_data_turn_nothing(tmp_path: Path):
    """Viewers show such a picture as it is stored."""
    file = tmp_path / "a.jpg"
    save_turned(file, 6)
    content = file.read_bytes()
    at = content.index(b"\x01\x12\x00\x03")  # the tag and its kind, a short
    file.write_bytes(content[: at + 2] + b"\x00\x0d" + content[at + 4 :])
    assert red_corner(decode(file, (40, 30), "x").numpy()) == "upper left"


def ramp(most: float, shape: tuple[int, int] = (30, 40)) -> np.ndarray:
    return np.linspace(0, most, shape[0] * shape[1]).reshape(shape)


def seen(file: Path) -> np.ndarray:
    """The pixels [H, W, 3], the same whether their size is promised or not."""
    first, second = decode(file, None, "x"), decode(file, (40, 30), "x")
    assert (first == second).all()
    return first.permute(1, 2, 0).numpy()


# The brightest pixel, and the value that is white.
WIDE = [(4000, 4095), (1000, 1023), (250, 255), (16_000, 16_383), (40_000, 65_535), (256, 1023)]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("most, white", WIDE)
def test_sixteen_bits_are_scaled_from_the_range_in_use(tmp_path, most, white, suffix):
    file, values = tmp_path / f"a.{suffix}", ramp(most).astype(np.uint16)
    Image.fromarray(values).save(file)
    pixels = seen(file)
    assert (pixels == (values.astype(int) * 256 // (white + 1))[..., None]).all()
    assert pixels.max() >= 60 and read_picture(file, None, "x").white == white


@pytest.mark.parametrize(
    "values, white",
    [
        (ramp(3000).astype(np.int32), 4095),
        (ramp(2e9).astype(np.int32), 2**32 - 1),
        (ramp(70_000).astype(np.int32), 2**18 - 1),
        (ramp(1.8e7).astype(np.int32), 2**26 - 1),
        (ramp(1).astype(np.float32), 1),
        (ramp(1.25).astype(np.float32), 1.25),
        (ramp(0.3).astype(np.float32), 1),
        (ramp(200).astype(np.float32), 255),
        (ramp(50_000).astype(np.float32), 65_535),
        (ramp(100_000).astype(np.float32), 2**18 - 1),
    ],
)
def test_thirty_two_bits_too(tmp_path, values, white):
    Image.fromarray(values).save(tmp_path / "a.tif")
    pixels = seen(tmp_path / "a.tif").astype(float)
    assert read_picture(tmp_path / "a.tif", None, "x").white == white
    assert np.abs(pixels[..., 0] - 255 * (values.astype(float) / white)).max() <= 1


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 2.0**33])
def test_pixels_without_a_range_are_refused(tmp_path, bad):
    values = ramp(200).astype(np.float32)
    values[3, 4] = bad
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif cannot be decoded: pixels from .* save it as"):
        decode(tmp_path / "a.tif", None, "x")


def test_a_declared_range_counts(tmp_path):
    values = ramp(900).astype(np.uint16)
    for tags, white in (({281: 4095}, 4095), ({281: 500}, 1023), ({}, 1023)):
        Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
        assert read_picture(tmp_path / "a.tif", None, "x").white == white
    head = b"P5\n40 30\n4095\n"  # Netpbm's files say what is white
    (tmp_path / "a.pgm").write_bytes(head + values.astype(">u2").tobytes())
    assert abs(int(seen(tmp_path / "a.pgm").max()) - 255 * 900 // 4095) <= 1


def png16(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write; W3C's PNG, section 11.2."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16(values: np.ndarray) -> bytes:
    """An uncompressed TIFF of three channels of 16 bits; TIFF 6.0, section 6."""
    strip = 8 + 2 + 12 * 9 + 4 + 6
    entries = [(256, 3, 1, 40), (257, 3, 1, 30), (258, 3, 3, strip - 6), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 2), (273, 4, 1, strip), (277, 3, 1, 3), (278, 3, 1, 30)]
    entries += [(279, 4, 1, values.nbytes)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, 9) + directory + struct.pack("<I3H", 0, 16, 16, 16)
    return head + values.astype("<u2").tobytes()


@pytest.mark.parametrize("kind, channels", [("png", 3), ("png", 4), ("tif", 3)])
@pytest.mark.parametrize("most, white", [(4000, 4095), (60_000, 65_535)])
def test_colours_of_sixteen_bits_too(tmp_path, kind, channels, most, white):
    """Of which Pillow by itself keeps the upper 8 bits."""
    values = np.stack([ramp(most) / (k + 1) for k in range(channels)], axis=2).astype(np.uint16)
    file = tmp_path / f"a.{kind}"
    file.write_bytes(png16(values, 2 if channels == 3 else 6) if kind == "png" else tiff16(values))
    assert (seen(file) == values[..., :3].astype(int) * 256 // (white + 1)).all()
    assert read_picture(file, None, "x").white == white


@pytest.mark.parametrize("most, white", [(4000, 4095), (60_000, 65_535)])
def test_one_channel_of_sixteen_bits_with_alpha_too(tmp_path, most, white):
    """Which Pillow reads as RGBA."""
    grey = ramp(most).astype(np.uint16)
    alpha = np.full_like(grey, 65_535)
    (tmp_path / "a.png").write_bytes(png16(np.stack([grey, alpha], axis=2), 4))
    assert (seen(tmp_path / "a.png") == (grey.astype(int) * 256 // (white + 1))[..., None]).all()
    assert read_picture(tmp_path / "a.png", None, "x").white == white


def test_only_regular_files_are_opened(tmp_path):
    """A FIFO without a writer, or a device without an end, would be read for ever."""
    os.mkfifo(tmp_path / "a.png")
    for file in (tmp_path / "a.png", Path("/dev/zero")):
        with pytest.raises(DataError, match="cannot be decoded: is no regular file"):
            decode(file, None, "x")
        with pytest.raises(DataError, match="cannot be read: is no regular file"):
            CocoDetection(tmp_path, file)


def test_images_that_pillow_finds_too_large(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    Image.new("RGB", (30, 10)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"cannot be decoded: more than 200 pixels; cut it into"):
        decode(file, None, "a")


@pytest.mark.parametrize("workers", [0, 1])
def test_black_images_are_counted_where_they_are_read(tmp_path, workers):
    """Masks of 0 and 1; a crop of a picture may well be black."""
    masks = (3, 5)
    for k in range(1, 7):
        values = np.zeros((40, 50), np.uint16)
        values[0, 0] = 1 if k in masks else 60_000
        Image.fromarray(values).save(tmp_path / f"{k}.png")
    images = [{"id": k, "file_name": f"{k}.png", "width": 50, "height": 40} for k in range(1, 7)]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    categories = [{"id": 1, "name": "ship"}]
    data = CocoDetection(
        tmp_path, {"images": images, "annotations": [box], "categories": categories}
    )
    black: list[int] = []
    made = list(
        train_batches(
            data, batch_size=2, crop=8, seed=0, steps=6, workers=workers, on_black=black.append
        )
    )
    assert sorted(black) == [3, 3, 5, 5]
    assert not any("black" in target for _, targets in made for target in targets)
    assert data.black == (set() if workers else set(masks))
