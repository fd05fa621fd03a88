"""Images against Pillow and numpy: what is read from files and raw pixels, and what is refused."""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distindex.config import FeaturesConfig, ImageConfig
from distindex.corpus import images
from distindex.corpus.features import DenseFeatures, Features, ImageFeatures, fit_features
from distindex.errors import DamagedError, FormatError, InputError
from distindex.storage import Storage

SMALL = ImageConfig(height=4, width=5, channels=3)


def pixels(rows: int, height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, height, width, channels), np.uint8)


def file_of(pixels_HWC: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC.squeeze()).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_files_give_their_pixels(kind: pa.DataType, channels: Any) -> None:
    stored = pixels(600, 4, 5, channels)
    column = pa.chunked_array([[file_of(each) for each in part] for part in np.array_split(stored, 3)], kind)
    config = ImageConfig(4, 5, channels)
    features = fit_features(FeaturesConfig(image=config), "image", [column.slice(0, 300), column.slice(300)])
    x_NV = features.transform(column)
    np.testing.assert_array_equal(x_NV, stored.reshape(600, -1))
    assert x_NV.dtype == np.uint8
    np.testing.assert_array_equal(features.target(x_NV), x_NV)
    unit = stored.astype(np.float64) / 255
    expected = (unit - unit.mean((0, 1, 2))) / unit.std((0, 1, 2))
    np.testing.assert_allclose(np.asarray(features.network_input(x_NV)), expected.reshape(600, -1), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 3]),
    st.sampled_from(["fixed binary", "fixed list", "list"]),
    st.integers(0, 2),
)
def test_raw_pixels_come_as_they_are(
    rows: int, height: int, width: int, channels: Any, kind: str, first: int
) -> None:
    stored = pixels(rows + first, height, width, channels, seed=rows).reshape(rows + first, -1)
    size = height * width * channels
    types = {"fixed binary": pa.binary(size), "fixed list": pa.list_(pa.uint8(), size), "list": pa.list_(pa.uint8())}
    values = [row.tobytes() if kind == "fixed binary" else row.tolist() for row in stored]
    column = pa.array([*values, None], types[kind]).slice(first)
    features = ImageFeatures(ImageConfig(height, width, channels))
    assert features.bad_rows(column) == [(rows, "is null")]
    np.testing.assert_array_equal(features.transform(column.slice(0, rows)), stored[first:])


@pytest.mark.parametrize("shape", [(8, 10, 3), (3, 2, 1), (4, 5, 1)])
def test_other_sizes_and_colours_are_pillows(shape: tuple[int, int, int]) -> None:
    stored = pixels(20, *shape)
    expected = []
    for each in stored:
        image = Image.fromarray(each.squeeze()).convert("RGB")
        expected.append(np.asarray(image.resize((5, 4), Image.Resampling.BILINEAR)).ravel())
    files = pa.array([file_of(each) for each in stored])
    np.testing.assert_array_equal(ImageFeatures(SMALL).transform(files), expected)
    raw = pa.array([each.tobytes() for each in stored], pa.binary(int(np.prod(shape))))
    config = ImageConfig(4, 5, 3, raw_shape=list(shape))
    np.testing.assert_array_equal(ImageFeatures(config).transform(raw), expected)


