"""Stored files read as docs/formats.md says, by json, struct, pyarrow and numpy: distindex reads nothing here."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from distindex.config import DenseConfig, FeaturesConfig, ImageConfig, TextConfig
from distindex.corpus.features import fit_features
from distindex.hashing import Hasher
from distindex.index.index import Index

ROWS = 500


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_arrow(path: Path) -> pa.Table:
    return pa.ipc.open_file(path.read_bytes()).read_all()


def splitmix64(x: int) -> int:
    mask = (1 << 64) - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def shard_of(code: bytes, shards: int) -> int:
    padded = code + bytes(-len(code) % 8)
    h = 0
    for start in range(0, len(padded), 8):
        h = splitmix64(h ^ int.from_bytes(padded[start : start + 8], "little"))
    return h % shards


def read_codes(path: Path, bits: int, padded_bits: int) -> list[bytes]:
    data = path.read_bytes()
    assert data[:4] == b"IBxF"
    width, size, count, trained, metric, stored = struct.unpack("<iiqBiQ", data[4:33])
    assert (width, size, trained, metric) == (padded_bits, padded_bits // 8, 1, 1)
    assert stored == count * size == len(data) - 33
    codes = [data[start : start + size] for start in range(33, len(data), size)]
    assert all(not any(code[bits // 8 :]) for code in codes), "padding is zero"
    return [code[: bits // 8] for code in codes]


def read_postings(path: Path) -> list[int]:
    table = read_arrow(path)
    assert table.column_names == ["first", "delta"]
    offsets = []
    for first, delta in zip(*(column.to_pylist() for column in table.columns), strict=True):
        assert len(delta) == 64
        offsets += [first + difference for difference in delta]
    notes = {name.decode(): int(value) for name, value in table.schema.metadata.items()}
    assert set(offsets[notes["distinct"] :]) == {notes["rows"]}
    return offsets[: notes["distinct"] + 1]


@pytest.mark.parametrize(("bits", "padded_bits"), [(16, 32), (64, 64), (136, 160), (520, 576)])
@pytest.mark.parametrize("text_ids", [False, True])
def test_an_index(tmp_path: Path, bits: int, padded_bits: int, text_ids: bool) -> None:
    random = np.random.default_rng(bits)
    distinct = random.integers(0, 256, (60, bits // 8), np.uint8)
    code_NC = distinct[random.integers(0, 60, ROWS)]
    numbers = random.permutation(ROWS).tolist()
    ids: Any = [f"é{number}" for number in numbers] if text_ids else numbers
    titles = [f"title of {item}" for item in ids]
    Index.create(str(tmp_path), code_NC, ids, pa.table({"title": titles}), shards=3).close()

    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["00000001.json"]
    version = json.loads((tmp_path / "versions" / "00000001.json").read_text())
    assert (version["format_version"], version["version"], version["kind"], version["parent"]) == (1, 1, "flat", None)
    assert (version["bits"], version["id_type"]) == (bits, "string" if text_ids else "int64")
    assert version["payload"] == [{"name": "title", "type": "string"}]
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {shard["name"] for shard in version["shards"]}
    found = []
    shards_of_version = set()
    for entry in version["shards"]:
        home = tmp_path / "shards" / entry["name"]
        assert sha256(home / "shard.json") == entry["sha256"]
        assert entry["sha256"].startswith(entry["name"])
        assert len(entry["name"]) == 32
        assert sum(path.stat().st_size for path in home.iterdir()) == entry["bytes"]
        shard = json.loads((home / "shard.json").read_text())
        assert (shard["bits"], shard["padded_bits"]) == (bits, padded_bits)
        assert {path.name for path in home.iterdir()} == {*shard["files"], "shard.json"}
        for name, about in shard["files"].items():
            assert (sha256(home / name), (home / name).stat().st_size) == (about["sha256"], about["bytes"])
        codes = read_codes(home / "codes.faiss", bits, padded_bits)
        offsets = read_postings(home / "postings.arrow")
        shard_ids = read_arrow(home / "ids.arrow").column("id").to_pylist()
        shard_titles = read_arrow(home / "payload.arrow").column("title").to_pylist()
        assert (len(codes), len(offsets), len(shard_ids)) == (entry["distinct"], entry["distinct"] + 1, entry["rows"])
        assert codes == sorted(set(codes))
        places = {shard_of(code, 3) for code in codes}
        assert len(places) == 1
        shards_of_version |= places
        for u, code in enumerate(codes):
            rows = range(offsets[u], offsets[u + 1])
            of_code = [shard_ids[row] for row in rows]
            assert of_code == sorted(of_code, key=lambda item: item.encode() if text_ids else item)
            found += [(shard_ids[row], code, shard_titles[row]) for row in rows]
    assert len(shards_of_version) == len(version["shards"])
    assert sorted(found) == sorted(zip(ids, (code.tobytes() for code in code_NC), titles, strict=True))


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, about in json.loads(data[8:start]).items():
        if name != "__metadata__":
            assert about["dtype"] == "F32"
            first, last = about["data_offsets"]
            flat = np.frombuffer(data[start + first : start + last], "<f4")
            tensors[name] = flat.reshape(about["shape"])
    return tensors


def codes_of(home: Path, x_NV: np.ndarray) -> np.ndarray:
    """The network and the packing, from the stored files alone."""
    about = json.loads((home / "hasher.json").read_text())
    tensors = read_safetensors(home / "weights.safetensors")
    layers = about["network"]["layers"]
    assert about["network"]["activation"] == "relu"
    out = x_NV.astype(np.float64)
    for depth, (inputs, outputs) in enumerate(itertools.pairwise(layers)):
        assert tensors[f"{depth}.weight"].shape == (inputs, outputs)
        out = (np.maximum(out, 0) if depth else out) @ tensors[f"{depth}.weight"] + tensors[f"{depth}.bias"]
    assert np.abs(out).min() > 1e-6, "a logit near 0 may round to the other side"
    code_NC = np.zeros((len(out), about["bits"] // 8), np.uint8)
    for bit in range(about["bits"]):
        code_NC[:, bit // 8] |= (out[:, bit] > 0).astype(np.uint8) << (bit % 8)
    return code_NC


def make_hasher(home: Path, column: pa.Array, config: FeaturesConfig, kind: Any) -> Hasher:
    features = fit_features(config, kind, [column])
    torch.manual_seed(0)
    widths = [features.width, 12, 24]
    tables = [(torch.randn(a, b), torch.randn(b)) for a, b in itertools.pairwise(widths)]
    hasher = Hasher("ssb-vae", 24, "column", features, tables, ("a", "b"))
    hasher.save(str(home))
    return hasher


@pytest.mark.parametrize("scale", ["standardize", "unit", "none"])
def test_a_hasher_of_vectors(tmp_path: Path, scale: Any) -> None:
    vector_NV = np.random.default_rng(0).normal(2, 3, (50, 7)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vector_NV.ravel()), 7)
    hasher = make_hasher(tmp_path, column, FeaturesConfig(dense=DenseConfig(scale)), "dense")
    x_NV = vector_NV.astype(np.float64)
    if scale == "standardize":
        state = read_arrow(tmp_path / "features.arrow")
        x_NV = (x_NV - state["mean"].to_numpy()) / state["deviation"].to_numpy()
    elif scale == "unit":
        x_NV /= np.linalg.norm(x_NV, axis=1, keepdims=True)
    assert (tmp_path / "features.arrow").exists() == (scale == "standardize")
    assert (codes_of(tmp_path, x_NV) == hasher.encode(column)).all()


@pytest.mark.parametrize("weighting", ["tf-idf", "log"])
def test_a_hasher_of_texts(tmp_path: Path, weighting: Any) -> None:
    texts = ["red green green", "blue", "green blue blue blue red", "", "nothing known"]
    column = pa.array(texts)
    config = FeaturesConfig(text=TextConfig(maximum_document_fraction=1.0, stop_words="none", weighting=weighting))
    hasher = make_hasher(tmp_path, column, config, "text")
    state = read_arrow(tmp_path / "features.arrow")
    terms = state["term"].to_pylist()
    assert terms == ["blue", "green", "known", "nothing", "red"]
    tf_NV = np.array([[text.split().count(term) for term in terms] for text in texts])
    x_NV = np.log1p(tf_NV)
    if weighting == "tf-idf":
        x_NV = np.where(tf_NV > 0, 1 + np.log(np.maximum(tf_NV, 1)), 0) * state["idf"].to_numpy()
        length_N1 = np.linalg.norm(x_NV, axis=1, keepdims=True)
        x_NV = 10 * np.divide(x_NV, length_N1, where=length_N1 > 0, out=np.zeros_like(x_NV))
    assert (codes_of(tmp_path, x_NV) == hasher.encode(column)).all()


def convolved(z_NHWC: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """relu of a 3 x 3 convolution of stride 2 over zeros at the edges, output by output."""
    padded = np.pad(z_NHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = ((size + 1) // 2 for size in z_NHWC.shape[1:3])
    out = np.empty((len(z_NHWC), height, width, len(weight)))
    for y in range(height):
        for x in range(width):
            place = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
            out[:, y, x] = np.einsum("nhwi,oihw->no", place, weight) + bias
    return np.maximum(out, 0)


@pytest.mark.parametrize("convolutions", [[5, 6], []])
def test_a_hasher_of_images(tmp_path: Path, convolutions: list[int]) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (40, 7, 10, 3), np.uint8)
    column = pa.array([each.tobytes() for each in stored], pa.binary(210))
    features = fit_features(FeaturesConfig(image=ImageConfig(7, 10, 3)), "image", [column])
    torch.manual_seed(0)
    shapes = [(b, a, 3, 3) for a, b in itertools.pairwise([3, *convolutions])]
    widths = [2 * 3 * 6 if convolutions else 210, 12, 24]
    tables = [(torch.randn(shape), torch.randn(shape[0])) for shape in shapes]
    tables += [(torch.randn(a, b), torch.randn(b)) for a, b in itertools.pairwise(widths)]
    hasher = Hasher("ssb-vae", 24, "column", features, tables)
    hasher.save(str(tmp_path))
    about, state = json.loads((tmp_path / "hasher.json").read_text()), read_arrow(tmp_path / "features.arrow")
    assert about["features"]["image"] == {"height": 7, "width": 10, "channels": 3, "raw_shape": None}
    assert about["network"].get("convolutions", []) == convolutions
    z = (stored / 255 - state["mean"].to_numpy()) / state["deviation"].to_numpy()
    tensors = read_safetensors(tmp_path / "weights.safetensors")
    for depth in range(len(convolutions)):
        z = convolved(z, tensors[f"convolution.{depth}.weight"], tensors[f"convolution.{depth}.bias"])
    assert (codes_of(tmp_path, z.reshape(40, -1)) == hasher.encode(column)).all()


def test_the_fingerprint_of_a_hasher(tmp_path: Path) -> None:
    column = pa.array(["one two three", "three four"])
    config = FeaturesConfig(text=TextConfig(maximum_document_fraction=1.0, stop_words="none"))
    hasher = make_hasher(tmp_path, column, config, "text")
    about = json.loads((tmp_path / "hasher.json").read_text())
    assert about["files"] == {name: sha256(tmp_path / name) for name in ("weights.safetensors", "features.arrow")}
    names = ("fingerprint", "created", "distindex", "metadata")
    identity = {name: value for name, value in about.items() if name not in names}
    # A list, since a fingerprint may be of several values.
    text = json.dumps([identity], sort_keys=True)
    assert about["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()[:16] == hasher.fingerprint
