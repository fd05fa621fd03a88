"""What a person sees while work runs: a bar on a terminal, plain lines otherwise. All of it on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, highlight=False, soft_wrap=True)
_quiet = False


@contextlib.contextmanager
def quiet(asked: bool = True) -> Iterator[None]:
    """Within it, if `asked`, nothing but results and errors is printed: `--json`."""
    global _quiet
    before, _quiet = _quiet, asked
    try:
        yield
    finally:
        _quiet = before


def say(line: str) -> None:
    """One line about what is going on or what was chosen and why."""
    if not _quiet:
        console.print(line, markup=False)


@contextlib.contextmanager
def show_live() -> Iterator[Callable[[Sequence[str]], None]]:
    """A function that shows lines: on a terminal in place of those before, elsewhere one after another."""
    if not sys.stderr.isatty() or _quiet:

        def print_lines(lines: Sequence[str]) -> None:
            for line in lines:
                say(line)

        yield print_lines
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda lines: live.update(Text("\n".join(lines)), refresh=True)


class Bar:
    """Progress of one piece of work with a known total.

    On a terminal a bar with the time left; elsewhere a line at most every `interval` seconds.
    """

    def __init__(self, what: str, total: float, unit: str = "", interval: float = 10.0) -> None:
        self.what, self.total, self.unit, self.interval = what, total, unit, interval
        self.done = 0.0
        self._printed = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty() and not _quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, note="")
        return self

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, note=note)
            return
        now = time.monotonic()
        if self._first is None:
            # Starting up is no part of the rate.
            self._first = (now, self.done)
        if now - self._printed >= self.interval:
            self._printed = now
            line = f"{self.what}: {self.done:,.0f} of {self.total:,.0f} {self.unit}".rstrip()
            since, before = self._first
            if self.done > before:
                left = (self.total - self.done) * (now - since) / (self.done - before)
                line += f", {left:,.0f} s left"
            say(f"{line}, {note}" if note else line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
