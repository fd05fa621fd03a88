"""The Hasher bundle: saved and loaded without change, refused when damaged; the networks inside it; the classics."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.codes import unpack
from distindex.config import DenseConfig, FeaturesConfig, MethodConfig
from distindex.corpus.features import Features, fit_features
from distindex.errors import DamagedError, FormatError, InputError, NotFoundError
from distindex.hashing import Hasher
from distindex.hashing.batch import rows_of
from distindex.hashing.classic import fit_itq, fit_lsh, fit_pca_sign, fit_ssh
from distindex.hashing.networks import Encoder

WIDTH, BITS, ROWS = 20, 16, 300
WORDS = [f"word{letter}{other}" for letter in "abcdefgh" for other in "abcdefgh"]


def vectors(seed: int = 0) -> pa.Array:
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((WIDTH, WIDTH)) * np.linspace(3, 0.2, WIDTH)
    return pa.array(list((random.standard_normal((ROWS, WIDTH)) @ mixing + 2).astype(np.float32)))


def texts(seed: int = 0) -> pa.Array:
    random = np.random.default_rng(seed)
    return pa.array([" ".join(random.choice(WORDS, random.integers(1, 12))) for _ in range(ROWS)])


def fitted(column: pa.Array, kind: str) -> Features:
    config = FeaturesConfig(dense=DenseConfig("none"))
    return fit_features(config, kind, [column])  # type: ignore[arg-type]


def network_hasher(column: pa.Array, kind: str) -> tuple[Encoder, Hasher]:
    """An encoder with trained batch statistics, and the hasher exported from it."""
    features = fitted(column, kind)
    torch.manual_seed(0)
    encoder = Encoder(features.width, [30, 12], BITS, dropout=0.2)
    rows = rows_of(features.transform(column))
    for step in range(20):
        encoder.hidden(rows, step, torch.arange(len(column)))
    for norm in encoder.norms:
        torch.nn.init.normal_(norm.weight)  # type: ignore[arg-type]
        torch.nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    encoder.eval()
    return encoder, Hasher("ssb-vae", BITS, "feature", features, encoder.export(), ("a", "b"), {"note": 1})


@pytest.mark.parametrize("kind", ["dense", "text"])
def test_the_exported_network_gives_the_trained_ones_logits(kind: str) -> None:
    column = vectors() if kind == "dense" else texts()
    encoder, hasher = network_hasher(column, kind)
    x_NV = hasher.features.transform(column)
    with torch.no_grad():
        hidden = encoder.hidden(rows_of(x_NV), 0, torch.arange(ROWS))
        expected = encoder.logits(hidden).numpy()
    np.testing.assert_allclose(hasher.logits(x_NV), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(hasher.logits(x_NV, batch_rows=17).shape, (ROWS, BITS))


@pytest.mark.parametrize("kind", ["dense", "text"])
def test_saved_and_loaded_it_encodes_the_same(kind: str, tmp_path: Path) -> None:
    column = vectors() if kind == "dense" else texts()
    _, hasher = network_hasher(column, kind)
    hasher.save(str(tmp_path / "hasher"))
    loaded = Hasher.load(str(tmp_path / "hasher"))
    assert loaded.fingerprint == hasher.fingerprint
    assert (loaded.method, loaded.bits, loaded.label_names, loaded.metadata) == (
        "ssb-vae",
        BITS,
        ("a", "b"),
        {"note": 1},
    )
    other = vectors(5) if kind == "dense" else texts(5)
    codes = hasher.encode(other)
    assert codes.shape == (ROWS, BITS // 8)
    np.testing.assert_array_equal(loaded.encode(other), codes)
    np.testing.assert_array_equal(loaded.encode(pa.table({"feature": other, "id": range(ROWS)})), codes)
    logit_NK = hasher.logits(hasher.features.transform(other))
    np.testing.assert_array_equal(unpack(codes), logit_NK > 0)
    for rows in (other, pa.chunked_array([other]), pa.table({"feature": other, "id": range(ROWS)})):
        np.testing.assert_array_equal(loaded.logits_of(rows), logit_NK)


def test_the_fingerprint_changes_with_the_weights_and_not_with_the_notes(tmp_path: Path) -> None:
    _, hasher = network_hasher(vectors(), "dense")
    hasher.save(str(tmp_path / "one"))
    hasher.metadata = {"note": 2}
    first = hasher.fingerprint
    hasher.save(str(tmp_path / "two"))
    assert hasher.fingerprint == first
    table, bias = hasher.tables[-1]
    hasher.tables = [*hasher.tables[:-1], (table, bias + 1)]
    hasher.save(str(tmp_path / "three"))
    assert hasher.fingerprint != first


@pytest.mark.parametrize("name", ["weights.safetensors", "features.arrow"])
def test_a_damaged_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    network_hasher(texts(), "text")[1].save(str(tmp_path))
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedError, match=name):
        Hasher.load(str(tmp_path))


def test_missing_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no hasher here"):
        Hasher.load(str(tmp_path / "nothing"))
    network_hasher(vectors(), "dense")[1].save(str(tmp_path))
    description = json.loads((tmp_path / "hasher.json").read_text())
    (tmp_path / "hasher.json").write_text(json.dumps({**description, "format_version": 7}))
    with pytest.raises(FormatError, match="format 7"):
        Hasher.load(str(tmp_path))
    (tmp_path / "hasher.json").write_text(json.dumps({**description, "bits": 32}))
    with pytest.raises(DamagedError, match=r"hasher\.json"):
        Hasher.load(str(tmp_path))


def test_bad_rows_and_missing_columns_are_named() -> None:
    _, hasher = network_hasher(vectors(), "dense")
    rows = vectors().to_pylist()
    rows[3][1] = float("nan")
    with pytest.raises(InputError, match="row 3"):
        hasher.encode(pa.array(rows, pa.list_(pa.float32())))
    with pytest.raises(InputError, match="row 0"):
        hasher.encode(pa.array([[1.0] * (WIDTH + 1)]))
    for read in (hasher.encode, hasher.logits_of):
        with pytest.raises(InputError, match="no column"):
            read(pa.table({"x": vectors()}))


def test_encoding_needs_neither_ray_nor_faiss(tmp_path: Path) -> None:
    network_hasher(texts(), "text")[1].save(str(tmp_path))
    script = (
        "import sys, pyarrow as pa; from distindex.hashing import Hasher\n"
        f"code = Hasher.load({str(tmp_path)!r}).encode(pa.array(['wordaa wordbb']))\n"
        "assert code.shape == (1, 2); assert not {'ray', 'faiss'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_lsh_is_the_sign_of_random_projections_of_centred_data() -> None:
    features = fitted(vectors(), "dense")
    x_NV = np.asarray(features.transform(vectors()))
    direction = np.random.default_rng(4).standard_normal((WIDTH, BITS))
    expected = (x_NV - x_NV.mean(0)) @ direction > 0
    found = unpack(fit_lsh(features, x_NV, "feature", BITS, seed=4).encode(vectors()))
    assert (found == expected).mean() > 0.999


def test_pca_sign_is_the_sign_of_the_principal_components() -> None:
    features = fitted(vectors(), "dense")
    x_NV = np.asarray(features.transform(vectors()), np.float64)
    centred = x_NV - x_NV.mean(0)
    _, _, right = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ right[:BITS].T > 0
    found = unpack(fit_pca_sign(features, x_NV.astype(np.float32), "feature", BITS).encode(vectors())).astype(bool)
    for bit in range(BITS):
        # The sign of a component is arbitrary.
        agreement = (found[:, bit] == expected[:, bit]).mean()
        assert max(agreement, 1 - agreement) > 0.995


def test_itq_lies_nearer_to_its_signs_than_pca_and_spans_the_same_space() -> None:
    features = fitted(vectors(), "dense")
    x_NV = np.asarray(features.transform(vectors()))
    pca, itq = (fit(features, x_NV, "feature", BITS) for fit in (fit_pca_sign, fit_itq))

    def error(hasher: Hasher) -> float:
        logit = hasher.logits(x_NV)
        return float(((np.sign(logit) - logit) ** 2).sum())

    assert error(itq) < error(pca)
    np.testing.assert_allclose((itq.logits(x_NV) ** 2).sum(1), (pca.logits(x_NV) ** 2).sum(1), rtol=1e-3)


@pytest.mark.parametrize("kind", ["dense", "text"])
def test_ssh_maximises_the_adjusted_covariance(kind: str) -> None:
    column = vectors() if kind == "dense" else texts()
    features = fitted(column, kind)
    x_NV = features.transform(column)
    label_NC = np.eye(3)[np.random.default_rng(0).integers(0, 3, ROWS)]
    label_NC[:, 1] = np.maximum(label_NC[:, 1], np.arange(ROWS) % 7 == 0)
    label_NC[60:] = 0
    hasher = fit_ssh(features, x_NV, label_NC, "feature", BITS, unlabeled_weight=0.3, orthogonality=0.2)
    x = np.asarray(x_NV.toarray() if kind == "text" else x_NV, np.float64)  # type: ignore[union-attr]
    x -= x.mean(0)
    similar = {(i, j): bool((label_NC[i] * label_NC[j]).any()) for i in range(60) for j in range(60)}
    count = {True: sum(similar.values()), False: len(similar) - sum(similar.values())}
    matrix = 0.3 * x.T @ x / ROWS
    for (i, j), s in similar.items():
        matrix += (1 if s else -1) / (2 * count[s]) * np.outer(x[i], x[j])
    assert_ssh_solves(matrix, hasher.tables[0][0].double().numpy(), 0.2)
    np.testing.assert_allclose(hasher.logits(x_NV), x @ hasher.tables[0][0].double().numpy(), atol=1e-4)
    with pytest.raises(InputError, match="no row is labeled"):
        fit_ssh(features, x_NV, np.zeros((ROWS, 3)), "feature", BITS)


def assert_ssh_solves(matrix: np.ndarray, direction: np.ndarray, orthogonality: float) -> None:
    """The gradient of the objective vanishes, and no other K eigenvectors give it a larger value."""
    value = np.linalg.eigvalsh(matrix)
    rho, bits = orthogonality * value[-1], direction.shape[1]
    product = direction.T @ direction - np.eye(bits)
    gradient = matrix @ direction - rho * direction @ product
    np.testing.assert_allclose(gradient, 0, atol=1e-4 * value[-1] * np.abs(direction).max())

    def objective(chosen: slice) -> float:
        # tr W'MW - rho/2 ||W'W - I||^2 at W = U (I + L / rho)^(1/2)
        found = value[chosen]
        return float((found * (1 + found / rho)).sum() - rho / 2 * ((found / rho) ** 2).sum())

    reached = np.trace(direction.T @ matrix @ direction) - rho / 2 * (product**2).sum()
    assert reached == pytest.approx(objective(slice(-bits, None)), rel=1e-4)


def test_ssh_of_many_dimensions_iterates_to_the_same_directions() -> None:
    random = np.random.default_rng(3)
    scales = np.r_[np.linspace(5, 2, 8), np.full(1100, 0.1)]
    column = pa.array(list((random.standard_normal((400, 1108)) * scales).astype(np.float32)))
    features = fitted(column, "dense")
    x_NV = np.asarray(features.transform(column))
    class_N = random.integers(0, 2, 400)
    hasher = fit_ssh(features, x_NV, np.eye(2)[class_N], "feature", 8)
    x = x_NV.astype(np.float64) - x_NV.astype(np.float64).mean(0)
    same = class_N[:, None] == class_N[None, :]
    matrix = x.T @ (np.where(same, 0.5 / same.sum(), -0.5 / (~same).sum()) @ x) + 0.001 * x.T @ x / 400
    assert_ssh_solves(matrix, hasher.tables[0][0].double().numpy(), 0.01)


def test_the_classics_work_on_sparse_texts_and_refuse_too_many_bits(tmp_path: Path) -> None:
    features = fitted(texts(), "text")
    x_NV = features.transform(texts())
    for fit in (fit_lsh, fit_pca_sign, fit_itq):
        hasher = fit(features, x_NV, "feature", BITS)
        hasher.save(str(tmp_path / hasher.method))
        codes = Hasher.load(str(tmp_path / hasher.method)).encode(texts())
        assert len(np.unique(codes, axis=0)) > ROWS / 2
    with pytest.raises(InputError, match="512 directions asked of 300 rows"):
        fit_pca_sign(features, x_NV, "feature", 512)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70))
def test_logits_of_a_row_do_not_depend_on_the_rows_beside_it(rows: int, batch_rows: int) -> None:
    _, hasher = network_hasher(texts(), "text")
    x_NV = hasher.features.transform(texts(3))[:rows]  # type: ignore[index]
    np.testing.assert_allclose(hasher.logits(x_NV, batch_rows), hasher.logits(x_NV), rtol=1e-5, atol=1e-5)


def test_settings_outside_their_range_are_refused() -> None:
    for wrong in (
        {"dropout": 1.0},
        {"input_dropout": -0.1},
        {"temperature": 0.0},
        {"pair_weight": -1.0},
        {"hidden": [0]},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            MethodConfig(**wrong)  # type: ignore[arg-type]
