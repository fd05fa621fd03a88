"""The examples run as they stand and find what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from distindex import settings
from distindex.config import TrainConfig

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def printed(
    request: pytest.FixtureRequest,
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What the example of a test prints, run as a script would be, in the Ray of all tests."""
    monkeypatch.setattr(sys, "argv", [request.param, str(tmp_path / "made" / "here")])
    runpy.run_path(str(EXAMPLES / request.param), run_name="__main__")
    return capsys.readouterr().out


def shares(text: str) -> list[float]:
    """The percentages of a text, as shares."""
    return [float(number) / 100 for number in re.findall(r"([\d.]+)%", text)]


@pytest.mark.slow
@pytest.mark.parametrize("printed", ["search_your_embeddings.py"], indirect=True)
def test_search_your_embeddings(printed: str) -> None:
    *matches, summary = printed.splitlines()
    assert len(matches) == 10
    assert all(line.strip().startswith("digit-") for line in matches)
    # Ten classes: 0.1 by chance.
    assert float(summary.split()[0]) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("printed", ["search_texts.py"], indirect=True)
def test_search_texts(printed: str) -> None:
    precision = {
        name: float(value) for name, value in re.findall(r"^  (\S.*?) +(0\.\d+) with", printed, re.MULTILINE)
    }
    # The largest of twelve modules has a quarter of the texts.
    assert precision["csb-vae"] > 0.7
    assert precision["csb-vae"] > precision["lsh"]
    answers = dict(re.findall(r"^(\S.*?)[?:] (\w+\..*)$", printed, re.MULTILINE))
    modules = {
        "like optimize.bisect": "optimize",
        "like interpolate.CubicSpline": "interpolate",
        "like ndimage.rotate": "ndimage",
        "remove noise from a recorded signal with a filter": "signal",
        "count connected regions of an image": "ndimage",
        "eigenvalues of a symmetric matrix": "linalg",
        "group observations by a tree of clusters": "cluster.hierarchy",
    }
    assert answers.keys() == modules.keys()
    hits = [
        [name.startswith(f"{module}.") for name in answers[asked].split(", ")] for asked, module in modules.items()
    ]
    assert np.mean(hits[:3]) > 0.6
    assert np.mean(hits[3:]) > 0.4, "of twelve modules"


@pytest.mark.slow
@pytest.mark.parametrize("printed", ["find_copied_images.py"], indirect=True)
def test_find_copied_images(printed: str) -> None:
    learned, untold = (shares(part) for part in re.split(r"^\w.*?: of ", printed, flags=re.MULTILINE)[1:])
    first, among, *within = learned
    assert first > 0.7
    assert among > 0.9
    assert first > untold[0] + 0.1, "copies were learned from"
    found, wrong = within[0::2], within[1::2]
    assert found == sorted(found)
    assert wrong == sorted(wrong)
    assert found[1] > wrong[1] + 0.2, "copies are nearer than images that are new"


@pytest.mark.slow
@pytest.mark.parametrize("printed", ["choose_what_to_label.py"], indirect=True)
def test_choose_what_to_label(printed: str) -> None:
    header, *lines, summary = printed.splitlines()[-4:]
    assert header.split() == ["labels", "20", "40", "60", "80"]
    assert [line.split()[0] for line in lines] == ["random", "margin"]
    for line in lines:
        mean = [float(value) for value in re.findall(r"(0\.\d{3}) \(", line)]
        assert len(mean) == 4
        assert mean[-1] > mean[0] + 0.02, "labels help"
    ahead = re.search(r"ahead in (\d) of 5 runs$", summary)
    assert ahead is not None
    assert int(ahead[1]) >= 3


@pytest.mark.parametrize("path", sorted((EXAMPLES / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_read_as_they_are(path: Path) -> None:
    config = settings.load(TrainConfig, str(path))
    assert config.output.endswith(f"hashers/{path.stem}")
    assert (config.workers.device == "cuda") == ("gpu" in path.stem)
