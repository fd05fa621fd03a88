"""Configs read from YAML and the command line, compared, fingerprinted and recorded without secrets."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from distindex.errors import InputError

ConfigT = TypeVar("ConfigT")


def add_arguments(parser: Any, config_class: type) -> None:
    """Give a jsonargparse parser `--config FILE.yaml` and one option per field of the config."""
    parser.add_argument("--config", action="config", help="a YAML file with any of the settings below")
    parser.add_class_arguments(config_class)


def from_namespace(parser: Any, namespace: Any, config_class: type[ConfigT], verb: str | None = None) -> ConfigT:
    """Build the config that a parser with `add_arguments` has parsed, as itself or as one of its verbs."""
    made = parser.instantiate(namespace)
    made = made[verb] if verb else made
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: made[name] for name in names})


def load(config_class: type[ConfigT], path: str | None = None, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a config from a YAML file and overrides such as `--optimization.epochs=5`.

    Raises:
        InputError: the file is missing, or a setting is unknown or has the wrong type or value.
    """
    arguments = [*(["--config", path] if path else []), *overrides]
    return _parse(config_class, lambda parser: parser.parse_args(arguments))


def from_values(config_class: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Make a config of what a YAML file of it would hold.

    Raises:
        InputError: a setting is unknown or has the wrong type or value.
    """
    return _parse(config_class, lambda parser: parser.parse_object(dict(values)))


def _parse(config_class: type[ConfigT], parse: Callable[[Any], Any]) -> ConfigT:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_arguments(parser, config_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return from_namespace(parser, parse(parser), config_class)
        except jsonargparse.ArgumentError as error:
            raise InputError(" ".join(str(error).split())) from error


def with_values(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON with other values for some of its dotted names."""
    changed = copy.deepcopy(dict(settings))
    for name, value in values.items():
        *path, last = name.split(".")
        place = changed
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return changed


def fingerprint(*values: Any) -> str:
    """16 hex digits that are equal exactly for equal configs (dataclasses, or anything JSON)."""
    return hashlib.sha256(json.dumps([as_json(v) for v in values], sort_keys=True).encode()).hexdigest()[:16]


def as_json(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as JSON with the names that the command line has for its settings."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def without_secrets(settings: Any) -> Any:
    """A config as JSON with the names of storage options in place of their values, which may be keys."""
    if not isinstance(settings, dict):
        return settings
    return {
        name: sorted(value) if name == "storage_options" else without_secrets(value)
        for name, value in settings.items()
    }


def command_line(arguments: Sequence[str]) -> str:
    """A command as manifests keep it: without its directory, and without storage options, which may be keys."""
    kept, hide = [os.path.basename(arguments[0])], False
    for argument in arguments[1:]:
        name, given, _ = argument.partition("=")
        if hide or ("storage_options" in argument and (given or not argument.startswith("--"))):
            kept.append(f"{name}=..." if argument.startswith("--") else "...")
            hide = False
        else:
            kept.append(argument)
            hide = "storage_options" in argument
    return shlex.join(kept)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What changed between two configs as nested mappings, one `name: old -> new` each."""
    found = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: {a!r} -> {b!r}")
    return found
