"""The commands on photographs in a column of bytes, some of them broken, as a user has them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distindex.hashing import Hasher
from distindex.serve_config import ServeConfig
from distindex.serving.body import Limits, parse
from distindex.serving.client import LocalSearcher
from distindex.serving.parts import Encoder
from distindex.serving.request import RequestError
from distindex.serving.service import choose_hasher
from tests.pipeline import run

ROWS = 120


def file_of(pixels_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """Noise with a bright left or right half, trained, encoded and indexed; row 3 is cut off."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    stored = random.integers(0, 100, (ROWS, 12, 16, 3), np.uint8)
    stored[::2, :, :8] += 150
    stored[1::2, :, 8:] += 150
    files = [file_of(each) for each in stored]
    files[3] = files[3][:60]
    (root / "photos").mkdir()
    for row in range(4):
        (root / "photos" / f"{row}.png").write_bytes(files[row])
    table = {"id": np.arange(ROWS), "image": files, "label": ["left", "right"] * (ROWS // 2)}
    pq.write_table(pa.table(table), root / "corpus.parquet")
    corpus = [
        f"--corpus.uri={root / 'corpus.parquet'}",
        "--corpus.feature_column=image",
        "--corpus.on_bad_rows=reject",
    ]
    trained = run(
        "train",
        *corpus,
        "--corpus.label_column=label",
        f"--output={root / 'hasher'}",
        "--bits=16",
        "--features.image.height=10",
        "--features.image.width=10",
        "--method.hidden=[16]",
        "--method.convolutions=[4,8]",
        "--method.shift=1",
        "--optimization.epochs=30",
        "--optimization.batch_size=40",
        "--optimization.learning_rate=0.01",
        "--validation.fraction=0",
        "--workers.count=1",
        "--workers.cpus=1",
        "--json",
    ).json
    assert (trained["rows"], trained["rejected"]) == (ROWS - 1, 1)
    encoded = run("encode", *corpus, f"--hasher={root / 'hasher'}", f"--output={root / 'codes'}", "--json").json
    assert (encoded["rows"], encoded["rejected"]) == (ROWS - 1, 1)
    run("build", f"--codes={root / 'codes'}", f"--hasher={root / 'hasher'}", f"--output={root / 'index'}", "--json")
    return root


def test_bad_images_are_rejected_with_their_reason(world: Path) -> None:
    (rejected,) = (world / "codes" / "rejected").iterdir()
    (row,) = pq.read_table(rejected).to_pylist()
    assert (row["row"], row["id"]) == (3, "3")
    assert row["reason"].startswith('column "image" is an image that cannot be decoded')


def test_an_image_file_finds_its_own_row_and_kind(world: Path) -> None:
    paths = [str(world / "photos" / f"{row}.png") for row in range(3)]
    found = run("query", f"--target={world / 'index'}", f"--images=[{','.join(paths)}]", "--k=30", "--json").json
    answers = found if isinstance(found, list) else found["results"]
    assert len(answers) == 3
    column = pq.read_table(world / "corpus.parquet")["image"]
    hasher = Hasher.load(str(world / "hasher"))
    for row, answer in enumerate(answers):
        ids = [item["id"] for item in answer]
        same = [item for item in ids if item % 2 == row % 2]
        assert len(same) >= 27, "its neighbours are bright on the same side"
        nearest = answer[0]
        assert nearest["distance"] == 0
        taken = hasher.encode(column.take([nearest["id"], row]))
        assert taken[0].tobytes() == taken[1].tobytes()


def test_what_cannot_be_searched_by_image_is_said(world: Path) -> None:
    broken = world / "photos" / "3.png"
    ran = run("query", f"--target={world / 'index'}", f"--images=[{broken}]")
    assert ran.code == 2
    assert f"{broken}: is an image that cannot be decoded" in ran.err
    missing = run("query", f"--target={world / 'index'}", f"--images=[{world / 'nothing.png'}]")
    assert missing.code == 2
    assert "nothing.png: no such file" in missing.err


def test_inspect_shows_the_shape_and_the_network(world: Path) -> None:
    about = run("inspect", f"--uri={world / 'hasher'}", "--json").json
    assert about["features"] == "image, 10 x 10 x 3"
    assert about["network"] == "convolutions of 4, 8 channels, then 72 -> 16 -> 16"


def test_evaluation_judges_pixels_beside_the_codes(world: Path) -> None:
    corpus = [f"--{name}.{setting}" for name in ("database", "queries") for setting in (
        f"uri={world / 'corpus.parquet'}", "feature_column=image", "label_column=label", "on_bad_rows=reject",
    )]  # fmt: skip
    output = f"--output={world / 'evaluation'}"
    report = run(
        "evaluate", f"--hasher={world / 'hasher'}", *corpus, output, "--k=[10]", "--baselines=true", "--json"
    )
    precision = {method["method"]: method["metrics"]["precision"]["10"] for method in report.json["methods"]}
    assert precision["csb-vae"] > 0.95
    assert {"itq", "pca-sign", "lsh", "float cosine"} < set(precision)


def test_raw_pixels_of_another_shape_are_refused_before_any_work(world: Path) -> None:
    raw = pa.array([b"x" * 100], pa.binary(100))
    pq.write_table(pa.table({"id": [1], "image": raw}), world / "raw.parquet")
    ran = run(
        "encode",
        f"--corpus.uri={world / 'raw.parquet'}",
        "--corpus.feature_column=image",
        f"--hasher={world / 'hasher'}",
        f"--output={world / 'raw'}",
    )
    assert ran.code == 2
    assert 'column "image": 100 bytes a row are no image of 10 x 10 x 3' in ran.err
    assert not (world / "raw").exists()


def test_the_service_encodes_images_as_the_corpus_was(world: Path) -> None:
    uri = str(world / "hasher")
    hasher = Hasher.load(uri)
    info = {
        "index": str(world / "index"),
        "version": 1,
        "bits": 16,
        "hasher": {"uri": uri, "fingerprint": hasher.fingerprint},
    }
    assert choose_hasher(ServeConfig(info["index"]), info) == (uri, "images")
    encoder = Encoder(uri, {}, 1)
    encoder.check_health()
    files = [(world / "photos" / f"{row}.png").read_bytes() for row in range(2)]
    sent = json.dumps({"images": [base64.b64encode(file).decode() for file in files]}).encode()
    request = parse(sent, Limits(8, 10, 4))
    found = encoder.encode(request)
    assert np.array_equal(found, hasher.logits_of(pa.array(files, pa.binary())))
    with LocalSearcher(info["index"]) as searcher:
        by_image, by_logits = searcher.search(images=files, k=5), searcher.search(logits=found, k=5)
        assert by_image.to_table().equals(by_logits.to_table())
        with pytest.raises(RequestError, match="is no image") as refused:
            searcher.search(images=[files[0], b"nothing"])
        assert refused.value.field == "images[1]"
        with pytest.raises(RequestError, match="reads images, not texts"):
            searcher.search(texts="a photo")
    for wrong in ("!", 5):
        with pytest.raises(RequestError) as refused:
            parse(json.dumps({"images": [wrong]}).encode(), Limits(8, 10, 4))
        assert refused.value.field == "images[0]"
