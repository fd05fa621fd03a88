"""What every script in jobs/ takes besides its settings, and the configs that come with them."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distindex import cli, job, settings
from distindex.errors import ConflictError, InputError, TooManyRejectedError, UnavailableError
from jobs.pipeline import PipelineConfig

JOBS = Path(__file__).resolve().parents[1] / "jobs"
CONFIGS = sorted((JOBS / "configs").rglob("*.yaml"))


@dataclasses.dataclass
class CopyConfig:
    """Write a file.

    Attributes:
        output: the file.
    """

    output: str


@dataclasses.dataclass
class CopyReport:
    """What was written."""

    uri: str


def failing(*errors: BaseException) -> Callable[[CopyConfig], CopyReport]:
    """Work that raises these errors, one at each call, and then succeeds."""
    left = list(errors)

    def work(config: CopyConfig) -> CopyReport:
        if left:
            raise left.pop(0)
        return CopyReport(config.output)

    return work


def run(work: Callable[[CopyConfig], CopyReport], *arguments: str) -> int:
    return job.run_job("copy", CopyConfig, work, lambda report: "written", arguments)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, in seconds, which are not waited for."""
    slept: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", slept.append)
    return slept


def test_what_may_pass_is_tried_again(
    pauses: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "copy"
    errors = [UnavailableError("the store keeps failing"), RuntimeError("a node was lost"), OSError("reset")]
    assert run(failing(*errors), "--retries=3", f"--output={output}") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-2:] == ["written", f"result: {output}"]
    assert "copy: the store keeps failing; retry 1 of 3 in 10 s" in printed.err
    assert "copy: a node was lost; retry 2 of 3 in 20 s" in printed.err
    assert pauses == [10, 20, 40]
    report = json.loads((tmp_path / "copy.report.json").read_text())
    assert (report["attempts"], report["config"]) == (4, {"output": str(output)})


def test_the_last_failure_is_that_of_the_job(
    pauses: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(failing(*[UnavailableError("away")] * 3), "--retries=2", f"--output={tmp_path / 'copy'}") == 1
    assert pauses == [10, 20]
    assert capsys.readouterr().err.splitlines()[-1] == "distindex: error: away"
    assert run(failing(UnavailableError("away")), f"--output={tmp_path / 'copy'}") == 1
    assert pauses == [10, 20], "by default nothing is tried again"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no such column"), 2),
        (ConflictError("another writer was first"), 1),
        (TooManyRejectedError("7 rows are rejected"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_what_would_fail_again_is_not_tried_again(
    error: BaseException, code: int, pauses: list[float], tmp_path: Path
) -> None:
    assert run(failing(error), "--retries=5", f"--output={tmp_path / 'copy'}") == code
    assert not pauses


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("--retries=often", "--retrie=3", "--retries=-1"):
        assert run(failing(), wrong, f"--output={tmp_path / 'copy'}") == 2
        error = capsys.readouterr().err
        assert error.startswith("distindex: error: ")
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(JOBS / "configs")))
def test_configs_are_what_their_jobs_take(path: Path) -> None:
    name = path.stem.partition("-")[0]
    config_class: Any = PipelineConfig if name == "pipeline" else cli.VERBS[name].config_class
    made = settings.load(config_class, str(path))
    output = getattr(made, "output", None) or made.index
    environment = path.parent.name
    assert output.startswith(
        {"configs": "/tmp/distindex-jobs/", "one-gpu": "/data/", "cluster": "s3://my-bucket/"}[environment]
    )
    if environment == "one-gpu":
        assert made.workers.device == "cuda"


def test_a_job_takes_the_code_along_and_no_data(tmp_path: Path) -> None:
    """What Ray packs of a working directory in which somebody has trained, encoded and built."""
    from ray._private.runtime_env.packaging import create_package

    repository = JOBS.parent
    for name in (".gitignore", ".rayignore"):
        (tmp_path / name).write_text((repository / name).read_text())
    code = [
        "distindex/cli.py",
        "distindex/serving/page/index.html",
        "jobs/train.py",
        "jobs/configs/train.yaml",
        "my.yaml",
    ]
    data = [
        "work/hasher/weights.safetensors", "work/codes/part-00000-abc.parquet", "work/index/shards/ab/codes.faiss",
        "work/index/shards/ab/postings.arrow", "quickstart/documentation/corpus.parquet", "corpus.jsonl", "texts.csv",
        "photos/1.jpg", "photos/photos.tar", "hasher/training/tensorboard/events.out.tfevents.1.a", "vectors.npy",
        "tests/test_jobs.py", "docs/images/a.png", ".venv/bin/python", "distindex/__pycache__/cli.pyc",
    ]  # fmt: skip
    for name in [*code, *data]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    packed = tmp_path.parent / f"{tmp_path.name}.zip"
    create_package(str(tmp_path), packed, include_gitignore=True)
    with zipfile.ZipFile(packed) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names == {*code, ".gitignore", ".rayignore"}


def test_every_job_has_a_config_for_a_laptop_and_for_a_cluster() -> None:
    names = {path.stem for path in JOBS.glob("*.py")}
    for directory in (JOBS / "configs", JOBS / "configs" / "cluster"):
        assert names <= {path.stem for path in directory.glob("*.yaml")}
