"""The one family of exceptions that hopscope raises for a user's mistake or a failed step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


class HopscopeError(Exception):
    """Base of every error of hopscope; its message says what was given, expected, and to do."""


class UsageError(HopscopeError, ValueError):
    """An argument that cannot be used: the user can mend the call (exit code 2 in the shell)."""


class ModelError(HopscopeError):
    """A model that cannot be found, fetched, trusted or understood."""


class UnknownModelError(ModelError, UsageError):
    """A model name that nothing answers to."""


class UntrustedModelError(ModelError, UsageError):
    """A model that could run code of its own when it is read, which the call does not allow."""


class QueryError(UsageError):
    """A query, a query set or a prompt that cannot be used."""


class ResultError(HopscopeError):
    """A saved result that cannot be read, or does not belong to what was asked."""


class DamagedResultError(ResultError):
    """A saved result whose files cannot be read, or do not belong together."""


class EngineError(HopscopeError):
    """Parts of a run that workers elsewhere could not compute, or workers that cannot be had."""


def one_of(kind: str, name: T, known: Iterable[str], error: type[UsageError] = UsageError) -> T:
    """Return a name that is one of those that are known.

    Args:
        kind: what the name is of, such as `mask`.
        name: what was given.
        known: the names that it may be.
        error: the class of the error.

    Raises:
        UsageError: or `error`: with all known names, and those that are spelled alike.

    Example:
        >>> one_of("mask", "causal", ["causal", "document_block"])
        'causal'
    """
    known = list(known)
    if name not in known:
        choices = f"choose one of {', '.join(known)}{did_you_mean(str(name), known)}"
        raise error(f"unknown {kind} {name!r}: {choices}")
    return name


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests similar names, or an empty string.

    Example:
        >>> did_you_mean("wrold", ["world", "facts"])
        '; did you mean world?'
    """
    similar = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


class TakenError(ResultError, UsageError):
    """A place for a result that holds something else: another run, or files of other things."""


class WriteError(HopscopeError, OSError):
    """A file that cannot be written, because the disk is full, say."""


class PlaceError(WriteError, UsageError):
    """A place that nothing can be written to: below a file, read-only, or of an unusable name."""
