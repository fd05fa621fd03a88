"""What encoding gave, or would give: for a person, for machines, and in a file beside the manifest."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from distindex.codeset import CodeSetManifest
from distindex.encoding.part import PartResult
from distindex.storage import Storage

FORMAT_VERSION = 1
KIND = "encode-report"
REPORT = "report.json"


@dataclasses.dataclass(frozen=True)
class EncodeReport:
    """What encoding gave.

    Attributes:
        uri: the code set's directory.
        rows: encoded rows.
        rejected: rows put aside with their reasons, in `rejected/`.
        reasons: rejected rows by reason, the most frequent first.
        files: corpus files.
        parts: parts; a large file has several.
        reused: parts that an earlier, interrupted run had made.
        seconds: wall time of this call.
        startup_seconds: of these, until the first encoder began.
        encoding_seconds: from then on until the last part was there.
        checking_seconds: reading all ids back and comparing them with those that went in.
        rows_per_second: rows that this call encoded over `encoding_seconds`, all encoders together.
        encoders: encoder processes.
        threads: of each.
        device: cpu or cuda.
        peak_memory: bytes that the largest encoder process has held.
    """

    uri: str
    rows: int
    rejected: int
    files: int
    parts: int
    reused: int
    seconds: float
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    startup_seconds: float = 0.0
    encoding_seconds: float = 0.0
    checking_seconds: float = 0.0
    rows_per_second: float = 0.0
    encoders: int = 0
    threads: int = 0
    device: str = ""
    peak_memory: int = 0

    def text(self) -> str:
        """Two lines for a person."""
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in list(self.reasons.items())[:3])
        rejected = f", {self.rejected:,} rows rejected, see rejected/" if self.rejected else ""
        parts = f", {self.parts} parts" if self.parts != self.files else ""
        lines = [
            f"code set: {self.uri} ({self.rows:,} rows in {self.files} files{parts}{rejected}"
            + (f": {reasons})" if reasons else ")")
        ]
        if self.encoders:
            lines.append(
                f"encoded at {self.rows_per_second:,.0f} rows/s: {self.encoding_seconds:.1f} s, besides "
                f"{self.startup_seconds:.1f} s to start and {self.checking_seconds:.1f} s to check; "
                f"{self.encoders} encoder(s) of at most {self.peak_memory / 1e6:,.0f} MB"
                + (f"; {self.reused} parts were there already" if self.reused else "")
            )
        return "\n".join(lines)

    def write(self, output: Storage, manifest: CodeSetManifest) -> None:
        """Write it beside the manifest; it is no part of the code set."""
        head = {"format_version": FORMAT_VERSION, "kind": KIND}
        tail = {"created": manifest.created, "command": manifest.command}
        output.write_json(REPORT, {**head, **dataclasses.asdict(self), **tail})


@dataclasses.dataclass(frozen=True)
class EncodePlan:
    """What encoding would do.

    Attributes:
        output: directory of the code set that there would be.
        files: corpus files to encode.
        files_before: corpus files that earlier code sets hold (`since`).
        rows: rows to read.
        tasks: parts that they become.
        tasks_done: of these, made by an unfinished run already.
        bytes_in: size of the files.
        bytes_out: size of the parts, by the sample.
        encoders: encoder processes.
        threads: of each.
        device: cpu or cuda.
        sample_rows: rows that were encoded to measure, on this machine's CPU, with `threads` threads.
        sample_rejected: of these, the bad ones.
        rows_per_second: of one encoder, by the sample.
        seconds: expected time of encoding what is not done, besides starting and checking.
    """

    output: str
    files: int
    files_before: int
    rows: int
    tasks: int
    tasks_done: int
    bytes_in: int
    bytes_out: int
    encoders: int
    threads: int
    device: str
    sample_rows: int
    sample_rejected: int
    rows_per_second: float
    seconds: float

    def text(self) -> str:
        """Some lines for a person."""
        before = f", besides {self.files_before:,} encoded before" if self.files_before else ""
        done = f", {self.tasks_done:,} of them done" if self.tasks_done else ""
        facts: dict[str, Any] = {
            "files": f"{self.files:,}{before}",
            "rows": f"{self.rows:,}",
            "tasks": f"{self.tasks:,}{done}",
            "bytes": f"{self.bytes_in:,} in, about {self.bytes_out:,} out",
            "encoders": f"{self.encoders} of {self.threads} thread(s), device: {self.device}",
            "sample": f"{self.sample_rows:,} rows, {self.sample_rejected:,} of them bad, "
            f"{self.rows_per_second:,.0f} rows/s by one encoder on this machine's CPU",
            "expected": f"{self.seconds:,.0f} s, besides starting and checking",
        }
        lines = [f"{name:<9} {value}" for name, value in facts.items()]
        return "\n".join([f"plan for {self.output}; nothing was written", *lines])


def count_reasons(results: list[PartResult]) -> dict[str, int]:
    """Rejected rows by reason, the most frequent first."""
    found: Counter[str] = Counter()
    for result in results:
        found.update(result.reasons)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
