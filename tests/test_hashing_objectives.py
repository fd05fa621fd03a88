"""Loss terms against formulas written out in numpy, row by row and pair by pair."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.hashing import noise, objectives, pairs
from distindex.hashing.batch import AnsweredPairs, Batch, SparseRows
from distindex.hashing.networks import InputLayer
from distindex.hashing.ssbvae import reference_weights


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float64))


def _sparse(array: np.ndarray) -> SparseRows:
    rows = SparseRows.of(scipy.sparse.csr_matrix(array))
    return dataclasses.replace(rows, value_M=torch.from_numpy(array[array != 0]))


def test_multinomial_reconstruction_is_the_cross_entropy_of_word_frequencies() -> None:
    code_BK, weight_VK, bias_V = _random(0, 5, 3), _random(4, 11, 3), _random(5, 11)
    logit_BV = code_BK @ weight_VK.T + bias_V
    target_BV = np.random.default_rng(1).random((5, 11)) * (np.random.default_rng(2).random((5, 11)) < 0.4)
    target_BV[3] = 0
    target_BV[:3] /= target_BV[:3].sum(1, keepdims=True)
    expected = np.zeros(5)
    for i in range(5):
        probability = np.exp(logit_BV[i]) / np.exp(logit_BV[i]).sum()
        for w in range(11):
            expected[i] -= target_BV[i, w] * np.log(probability[w])
    found = objectives.multinomial_reconstruction(
        _tensor(code_BK), _tensor(weight_VK), _tensor(bias_V), _sparse(target_BV)
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    assert found[3] == 0


def test_gaussian_reconstruction_is_a_likelihood_of_variance_a_sixteenth_of_the_width() -> None:
    mean_BV, target_BV = _random(7, 4, 12), _random(8, 4, 12)
    expected = ((target_BV - mean_BV) ** 2).sum(1) / (2 * 12 / 16)
    found = objectives.gaussian_reconstruction(_tensor(mean_BV), _tensor(target_BV))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_bernoulli_reconstruction_is_the_divergence_of_each_pixel() -> None:
    logit_BV, x_BV = 3 * _random(7, 4, 12), np.random.default_rng(8).random((4, 12))
    x_BV[:, 0], x_BV[:, 1] = 0, 1
    p_BV = 1 / (1 + np.exp(-logit_BV))
    inner_BV = x_BV.clip(1e-300, 1 - 1e-16)
    expected = x_BV * np.log(inner_BV / p_BV) + (1 - x_BV) * np.log((1 - inner_BV) / (1 - p_BV))
    found = objectives.bernoulli_reconstruction(_tensor(logit_BV), _tensor(x_BV))
    np.testing.assert_allclose(found.numpy(), 32 * expected.mean(1), rtol=1e-9)


def test_bernoulli_kl_matches_the_sum_over_both_outcomes() -> None:
    logit_BK = 4 * _random(3, 6, 16)
    q = 1 / (1 + np.exp(-logit_BK))
    expected = sum(q[:, j] * np.log(q[:, j] / 0.5) + (1 - q[:, j]) * np.log((1 - q[:, j]) / 0.5) for j in range(16))
    np.testing.assert_allclose(objectives.bernoulli_kl(_tensor(logit_BK)).numpy(), expected, rtol=1e-9)


def test_kl_stays_finite_for_saturated_bits() -> None:
    value = objectives.bernoulli_kl(torch.tensor([[1e4, -1e4] * 4]))
    assert float(value) == pytest.approx(8 * np.log(2), rel=1e-6)


def test_class_cross_entropy_ignores_unlabeled_rows() -> None:
    logit_BC = _random(4, 4, 3)
    label_BC = np.eye(3)[[0, 2, 1, 1]]
    label_BC[2] = 0
    probability = np.exp(logit_BC) / np.exp(logit_BC).sum(1, keepdims=True)
    expected = [-np.log(probability[0, 0]), -np.log(probability[1, 2]), 0, -np.log(probability[3, 1])]
    found = objectives.class_cross_entropy(_tensor(logit_BC), _tensor(label_BC), multi=False)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)

    label_BC[0] = [1, 0, 1]
    sigmoid = 1 / (1 + np.exp(-logit_BC))
    expected = -(label_BC * np.log(sigmoid) + (1 - label_BC) * np.log(1 - sigmoid)).sum(1)
    expected[2] = 0
    found = objectives.class_cross_entropy(_tensor(logit_BC), _tensor(label_BC), multi=True)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_pair_contrast_is_the_mean_over_all_ordered_pairs() -> None:
    code_BK, p_BC = np.random.default_rng(5).random((7, 24)), np.random.default_rng(6).random((7, 4))
    p_BC /= p_BC.sum(1, keepdims=True)
    total = 0.0
    for i in range(7):
        for j in range(7):
            distance = ((code_BK[i] - code_BK[j]) ** 2).sum()
            similar = p_BC[i] @ p_BC[j]
            total += similar * distance + (1 - similar) * max(0.0, 24 / 3 - distance)
    code, p = _tensor(code_BK), _tensor(p_BC)
    found = pairs.mean_over_pairs(pairs.contrast(code, code, p @ p.T, 1 / 3), 49)
    assert float(found) == pytest.approx(total / 49 / 24, rel=1e-9)


@pytest.mark.parametrize("name", ["pair", "kl", "multinomial", "multinomial weights", "bernoulli", "class"])
def test_gradients_match_finite_differences(name: str) -> None:
    label_BC, weight_VK = _tensor(np.eye(4)[[0, 1, 1, 3]]), _tensor(_random(2, 6, 6))
    target_BV = _sparse(np.random.default_rng(3).random((4, 6)) * (np.eye(4, 6) + np.eye(4, 6, 2)))
    functions = {
        "pair": lambda x: pairs.contrast(
            torch.sigmoid(x), torch.sigmoid(x), torch.softmax(x[:, :4], 1) @ torch.softmax(x[:, :4], 1).T, 1 / 3
        ).mean(),
        "kl": lambda x: objectives.bernoulli_kl(x).sum(),
        "multinomial": lambda x: objectives.multinomial_reconstruction(x, weight_VK, x.sum(0), target_BV).sum(),
        "multinomial weights": lambda x: objectives.multinomial_reconstruction(
            weight_VK[:4, :4], x.T, weight_VK[:, 0], target_BV
        ).sum(),
        "bernoulli": lambda x: objectives.bernoulli_reconstruction(x, torch.sigmoid(weight_VK[:4])).sum(),
        "class": lambda x: objectives.class_cross_entropy(x[:, :4], label_BC, multi=True).sum(),
    }
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(functions[name], (x,))


def test_reference_weights_reproduce_the_reference_sums() -> None:
    class_weight, pair_weight = reference_weights(alpha=1e-4, gamma=1e4, batch_size=100)
    assert class_weight == pytest.approx(1.0)
    assert pair_weight == pytest.approx(1e-4 * 100**2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**62), st.integers(1, 50), st.integers(1, 40), st.integers(0, 10**9))
def test_noise_of_a_row_does_not_depend_on_its_neighbours(key: int, rows: int, columns: int, first: int) -> None:
    row_B = torch.arange(first, first + rows)
    together = noise.uniform(key, row_B, columns)
    assert together.shape == (rows, columns)
    assert bool((together > 0).all())
    assert bool((together < 1).all())
    alone = torch.cat([noise.uniform(key, row_B[i : i + 1], columns) for i in range(rows)])
    assert torch.equal(together, alone)
    assert torch.equal(noise.uniform_at(key, row_B, torch.full((rows,), columns - 1)), together[:, -1])


@pytest.mark.parametrize("training", [True, False])
def test_sparse_rows_give_the_first_layer_what_dense_ones_would(training: bool) -> None:
    random = np.random.default_rng(3)
    x_BV = np.where(random.random((9, 30)) < 0.2, random.normal(size=(9, 30)), 0).astype(np.float32)
    x_BV[4] = 0
    slope_BU = random.normal(size=(9, 6)).astype(np.float32)
    layer = InputLayer(30, 6).train(training)
    torch.nn.init.normal_(layer.bias_U)
    out_BU = layer(SparseRows.of(scipy.sparse.csr_matrix(x_BV)))
    (out_BU * torch.from_numpy(slope_BU)).sum().backward()
    table_VU, bias_U = layer.table_VU.detach().numpy(), layer.bias_U.detach().numpy()
    np.testing.assert_allclose(out_BU.detach().numpy(), x_BV @ table_VU + bias_U, atol=1e-5)
    gradient_VU = layer.table_VU.grad
    assert gradient_VU is not None
    assert gradient_VU.is_sparse == training
    if training:
        assert gradient_VU._indices()[0].tolist() == np.flatnonzero(x_BV.any(0)).tolist()
    np.testing.assert_allclose(gradient_VU.to_dense().numpy(), x_BV.T @ slope_BU, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40), st.integers(1, 20))
def test_noise_on_a_cpu_is_what_tensors_of_other_devices_get(key: int, first: int, columns: int) -> None:
    row_B = torch.arange(first, first + 7)
    expected = noise._mix(noise._mix(row_B ^ key)[:, None] ^ torch.arange(columns))
    assert torch.equal(noise.hashes(key, row_B, columns), expected)
    last = (noise._shift(expected[:, -1], 40).float() + 0.5) / 2**24
    assert torch.equal(noise.uniform_at(key, row_B, torch.full((7,), columns - 1)), last)


def test_noise_is_uniform_and_differs_between_steps_and_rows() -> None:
    u = noise.uniform(noise.key_of(1, 2, 3), torch.arange(500), 400).numpy()
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.002
    counts, _ = np.histogram(u, bins=20, range=(0, 1))
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 60
    assert abs(np.corrcoef(u[0], u[1])[0, 1]) < 0.2
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.2
    other = noise.uniform(noise.key_of(1, 2, 4), torch.arange(500), 400).numpy()
    assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 0.02


def _answered_batch() -> Batch:
    """Nine rows, the first three labeled; pairs of which at most one row is."""
    label_BC = np.zeros((9, 2))
    label_BC[[0, 1, 2], [0, 1, 0]] = 1
    left, right = torch.tensor([[0, 5], [4, 3], [8, 1], [6, 7]]).T
    answered = AnsweredPairs(left, right, torch.tensor([True, False, True, False]))
    x = _tensor(_random(1, 9, 4))
    return Batch(x, x, _tensor(label_BC), torch.arange(9), 9, 1, answered)


def test_answered_pairs_are_known_beside_the_labeled_ones() -> None:
    batch, output_BK = _answered_batch(), _random(2, 9, 8)
    label_BC, answered = batch.label_BC.numpy(), batch.answered
    assert answered is not None
    said = {}
    for left, right, similar in zip(answered.left_P, answered.right_P, answered.similar_P, strict=True):
        said[int(left), int(right)] = said[int(right), int(left)] = bool(similar)
    losses = []
    for i in range(9):
        for j in range(9):
            labeled = label_BC[i].any() and label_BC[j].any() and i != j
            if labeled or (i, j) in said:
                similar = said[i, j] if (i, j) in said else bool(label_BC[i] @ label_BC[j] > 0)
                theta = output_BK[i] @ output_BK[j] / 2
                losses.append(np.log1p(np.exp(theta)) - similar * theta)
    known = pairs.known_pairs(batch)
    loss_BG = pairs.log_likelihood(_tensor(output_BK), known.similar_BG)
    assert known.known == len(losses) == 3 * 2 + 4 * 2
    found = pairs.mean_over_pairs(loss_BG * known.known_BG, known.known)
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-9)
    assert pairs.answered_rows(batch).tolist() == [True, True, False, True, True, True, True, True, True]


def test_the_terms_over_answered_pairs_are_means_over_them() -> None:
    batch, bits = _answered_batch(), 24
    code_BK, p_BC = np.random.default_rng(5).random((9, bits)), np.random.default_rng(6).random((9, 4))
    p_BC /= p_BC.sum(1, keepdims=True)
    answered = batch.answered
    assert answered is not None
    contrast, likelihood = [], []
    for i, j, similar in zip(answered.left_P, answered.right_P, answered.similar_P, strict=True):
        distance = ((code_BK[i] - code_BK[j]) ** 2).sum()
        contrast.append((distance if similar else max(0.0, bits / 3 - distance)) / bits)
        likelihood.append(-np.log(p_BC[i] @ p_BC[j] if similar else 1 - p_BC[i] @ p_BC[j]))
    cells, code, p = pairs.answered_cells(answered, batch.row_B), _tensor(code_BK), _tensor(p_BC)
    found = pairs.mean_over_pairs(pairs.answered_contrast(code, code, cells, 1 / 3), 2 * len(answered))
    assert float(found) == pytest.approx(np.mean(contrast), rel=1e-9)
    found = pairs.mean_over_pairs(pairs.answered_likelihood(p, p, cells), 2 * len(answered))
    assert float(found) == pytest.approx(np.mean(likelihood), rel=1e-9)


def test_keys_of_noise_are_splitmix64() -> None:
    """The first number of the published generator with seed 0, and the same mixing as tensors get."""
    assert noise.key_of(0) % 2**64 == 0xE220A8397B1DCDAF
    for first, second in [(0, 7), (-3, 2**40), (2**63 - 1, -(2**63))]:
        row, column = torch.tensor([first]), torch.tensor([second])
        mixed = noise.key_of(first, second) % 2**64
        u = float(noise.uniform_at(0, row, column))
        assert u == pytest.approx(((mixed >> 40) + 0.5) / 2**24, rel=1e-7)
