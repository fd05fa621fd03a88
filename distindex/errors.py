"""The errors that a user can meet. Each says in one line what is wrong, where, and what to do."""


class DistindexError(Exception):
    """The work cannot be done; the message is one line for a person."""

    exit_code = 1


class InputError(DistindexError):
    """What the caller gave is wrong: a path, a column, a row, a setting. Nothing was written."""

    exit_code = 2


class NotFoundError(InputError):
    """A path, an index version or an item that does not exist."""


class ConflictError(DistindexError):
    """Something with this name exists already, or another writer was first."""


class DamagedError(InputError):
    """A stored file does not match its recorded size or sha256."""


class FormatError(InputError):
    """A stored file carries a format version that this release does not know."""


class UnavailableError(DistindexError):
    """A part that the answer needs is not reachable: a shard, the encoder, the service."""


class BusyError(UnavailableError):
    """The service has as much to do as it takes at once; the same request can be answered later."""


class DeadlineError(UnavailableError):
    """The answer was not there within the time that the caller gave for it."""


class TooManyRejectedError(DistindexError):
    """More rows of a corpus cannot be encoded than the caller allows; what was encoded is kept."""


def reason_of(error: BaseException | None) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