def test_photographs_are_turned_upright_and_transparency_is_white() -> None:
    stored = pixels(1, 5, 4, 3)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees clockwise.
    clear = np.concatenate([stored, np.zeros((5, 4, 1), np.uint8)], axis=2)
    deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    column = pa.array([file_of(stored, exif=exif), file_of(clear), file_of(deep)])
    x_NHWC = ImageFeatures(SMALL).transform(column).reshape(3, 4, 5, 3)
    np.testing.assert_array_equal(x_NHWC[0], np.rot90(stored, -1))
    assert (x_NHWC[1] == 255).all()
    np.testing.assert_array_equal(x_NHWC[2, :, :, 0], deep // 256)


def test_bad_rows_are_named_with_their_reason() -> None:
    good = file_of(pixels(1, 40, 50, 3)[0], "JPEG")
    bitmap = file_of(pixels(1, 4, 5, 3)[0], "BMP")
    column = pa.array([good, None, b"", b"no image", good[: len(good) // 2], bitmap, good])
    features = ImageFeatures(SMALL)
    bad = features.bad_rows(column)
    assert [row for row, _ in bad] == [1, 2, 3, 4, 5]
    assert [reason for _, reason in bad][:3] == ["is null", *["is no image (PNG, JPEG, WEBP)"] * 2]
    assert bad[3][1].startswith("is an image that cannot be decoded (")
    assert "truncated" in bad[3][1]
    with pytest.raises(InputError, match="row 1: the feature column is null"):
        features.transform(column)
    with pytest.raises(InputError, match="row 0"):
        fit_features(FeaturesConfig(image=SMALL), "image", [pa.array([b"nothing"])])
    lists = pa.array([[1] * 60, [1] * 59, None, [*[1] * 59, None]], pa.list_(pa.uint8()))
    assert features.bad_rows(lists) == [(1, "has 59 bytes, expected 60"), (2, "is null"), (3, "holds null")]


def test_columns_that_hold_no_such_images_are_refused() -> None:
    features = ImageFeatures(SMALL)
    with pytest.raises(InputError, match=r"61 bytes a row are no image of 4 x 5 x 3; set features\.image\.raw_shape"):
        features.bad_rows(pa.array([b"x" * 61], pa.binary(61)))
    with pytest.raises(InputError, match="type list<item: float> does not hold images"):
        features.bad_rows(pa.array([[0.5]], pa.list_(pa.float32())))
    with pytest.raises(InputError, match="no row to fit"):
        fit_features(FeaturesConfig(image=SMALL), "image", [])
    with pytest.raises(InputError, match="does not hold dense features"):
        DenseFeatures(3, "none").bad_rows(pa.array([b"x"]))
    for wrong in ({"height": 0}, {"width": -1}, {"raw_shape": [4, 5]}, {"raw_shape": [4, 5, 2]}):
        with pytest.raises(InputError, match=r"image\."):
            ImageConfig(**wrong)


def test_saved_and_loaded_they_are_the_same(tmp_path: Path) -> None:
    column = pa.array([file_of(each) for each in pixels(30, 6, 6, 3)])
    features = fit_features(FeaturesConfig(image=SMALL), "image", [column])
    storage = Storage(str(tmp_path))
    description = features.save(storage)
    loaded = Features.load(storage, description)
    for other in (loaded, pickle.loads(pickle.dumps(features))):
        x_NV = other.transform(column)
        np.testing.assert_array_equal(x_NV, features.transform(column))
        np.testing.assert_array_equal(other.network_input(x_NV), features.network_input(x_NV))
    with pytest.raises(FormatError, match="depth"):
        Features.load(storage, {**description, "image": {**description["image"], "depth": 3}})
    with pytest.raises(DamagedError, match=r"features\.arrow"):
        Features.load(storage, {**description, "image": {**description["image"], "channels": 1}})


def test_a_column_without_rows_gives_none() -> None:
    features = ImageFeatures(SMALL)
    for kind in (pa.binary(60), pa.binary(), pa.list_(pa.uint8(), 60)):
        assert features.transform(pa.chunked_array([pa.array([], kind)])).shape == (0, 60)


def test_a_constant_channel_is_not_amplified() -> None:
    column = pa.array([np.full(12, 77, np.uint8).tobytes()] * 5, pa.binary(12))
    features = fit_features(FeaturesConfig(image=ImageConfig(2, 2, 3)), "image", [column])
    np.testing.assert_allclose(np.asarray(features.network_input(features.transform(column))), 0, atol=1e-6)


def test_a_column_is_decoded_once_and_not_kept_in_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    read = images._read_file
    monkeypatch.setattr(images, "_read_file", lambda *given: decoded.append(1) or read(*given))
    column = pa.chunked_array([[file_of(each) for each in pixels(10, 4, 5, 3)]])
    features = fit_features(FeaturesConfig(image=SMALL), "image", [column])
    assert not features.bad_rows(column)
    features.transform(column)
    assert len(decoded) == 10
    assert len(pickle.dumps(features)) < 1000
    features.transform(column.slice(5))
    assert len(decoded) == 15
