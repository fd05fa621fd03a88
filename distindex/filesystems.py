"""The fsspec file system of a URI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import fsspec

from distindex.errors import InputError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
# What botocore repeats by itself, with growing random pauses of half a minute in all. Parts of an upload have no
# other retries, and what s3fs does by default ends after two seconds.
_S3_RETRIES = {"mode": "standard", "max_attempts": 8}


def filesystem(uri: str, options: Mapping[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Raises:
        InputError: the URI's protocol is unknown, or its package is not installed.
    """
    protocol = uri.split("://", 1)[0] if "://" in uri else "file"
    if protocol == "file":
        path = uri.removeprefix("file://")
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(path))
    try:
        return fsspec.core.url_to_fs(uri, **_with_retries(protocol, options))
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        hint = f"pip install 'distindex[{extra}]'" if extra else f"install the fsspec package for {protocol}://"
        raise InputError(f"{uri}: reading {protocol}:// needs a package that is not installed: {hint}") from error
    except ValueError as error:
        raise InputError(f"{uri}: {error}") from error


def _with_retries(protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    given = options.get("config_kwargs", {})
    set_by_user = "retries" in given or {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & set(os.environ)
    if protocol not in ("s3", "s3a") or set_by_user:
        return dict(options)
    return {**options, "config_kwargs": {**given, "retries": _S3_RETRIES}}
