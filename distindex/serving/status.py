"""What Serve says of applications that do not start, as our own errors."""

from __future__ import annotations

import re

from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

import distindex.errors
from distindex.errors import UnavailableError


def failure_of(application: ApplicationStatusOverview) -> None:
    """Raise why an application failed to start, if it did.

    Raises:
        DistindexError: the one inside what Serve reports of a replica that did not start, with its own type.
    """
    if application.status != ApplicationStatus.DEPLOY_FAILED:
        return
    message = " ".join([application.message] + [part.message for part in application.deployments.values()])
    found = re.search(r"distindex\.errors\.(\w+): ([^\n]+)", message)
    if found:
        raise getattr(distindex.errors, found[1], UnavailableError)(found[2].strip())
    raise UnavailableError(f"a process did not start: {' '.join(message.split())[-500:]}")
