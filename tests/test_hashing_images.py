"""Networks for images: against numpy, and trained in this process on handwritten digits with few labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from distindex.config import (
    CorpusConfig,
    FeaturesConfig,
    ImageConfig,
    LabelsConfig,
    MethodConfig,
    OptimizationConfig,
    TrainConfig,
    ValidationConfig,
)
from distindex.corpus.features import ImageFeatures
from distindex.corpus.labels import read_labels
from distindex.errors import InputError
from distindex.evaluation.protocol import MethodResult
from distindex.evaluation.run import Judged, judge
from distindex.hashing import Hasher
from distindex.hashing.augmentation import augment, drop_pixels
from distindex.hashing.batch import Batch
from distindex.hashing.convolution import ImageDecoder, ImageEncoder, ImageInput
from distindex.hashing.methods import build_method, check_input
from distindex.training.data import read_training_set
from distindex.training.fit import fit_in_process
from distindex.training.loop import build_model, train_epoch
from distindex.training.optimizer import Optimizer

BITS = 16


def image_features(height: int, width: int, channels: Any) -> ImageFeatures:
    mean_C = np.linspace(0.2, 0.6, channels, dtype=np.float32)
    return ImageFeatures(ImageConfig(height, width, channels), mean_C, (mean_C / 2).astype(np.float32))


def image_input(features: ImageFeatures) -> ImageInput:
    image = ImageInput.of(features)
    assert image is not None
    return image


def pixels(rows: int, features: ImageFeatures, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, features.width), np.uint8)


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 3), (7, 9, 1), (1, 5, 3)])
def test_the_exported_network_gives_the_trained_ones_logits(
    tmp_path: Path, height: int, width: int, channels: int
) -> None:
    features = image_features(height, width, channels)
    image = image_input(features)
    torch.manual_seed(0)
    encoder = ImageEncoder(image, [6, 10], [20, 12], BITS, dropout=0.2)
    x_NV = pixels(50, features)
    x_BV = image.standardized(torch.from_numpy(x_NV), torch.float32)
    np.testing.assert_allclose(x_BV, features.network_input(x_NV), atol=1e-5)
    for step in range(20):
        encoder.hidden(x_BV, step, torch.arange(50))
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    encoder.eval()
    with torch.no_grad():
        expected = encoder.logits(encoder.hidden(x_BV, 0, torch.arange(50))).numpy()
    hasher = Hasher("ssb-vae", BITS, "image", features, encoder.export())
    np.testing.assert_allclose(hasher.logits(x_NV), expected, rtol=1e-3, atol=1e-3)
    hasher.save(str(tmp_path))
    loaded = Hasher.load(str(tmp_path))
    column = pa.array([row.tobytes() for row in x_NV], pa.binary(features.width))
    np.testing.assert_array_equal(loaded.logits_of(column), hasher.logits(x_NV))


def test_a_network_of_another_shape_is_refused() -> None:
    features = image_features(8, 8, 3)
    tables = ImageEncoder(image_input(features), [4], [6], BITS, 0.0).export()
    Hasher("ssb-vae", BITS, "image", features, tables)
    with pytest.raises(InputError, match="does not fit"):
        Hasher("ssb-vae", BITS, "image", image_features(8, 12, 3), tables)
    with pytest.raises(InputError, match="does not fit"):
        Hasher("ssb-vae", BITS, "image", image_features(8, 8, 3), tables[1:])


@settings(max_examples=30, deadline=None)
@given(st.booleans(), st.integers(0, 3), st.integers(0, 2**40), st.integers(1, 12))
def test_images_are_mirrored_and_moved_each_by_itself(flip: bool, shift: int, key: int, rows: int) -> None:
    x_BHWC = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (rows, 5, 6, 3), np.uint8))
    out_BHWC = augment(x_BHWC, flip, shift, key, torch.arange(100, 100 + rows)).numpy()
    for i in range(rows):
        alone = augment(x_BHWC[i : i + 1], flip, shift, key, torch.tensor([100 + i]))
        np.testing.assert_array_equal(out_BHWC[i], alone[0])
        padded = np.pad(x_BHWC[i].numpy(), ((shift, shift), (shift, shift), (0, 0)), mode="edge")
        possible = [
            moved[:, ::-1] if mirrored else moved
            for mirrored in {False, flip}
            for y in range(2 * shift + 1)
            for x in range(2 * shift + 1)
            for moved in [padded[y : y + 5, x : x + 6]]
        ]
        assert any((out_BHWC[i] == each).all() for each in possible)


def test_every_way_of_moving_is_about_as_frequent() -> None:
    x_BHWC = torch.arange(25, dtype=torch.uint8).view(1, 5, 5, 1).expand(4000, 5, 5, 1)
    out_BHWC = augment(x_BHWC, True, 1, 7, torch.arange(4000)).numpy()
    centre, step = out_BHWC[:, 2, 2, 0], out_BHWC[:, 2, 3, 0].astype(int) - out_BHWC[:, 2, 2, 0]
    assert 0.45 < (step == -1).mean() < 0.55
    values, counts = np.unique(centre, return_counts=True)
    assert values.tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert counts.min() > 4000 / 9 * 0.8


def test_pixels_are_dropped_with_all_their_channels() -> None:
    x_BPC = drop_pixels(torch.ones(200, 30), 3, 0.25, 5, torch.arange(200)).view(200, 10, 3).numpy()
    assert 0.2 < 1 - x_BPC.mean() < 0.3
    assert (x_BPC == x_BPC[:, :, :1]).all()


@pytest.mark.parametrize("likelihood", ["auto", "bernoulli", "gaussian"])
def test_the_likelihood_is_of_pixels(likelihood: Any) -> None:
    features = image_features(9, 5, 3)
    image = image_input(features)
    config = MethodConfig(hidden=[12], convolutions=[4, 6], likelihood=likelihood)
    method: Any = build_method(config, features.width, BITS, 3, False, False, image).double().eval()
    x_NV = pixels(6, features)
    x_BV = torch.from_numpy(x_NV)
    batch = Batch(x_BV, x_BV, torch.zeros(6, 3).double(), torch.arange(6), 6, 3)
    code_BK = torch.rand(6, BITS, dtype=torch.float64)
    decoded_BV = method.decoder(code_BK)
    assert decoded_BV.shape == x_BV.shape
    output_NV = decoded_BV.detach().numpy()
    if likelihood == "gaussian":
        expected_N = 8 * ((output_NV - features.network_input(x_NV)) ** 2).mean(1)
    else:
        p_NV, unit_NV = 1 / (1 + np.exp(-output_NV)), x_NV / 255
        with np.errstate(divide="ignore", invalid="ignore"):
            on = np.where(unit_NV > 0, unit_NV * np.log(unit_NV / p_NV), 0)
            off = np.where(unit_NV < 1, (1 - unit_NV) * np.log((1 - unit_NV) / (1 - p_NV)), 0)
        expected_N = 32 * (on + off).mean(1)
    assert method.reconstruction(code_BK, batch).item() == pytest.approx(expected_N.mean(), rel=1e-5)


def test_labels_of_images_weigh_ten_times_and_they_have_no_neighbors(tmp_path: Path) -> None:
    features = image_features(8, 8, 1)
    config = MethodConfig(hidden=[12], convolutions=[4])
    method = build_method(config, 64, BITS, 4, False, False, image_input(features)).double().train()
    x_BV = torch.from_numpy(pixels(6, features))
    terms = method(Batch(x_BV, x_BV, torch.eye(4).double()[[0, 1, 2, 3, 0, 1]], torch.arange(6), 6, 3))
    labels = 3 * terms["class"] + 3 * terms["code"] + 5 * 4 / 8 * terms["pair"]
    expected = terms["reconstruction"] + terms["kl"] / 64 + 10 * labels
    assert terms["total"].item() == pytest.approx(expected.item() / 5, rel=1e-9), "over the largest weight"

    images = pa.FixedSizeListArray.from_arrays(pa.array(pixels(20, features).ravel()), 64)
    pq.write_table(pa.table({"id": range(20), "image": images}), tmp_path / "corpus.parquet")
    for share, found in ((None, False), (0.5, True)):
        trained = TrainConfig(
            CorpusConfig(str(tmp_path / "corpus.parquet"), "image"),
            "",
            features=FeaturesConfig("image", image=ImageConfig(8, 8, 1, raw_shape=[8, 8, 1])),
            method=MethodConfig(neighbor_share=share).filled(),
        )
        assert (read_training_set(trained).neighbor_NJ is not None) == found


@pytest.mark.parametrize(("height", "width", "channels"), [(28, 28, 1), (3, 10, 3)])
def test_the_decoder_fills_an_image_of_any_size(height: int, width: int, channels: int) -> None:
    features = image_features(height, width, channels)
    decoder = ImageDecoder(BITS, image_input(features))
    out_BV = decoder(torch.randn(3, BITS))
    assert out_BV.shape == (3, features.width)
    assert (out_BV.std(dim=0) > 0).all(), "every pixel depends on the code"


def test_settings_that_do_not_fit_the_features_are_refused() -> None:
    for kind, wrong in (
        ("text", {"likelihood": "gaussian"}),
        ("dense", {"likelihood": "multinomial"}),
        ("image", {"likelihood": "multinomial"}),
        ("image", {"reference": True}),
        ("dense", {"flip": True}),
        ("text", {"shift": 2}),
    ):
        with pytest.raises(InputError, match=f"method.{next(iter(wrong))}"):
            check_input(MethodConfig(**wrong), kind)  # type: ignore[arg-type]
    settings: list[dict[str, Any]] = [{"convolutions": []}, {"convolutions": [0]}, {"shift": -1}]
    for wrong in settings:
        with pytest.raises(InputError, match=f"method.{next(iter(wrong))}"):
            MethodConfig(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels_NV, target_N = load_digits(return_X_y=True)
    raw_NV = (np.asarray(pixels_NV) * 15.9).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "digits.parquet"
    column = pa.array([row.tobytes() for row in raw_NV], pa.binary(64))
    pq.write_table(pa.table({"id": np.arange(len(raw_NV)), "image": column, "label": target_N}), path)
    return path


def test_learned_codes_of_digits_find_better_neighbours_than_itq_and_pixels(digits: Path) -> None:
    config = TrainConfig(
        CorpusConfig(str(digits), "image", label_column="label"),
        "not written",
        bits=BITS,
        features=FeaturesConfig(image=ImageConfig(8, 8, 1)),
        labels=LabelsConfig(fraction=0.1),
        method=MethodConfig(hidden=[128], convolutions=[16, 32]),
        optimization=OptimizationConfig(epochs=20, batch_size=100, labeled_fraction=0.3, learning_rate=3e-3),
        validation=ValidationConfig(fraction=0),
    )
    data = read_training_set(config)
    assert data.x_NV.dtype == np.uint8
    assert data.target_NV is data.x_NV
    model = build_model(data, config)
    optimizer = Optimizer(model, config.optimization)
    for epoch in range(config.optimization.epochs):
        train_epoch(model, optimizer, data, config, epoch, 0, 1, torch.device("cpu"))
    hasher = Hasher("ssb-vae", BITS, "image", data.features, model.eval().encoder.export())
    labels = read_labels(pq.read_table(digits)["label"])
    judged = Judged(data.x_NV, labels)
    rows = np.arange(0, len(labels), 4)
    queries = Judged(data.x_NV[rows], labels.take(rows))  # type: ignore[index]
    found: dict[str, MethodResult] = {r.method: r for r in judge(hasher, queries, judged, [100], 2, baselines=True)}
    assert {"itq", "pca-sign", "lsh", "float cosine"} < set(found)
    precision = {method: result.metrics.precision[100] for method, result in found.items()}
    assert precision["ssb-vae"] > max(precision["itq"], precision["float cosine"]), precision


@pytest.mark.parametrize("name", ["lsh", "pca-sign", "itq", "ssh"])
def test_a_fitted_map_of_images_is_centred_where_it_is_used(digits: Path, name: Any) -> None:
    config = TrainConfig(
        CorpusConfig(str(digits), "image", label_column="label"),
        "not written",
        bits=BITS,
        features=FeaturesConfig(image=ImageConfig(8, 8, 1)),
        method=MethodConfig(name=name),
    )
    data = read_training_set(config)
    logit_NK = Hasher(name, BITS, "image", data.features, fit_in_process(config, data)).logits(data.x_NV)
    np.testing.assert_allclose(logit_NK.mean(0), 0, atol=1e-3 * logit_NK.std())
