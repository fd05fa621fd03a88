"""Images to uint8 pixels of one size: PNG, JPEG and WebP files in a column of bytes, or raw pixels."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps, UnidentifiedImageError

from distindex.config import ImageConfig
from distindex.corpus.rows import BadRows, Column, chunks, is_bytes, is_list
from distindex.errors import InputError, reason_of

Pixels: TypeAlias = "npt.NDArray[np.uint8]"

# Decoders of other formats are older and less tested; images may come from strangers.
FORMATS = ("PNG", "JPEG", "WEBP")

_PIECE_ROWS = 256


def decode(column: Column, config: ImageConfig) -> tuple[Pixels, BadRows]:
    """The pixels `x_NV` of a column's images, V = height * width * channels, row by row, channels side by side.

    Files are turned upright, laid on white where they are transparent, and stretched to the size asked for.

    Returns:
        The pixels, zeros for a bad row, and the bad rows, ascending, each with a reason that completes
        `column "x" ...`.

    Raises:
        InputError: the column's type holds no images, or raw ones of another shape.
    """
    check_type(column.type, config)
    x_NV = np.zeros((len(column), config.height * config.width * config.channels), np.uint8)
    bad: BadRows = []
    read = _read_files if is_bytes(column.type) else _read_raw
    for first, chunk in chunks(column):
        if not len(chunk):
            continue  # It may have no buffer at all.
        bad += [(first + row, reason) for row, reason in read(chunk, config, x_NV[first : first + len(chunk)])]
    return x_NV, bad


def check_type(kind: pa.DataType, config: ImageConfig, where: str = "feature column") -> None:
    """Refuse a column type that cannot hold such images.

    Raises:
        InputError: it holds no bytes, or raw images of another shape.
    """
    if is_bytes(kind):
        return
    if pa.types.is_fixed_size_binary(kind):
        size = kind.byte_width
    elif is_list(kind) and kind.value_type == pa.uint8():
        size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    else:
        raise InputError(f"{where}: type {kind} does not hold images (files as binary, or raw uint8 pixels)")
    shape = _raw_shape(config)
    if size is not None and size != np.prod(shape):
        raise InputError(
            f"{where}: {size} bytes a row are no image of {' x '.join(map(str, shape))}; "
            "set features.image.raw_shape to height, width and channels"
        )


def _raw_shape(config: ImageConfig) -> tuple[int, ...]:
    return tuple(config.raw_shape or (config.height, config.width, config.channels))


def _read_raw(chunk: pa.Array, config: ImageConfig, out_NV: Pixels) -> BadRows:
    shape = _raw_shape(config)
    size = int(np.prod(shape))
    bad: BadRows = []
    if pa.types.is_fixed_size_binary(chunk.type):
        null_N = chunk.is_null().to_numpy(zero_copy_only=False)
        bad = [(int(row), "is null") for row in np.flatnonzero(null_N)]
        good = np.flatnonzero(~null_N)
        raw_NV = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * size, chunk.offset * size)
        raw_NV = raw_NV.reshape(-1, size)[good]
    else:
        length_N = pc.fill_null(pc.list_value_length(chunk), -1).to_numpy(zero_copy_only=False)
        right_N = length_N == size
        bad = [
            (int(row), "is null" if length_N[row] < 0 else f"has {length_N[row]} bytes, expected {size}")
            for row in np.flatnonzero(~right_N)
        ]
        flat = pc.list_flatten(chunk.filter(pa.array(right_N)))
        null_NV = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, size)
        raw_NV = pc.fill_null(flat, 0).to_numpy(zero_copy_only=False).reshape(-1, size)
        good = np.flatnonzero(right_N)
        bad = sorted([*bad, *((int(row), "holds null") for row in good[null_NV.any(axis=1)])])
        raw_NV, good = raw_NV[~null_NV.any(axis=1)], good[~null_NV.any(axis=1)]
    if shape == (config.height, config.width, config.channels):
        out_NV[good] = raw_NV
        return bad
    raw_NHWC = raw_NV.reshape(-1, *shape)
    for row, raw_HWC in zip(good, raw_NHWC, strict=True):
        image = Image.fromarray(raw_HWC[:, :, 0] if shape[2] == 1 else raw_HWC)
        out_NV[row] = _fit(image, config)
    return bad


def _read_files(chunk: pa.Array, config: ImageConfig, out_NV: Pixels) -> BadRows:
    def read(start: int) -> BadRows:
        bad: BadRows = []
        for row in range(start, min(start + _PIECE_ROWS, len(chunk))):
            data = chunk[row].as_buffer()
            reason = "is null" if data is None else _read_file(data, config, out_NV[row])
            if reason:
                bad.append((row, reason))
        return bad

    with ThreadPoolExecutor(_threads()) as pool:
        return [each for bad in pool.map(read, range(0, len(chunk), _PIECE_ROWS)) for each in bad]


def _threads() -> int:
    # Ray sets it to the CPUs of a task or actor; Pillow leaves the interpreter to others while it decodes.
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else min(8, os.cpu_count() or 1)


def _read_file(data: pa.Buffer, config: ImageConfig, out_V: Pixels) -> str | None:
    """Write the pixels; or say what is wrong with the file."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            out_V[:] = _fit(_plain(image), config)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return f"is no image ({', '.join(FORMATS)})"
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to.
        reason = reason_of(error)
        return f"is an image that cannot be decoded ({reason})"
    return None


def _plain(image: Image.Image) -> Image.Image:
    """Upright, without transparency, 8 bits a channel."""
    upright: Any = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    if upright.mode.startswith("I;16"):
        # Pillow would clip the values at 255.
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright


def _fit(image: Image.Image, config: ImageConfig) -> Pixels:
    image = image.convert("L" if config.channels == 1 else "RGB")
    size: Sequence[int] = (config.width, config.height)
    if image.size != size:
        image = image.resize((config.width, config.height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(-1)


class PixelCounts:
    """How often each of the 256 values occurs in each channel; counts lose nothing, however many pixels there are.

    Attributes:
        count_CX: int64, one row per channel.
    """

    def __init__(self, channels: int) -> None:
        self.count_CX = np.zeros((channels, 256), np.int64)

    def add(self, x_NV: Pixels) -> None:
        """Count the pixels of some images."""
        channels = len(self.count_CX)
        for channel in range(channels):
            self.count_CX[channel] += np.bincount(x_NV[:, channel::channels].ravel(), minlength=256)

    def merge(self, other: PixelCounts) -> None:
        """Count the pixels that another has counted too."""
        self.count_CX += other.count_CX

    def mean_and_deviation(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """`mean_C` and `deviation_C` of pixels in [0, 1]; the deviation is 1 for a constant channel.

        Raises:
            InputError: no image was counted.
        """
        if not self.count_CX.any():
            raise InputError("features: there is no row to fit them to")
        share_CX = self.count_CX / self.count_CX.sum(axis=1, keepdims=True)
        value_X = np.arange(256) / 255
        mean_C = share_CX @ value_X
        deviation_C = np.sqrt((share_CX * (value_X - mean_C[:, None]) ** 2).sum(axis=1)).astype(np.float32)
        deviation_C[(self.count_CX > 0).sum(axis=1) == 1] = 1
        return mean_C.astype(np.float32), deviation_C
