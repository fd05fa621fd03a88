"""Which failures of object storage pass, how often they are tried again, and what a person is told of the others.

The clients of the stores (botocore, google-auth, azure-core) repeat single requests already. What is left to this
module are the failures that they let through: an answer that breaks off in its body, one with fewer bytes than
asked for, and a store that is away for longer than a client's patience.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from distindex.errors import DistindexError, InputError, NotFoundError, UnavailableError, reason_of
from distindex.progress import say

# No attempt begins later than this after the first; each may take the client's own half minute.
PATIENCE_S = 120.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0

Result = TypeVar("Result")

_PASSING_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_PASSING_ERRNO = {
    errno.EBUSY,
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ETIMEDOUT,
    getattr(errno, "EREMOTEIO", errno.ETIMEDOUT),
}
# Of botocore, aiohttp, urllib3 and azure-core: by name, so that none of them need be installed.
_PASSING_NAMES = {
    "HTTPClientError",
    "ConnectionError",
    "IncompleteReadError",
    "IncompleteRead",
    "ResponseParserError",
    "ChecksumError",
    "FlexibleChecksumError",
    "ClientPayloadError",
    "ClientConnectionError",
    "ServiceRequestError",
    "ServiceResponseError",
}
_LASTING_NAMES = {"SSLError", "ProxyConnectionError", "InvalidIMDSEndpointError"}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "NoAuthTokenError",
    "TokenRetrievalError",
    "ProfileNotFound",
    "DefaultCredentialsError",
}


class ShortReadError(OSError):
    """A store gave fewer bytes than the file has."""


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later: throttling, a broken connection, a timeout, a short read."""
    if isinstance(error, DistindexError | FileNotFoundError | FileExistsError | PermissionError):
        return False
    for link in _chain(error):
        names = _names(link)
        if names & _LASTING_NAMES:
            return False
        if isinstance(link, ShortReadError | TimeoutError) or names & _PASSING_NAMES:
            return True
        if _status(link) in _PASSING_STATUS or (isinstance(link, OSError) and link.errno in _PASSING_ERRNO):
            return True
    return False


def persistently(uri: str, work: Callable[[], Result]) -> Result:
    """What `work` gives, called again with growing random pauses while it fails in a way that passes.

    Args:
        uri: what errors name.
        work: does the whole of it anew on each call.

    Raises:
        FileNotFoundError: as `work` raised it.
        FileExistsError: as `work` raised it.
        NotFoundError: there is no such bucket.
        InputError: access is denied, there are no credentials, or the store refuses the name.
        UnavailableError: the store has failed for longer than `PATIENCE_S`.
    """

    def note(state: RetryCallState) -> None:
        # Most pass at once and are nobody's concern.
        if state.attempt_number >= 3 and state.outcome is not None:
            say(f"{uri}: {reason_of(state.outcome.exception())}; trying again")

    attempts = Retrying(
        retry=retry_if_exception(is_passing),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
        stop=stop_after_delay(PATIENCE_S),
        before_sleep=note,
        reraise=True,
    )
    try:
        return attempts(work)
    except Exception as error:
        told = explained(uri, error)
        if told is error:
            raise
        raise told from error


def explained(uri: str, error: Exception) -> Exception:
    """The error as one line for a person; itself, where it is not the store's or says a file (not) to be there."""
    if isinstance(error, DistindexError | FileExistsError):
        return error
    names = {name for link in _chain(error) for name in _names(link)}
    reason = reason_of(error)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{uri}: no such bucket; create it, or correct the name") if _no_bucket(error) else error
    if names & _NO_CREDENTIALS:
        return InputError(
            f"{uri}: no credentials for this store ({reason}); set them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS); storage_options.anon for public data"
        )
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return InputError(f"{uri}: access denied ({reason}); check the credentials and what they may read and write")
    if is_passing(error):
        return UnavailableError(
            f"{uri}: the store keeps failing ({reason}); start again when it answers, what is done is kept"
        )
    if "ParamValidationError" in names or isinstance(error, ValueError):
        return InputError(f"{uri}: {reason}")
    if isinstance(error, OSError) or names & {"BotoCoreError", "ClientError", "HttpError", "AzureError"}:
        return UnavailableError(f"{uri}: the store refuses ({reason}); check the URI and storage_options")
    return error


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: BaseException) -> int | None:
    """The HTTP status: of botocore in its response, of gcsfs in `code`, of azure-core in `status_code`."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None


def _no_bucket(error: BaseException) -> bool:
    responses = (getattr(link, "response", None) for link in _chain(error))
    return any(isinstance(each, dict) and each.get("Error", {}).get("Code") == "NoSuchBucket" for each in responses)
