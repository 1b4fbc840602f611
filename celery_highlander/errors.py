"""Every error of the package, each saying whom it blames; knows nothing of Celery or of a database driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class HighlanderError(Exception):
    """Base of all errors raised by celery-highlander.

    Attributes:
        code: a stable, machine-readable name of the error.
        message: what happened, with the values concerned.
        hint: what usually causes it and what to do; may be empty.
    """

    code = "highlander_error"

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message} {hint}".strip())


class ConfigurationError(HighlanderError):
    """The settings cannot work: yours to change. Lists every violation at once."""

    code = "configuration"

    @classmethod
    def of(cls, problems: Iterable[str]) -> ConfigurationError:
        """One error for several problems; a single one is not made into a list."""
        found = list(problems)
        if len(found) == 1:
            return cls(found[0])
        return cls("\n".join([f"{len(found)} settings do not fit:", *(f"  - {problem}" for problem in found)]))


class LockSessionError(HighlanderError):
    """The database refused, or dropped, the lock session."""

    code = "lock_session"


class DatabaseUnavailableError(LockSessionError):
    """The database cannot be reached at the moment, or does not let us in; worth another try."""

    code = "database_unavailable"


class BrokerUnavailableError(HighlanderError):
    """The broker cannot be reached at the moment, or does not let us in; only commands that need it raise this."""

    code = "broker_unavailable"


class WorkerUnavailableError(HighlanderError):
    """No worker answers where one was asked; only commands raise this."""

    code = "worker_unavailable"


class PoolerError(LockSessionError):
    """The connection goes through a pooler, where a session lock protects nothing."""

    code = "pooler"


class StandbyServerError(LockSessionError):
    """The server is a hot standby; it grants locks that the primary does not know of."""

    code = "standby_server"


class ServerVersionError(LockSessionError):
    """The server is too old to drop a silent lock session."""

    code = "server_version"


class SchemaError(LockSessionError):
    """The tables are missing, or of another version, and this role may not create them."""

    code = "schema"


class KeyCollisionError(LockSessionError):
    """Two singleton names map to one advisory-lock key."""

    code = "key_collision"


class RefusedError(HighlanderError):
    """An operator asked for something that makes no sense here: a name that nobody has, for instance."""

    code = "refused"


class StaleTermError(HighlanderError):
    """A write was attempted under a term that is over: somebody else leads, or may lead."""

    code = "stale_term"


class SingletonConflictError(HighlanderError):
    """A run of a singleton task did not begin: as many as may run at once hold its key; or a message was not sent.

    Attributes:
        key: the text of the key.
        task_id: of a run that holds it, or of the message that waits; empty where that is not known.
    """

    code = "singleton_conflict"

    def __init__(self, message: str, hint: str = "", *, key: str = "", task_id: str = "") -> None:
        self.key = key
        self.task_id = task_id
        super().__init__(message, hint)


class SingletonRunLostError(HighlanderError):
    """A run of a singleton task has lost its lock: another one may begin soon."""

    code = "singleton_run_lost"

    def __init__(self, message: str = "the lock of this run is lost.", hint: str = "") -> None:
        super().__init__(message, hint)


class SingletonKeyError(HighlanderError):
    """A call has no key: its arguments do not fit the task, or hold a value that has no lasting text; the caller's."""

    code = "singleton_key"


class ProtocolError(HighlanderError):
    """An event that cannot happen in this phase: a defect of celery-highlander itself."""

    code = "internal"


ERRORS_BY_CODE: dict[str, type[HighlanderError]] = {
    error.code: error
    for error in (
        ConfigurationError,
        LockSessionError,
        DatabaseUnavailableError,
        BrokerUnavailableError,
        WorkerUnavailableError,
        PoolerError,
        StandbyServerError,
        ServerVersionError,
        SchemaError,
        KeyCollisionError,
        RefusedError,
        StaleTermError,
        SingletonConflictError,
        SingletonRunLostError,
        SingletonKeyError,
        ProtocolError,
    )
}
