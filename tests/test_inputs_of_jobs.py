"""Training and encoding read every format through the same corpus: the format changes nothing but the file names."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distindex.codeset import CodeSet
from distindex.config import CorpusConfig, EncodeConfig, FeaturesConfig, ImageConfig, TrainConfig, WorkersConfig
from distindex.corpus.features import fit_features
from distindex.corpus.rows import FeatureKind
from distindex.encoding import encode
from distindex.hashing.classic import fit_lsh
from distindex.training.data import read_training_set

ROWS, WIDTH, BITS = 60, 8, 32


def write_vectors(root: Path) -> np.ndarray:
    x_NV = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    rows = [{"id": i, "vector": x_NV[i].astype(float).tolist(), "label": f"{i % 3}"} for i in range(ROWS)]
    (root / "lines").mkdir()
    for number, first in enumerate((0, ROWS // 2)):
        text = "".join(json.dumps(row) + "\n" for row in rows[first : first + ROWS // 2])
        (root / "lines" / f"{number}.jsonl").write_text(text)
    pq.write_table(pa.Table.from_pylist(rows), root / "rows.parquet")
    return x_NV


def write_images(root: Path) -> None:
    with tarfile.open(root / "images.tar", "w") as archive:
        for number in range(ROWS):
            pixel_HW = np.random.default_rng(number).integers(0, 256, (4, 4), np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixel_HW).save(stream, "PNG")
            path = root / "folder" / str(number % 3) / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream.getvalue())
            for name, data in ((f"{number:02d}.png", stream.getvalue()), (f"{number:02d}.cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(f"{number % 3}/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def test_training_reads_the_same_rows(tmp_path: Path) -> None:
    write_vectors(tmp_path)
    write_images(tmp_path)
    images = FeaturesConfig(image=ImageConfig(height=4, width=4, channels=1))
    for first, second, column in (("rows.parquet", "lines", "vector"), ("folder", "images.tar", "image")):
        a, b = (
            read_training_set(
                TrainConfig(
                    CorpusConfig(str(tmp_path / name), column, label_column="label"), "unused", BITS, features=images
                )
            )
            for name in (first, second)
        )
        assert a.rows == b.rows == ROWS
        # Shards keep the order that they were written in, directories that of their names.
        order_a, order_b = (np.lexsort(each.x_NV.T) for each in (a, b))  # type: ignore[union-attr]
        np.testing.assert_array_equal(a.x_NV[order_a], b.x_NV[order_b])  # type: ignore[index]
        assert a.known.names == b.known.names == ("0", "1", "2")
        np.testing.assert_array_equal(a.known.index[order_a], b.known.index[order_b])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "corpus"), [("vector", "lines"), ("image", "images.tar")])
def test_encoding_gives_the_codes_of_the_rows(tmp_path: Path, ray_cluster: None, name: str, corpus: str) -> None:
    x_NV = write_vectors(tmp_path)
    write_images(tmp_path)
    kind: FeatureKind = "dense"
    column: pa.Array = pa.FixedSizeListArray.from_arrays(pa.array(x_NV.ravel()), WIDTH)
    if name == "image":
        files = [tmp_path / "folder" / str(number % 3) / f"{number:02d}.png" for number in range(ROWS)]
        kind, column = "image", pa.array([path.read_bytes() for path in files], pa.binary())
    features = fit_features(FeaturesConfig(image=ImageConfig(height=4, width=4, channels=1)), kind, [column])
    hasher = fit_lsh(features, features.transform(column).astype(np.float32), name, BITS)  # type: ignore[union-attr]
    hasher.save(str(tmp_path / "hasher"))
    given = CorpusConfig(str(tmp_path / corpus), name, payload_columns=["label"])
    output = str(tmp_path / "codes")
    report = encode(EncodeConfig(given, str(tmp_path / "hasher"), output, workers=WorkersConfig(1, 1)))
    assert report.rows == ROWS
    code_set = CodeSet.open(output)
    parts = pa.concat_tables(code_set.read(file, verify=True) for file in code_set.manifest.files)
    ids = [f"{number % 3}/{number:02d}" if name == "image" else number for number in range(ROWS)]
    assert parts["id"].to_pylist() == ids
    assert parts["label"].to_pylist() == [str(number % 3) for number in range(ROWS)]
    assert b"".join(parts["code"].to_pylist()) == hasher.encode(column).tobytes()
