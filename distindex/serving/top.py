"""`distindex top`: what a service does now, from its own figures."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from distindex.errors import InputError
from distindex.progress import show_live
from distindex.serve_config import TopConfig
from distindex.serving.activity import STAGES
from distindex.serving.remote import HttpSearcher


def top(config: TopConfig) -> dict[str, Any]:
    """Show the figures of a service again and again, until Ctrl-C or as often as asked; returns the last.

    They are those of all processes that listen, added up.

    Raises:
        InputError: the target is no address.
        UnavailableError: the service does not answer.
    """
    if not config.target.startswith(("http://", "https://")):
        raise InputError(f"target: {config.target} is not an address; give that of a service, http://HOST:PORT")
    figures: dict[str, Any] = {}
    looks = 0
    with HttpSearcher(config.target, config.timeout_s) as service, show_live() as show:
        before: dict[str, Any] = {}
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                info, searches = service.info(), service.statistics()["searches"]
                figures = {"version": info["version"], "rows": info["rows"], **_rates(before, searches), **searches}
                show(_lines(config.target, figures))
                before = {process["process"]: process for process in searches["processes"]}
                looks += 1
                if looks == config.looks:
                    break
                time.sleep(config.every_s)
    return figures


def _rates(before: dict[str, Any], now: dict[str, Any]) -> dict[str, float]:
    """What happened per second between two looks, at all processes; at one that is new, since its start."""
    rates = dict.fromkeys(("requests", "queries", "failed"), 0.0)
    for process in now["processes"]:
        seen = before.get(process["process"], {"uptime_s": 0.0, **dict.fromkeys(rates, 0)})
        seconds = max(1e-3, process["uptime_s"] - seen["uptime_s"])
        for name in rates:
            rates[name] += (process[name] - seen[name]) / seconds
    return {f"{name}_per_s": round(rate, 2) for name, rate in rates.items()}


def _lines(target: str, figures: dict[str, Any]) -> list[str]:
    count, up = len(figures["processes"]), max(process["uptime_s"] for process in figures["processes"])
    lines = [
        f"{target}  version {figures['version']}, {figures['rows']:,} rows, "
        f"{count} listening process{'es' if count > 1 else ''}, up {up:,.0f} s",
        f"requests {figures['requests_per_s']:,.1f}/s, queries {figures['queries_per_s']:,.1f}/s, "
        f"failed {figures['failed_per_s']:,.1f}/s; in all {figures['requests']:,}, {figures['queries']:,} "
        f"and {figures['failed']:,}",
    ]
    if figures["latency_ms"] is None:
        return [*lines, "no search yet"]
    shares = ("p50", "p95", "p99")
    stages = {"all": figures["latency_ms"], **{name: figures["stages_ms"][name] for name in STAGES}}
    return [
        *lines,
        f"{'ms of the latest ' + format(figures['latest'], ','):<24}" + "".join(f"{share:>10}" for share in shares),
        *(f"{name:<24}" + "".join(f"{ms[share]:>10.2f}" for share in shares) for name, ms in stages.items()),
    ]
