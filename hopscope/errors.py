"""The one family of exceptions that hopscope raises for a user's mistake or a failed step."""


class HopscopeError(Exception):
    """Base of every error of hopscope; its message says what was given, expected, and to do."""


class UsageError(HopscopeError, ValueError):
    """An argument that cannot be used: the user can mend the call (exit code 2 in the shell)."""


class ModelError(HopscopeError):
    """A model that cannot be found, fetched, trusted or understood."""


class UnknownModelError(ModelError, UsageError):
    """A model name that nothing answers to."""


class QueryError(UsageError):
    """A query, a query set or a prompt that cannot be used."""


class ResultError(HopscopeError):
    """A saved result that cannot be read, or does not belong to what was asked."""


class DamagedResultError(ResultError):
    """A saved result whose files cannot be read, or do not belong together."""
