"""Find images that are copies of others: moved by a pixel, lighter or darker, with noise, compressed again.

The images are scikit-learn's handwritten digits, which are hard: two sevens are alike without being copies. What a
copy may differ in is learned from copies that are made here, each with its original's id as its label; nobody labels
anything. Codes by iterative quantization, which are not told of copies, show what this gives.

    python examples/find_copied_images.py DIRECTORY
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from distindex import build, connect, encode, train
from distindex.config import (
    BuildConfig,
    CorpusConfig,
    EncodeConfig,
    FeaturesConfig,
    ImageConfig,
    MethodConfig,
    OptimizationConfig,
    TrainConfig,
    ValidationConfig,
)

Pixels = npt.NDArray[np.uint8]
SIDE = 32
KNOWN, NEW = 900, 300
COPIES = 3
RADII = (4, 8, 12)


def file_of(image: Pixels, quality: int = 95) -> bytes:
    """A JPEG file of an image."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def copy_of(image: Pixels, random: np.random.Generator) -> bytes:
    """The image moved by up to a pixel each way, up to a fifth lighter or darker, noisy, and compressed hard."""
    moved = np.roll(image, random.integers(-1, 2, 2), axis=(0, 1))
    changed = moved * random.uniform(0.8, 1.2) + random.normal(0, 8, image.shape)
    return file_of(np.clip(changed, 0, 255).astype(np.uint8), quality=40)


def write(path: Path, files: Sequence[bytes], labels: Sequence[int]) -> CorpusConfig:
    """A corpus of image files."""
    pq.write_table(pa.table({"id": range(len(files)), "image": files, "label": labels}), path)
    return CorpusConfig(str(path), "image", label_column="label")


def main(directory: Path) -> None:
    """Index some images; of copies of them and of images that are new, tell which is which."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    images = [
        np.asarray(Image.fromarray((image * 15.9).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for image in random.permutation(load_digits(return_X_y=True)[0].reshape(-1, 8, 8))[: KNOWN + NEW]
    ]
    known, new = images[:KNOWN], images[KNOWN:]
    numbers = range(KNOWN)
    originals = write(directory / "originals.parquet", [file_of(image) for image in known], numbers)
    examples = write(
        directory / "examples.parquet",
        [file_of(image) for image in known] + [copy_of(image, random) for image in known * COPIES],
        [*numbers] * (1 + COPIES),
    )
    # Other copies than those that were learned from.
    copied = random.choice(KNOWN, NEW, replace=False)
    copies = [copy_of(known[number], random) for number in copied]

    for name, method, corpus in (
        ("learned", MethodConfig(name="vdsh-s"), examples),
        ("not told", MethodConfig(name="itq"), originals),
    ):
        hasher, codes, index = (str(directory / name / part) for part in ("hasher", "codes", "index"))
        train(
            TrainConfig(
                corpus,
                hasher,
                bits=64,
                features=FeaturesConfig(image=ImageConfig(height=16, width=16, channels=1)),
                method=method,
                optimization=OptimizationConfig(epochs=10),
                validation=ValidationConfig(fraction=0),
            )
        )
        encode(EncodeConfig(originals, hasher, codes))
        build(BuildConfig(codes, index, hasher=hasher))
        with connect(index) as searcher:
            near = searcher.search(images=copies, k=5)
            alone = searcher.search(images=[file_of(image) for image in new], k=1)
        pairs = list(zip(near, copied, strict=True))
        first = np.mean([matches[0].id == number for matches, number in pairs])
        among = np.mean([number in [match.id for match in matches] for matches, number in pairs])
        print(f"\n{name}: of {first:.1%} of the copies the original is nearest, of {among:.1%} among the 5 nearest")
        for radius in RADII:
            found = np.mean([matches[0].distance <= radius for matches in near])
            wrong = np.mean([matches[0].distance <= radius for matches in alone])
            print(f"  within {radius:>2} bits of another: {found:.1%} of the copies, {wrong:.1%} of the new images")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
