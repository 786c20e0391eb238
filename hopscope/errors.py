"""The one family of exceptions that hopscope raises for a user's mistake or a failed step."""

from __future__ import annotations

import difflib
import os
from collections.abc import Hashable, Iterable, Mapping
from numbers import Integral
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

MAX_SEED = 2**32 - 1
"""The largest seed that all generators take."""
LONGEST_SHOWN = 80
"""Characters of a name that a message shows."""


class HopscopeError(Exception):
    """Base of every error of hopscope; its message says what was given, expected, and to do."""


class UsageError(HopscopeError, ValueError):
    """An argument that cannot be used: the user can mend the call (exit code 2 in the shell)."""


class ModelError(HopscopeError):
    """A model that cannot be found, fetched, trusted or understood."""


class UnknownModelError(ModelError, UsageError):
    """A model name that nothing answers to."""


class UnusableModelError(ModelError, UsageError):
    """What was given as a model is none, is of another kind, or lies in files that are damaged."""


class UntrustedModelError(ModelError, UsageError):
    """A model that could run code of its own when it is read, which the call does not allow."""


class QueryError(UsageError):
    """A query, a query set or a prompt that cannot be used."""


class ResultError(HopscopeError):
    """A saved result that cannot be read, or does not belong to what was asked."""


class NoResultError(ResultError, UsageError):
    """A place that was named for a saved result, and holds none of the kind that is wanted."""


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
    if not isinstance(name, Hashable) or name not in known:  # tables compare to tables
        choices = f"choose one of {', '.join(known)}{did_you_mean(str(name), known)}"
        raise error(f"unknown {kind} {_shortened(repr(name))}: {choices}")
    return name


def whole_number(
    name: str,
    value: object,
    least: int | None = None,
    most: int | None = None,
    error: type[UsageError] = UsageError,
) -> int:
    """Return a whole number that lies between two others.

    Args:
        name: what it is of, for the message.
        value: what was given.
        least, most: the smallest and the largest it may be; any if None.
        error: the class of the error.

    Raises:
        UsageError: or `error`: for anything else.

    Example:
        >>> whole_number("draws", 3, least=1)
        3
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise error(f"{name} must be a whole number, not {_shortened(repr(value))}")
    number = int(value)
    if least is not None and number < least:
        raise error(f"{name} must be {least} or more, not {number}")
    if most is not None and number > most:
        raise error(f"{name} must be {most} at most, not {number}")
    return number


def of_type(
    name: str,
    value: T,
    kinds: type | UnionType,
    hint: str = "",
    error: type[UsageError] = UsageError,
) -> T:
    """Return an argument that is of a type.

    Args:
        name: of the argument, for the message.
        value: what was given.
        kinds: the type, or a union of several.
        hint: how such a thing is made, for the message.
        error: the class of the error.

    Raises:
        UsageError: or `error`: if it is not.

    Example:
        >>> of_type("name", "Kyoto", str)
        'Kyoto'
    """
    if not isinstance(value, kinds):
        known = kinds.__args__ if isinstance(kinds, UnionType) else (kinds,)
        names = " or ".join(each.__name__ for each in known)
        shown = f"{_shortened(repr(value))} of type {type(value).__name__}"
        raise error(f"{name} must be a {names}, not {shown}{hint and f': {hint}'}")
    return value


def tuple_of(
    name: str, given: object, kind: type[T], advice: str, error: type[UsageError] = UsageError
) -> tuple[T, ...]:
    """Return several objects of one type, or one alone, as a tuple.

    Args:
        name: of the argument, for the message.
        given: what was given.
        kind: the type of each.
        advice: how such objects are made, for the message.
        error: the class of the error.

    Raises:
        UsageError: or `error`: if there is anything else among them.
    """
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    for each in found:
        if not isinstance(each, kind):
            raise error(f"{name} must be {kind.__name__} objects, not {each!r:.60}: {advice}")
    return found


def as_list(
    value: Any,
    single: type | UnionType = str,
    name: str = "this argument",
    hint: str = "",
    error: type[UsageError] = UsageError,
) -> list[Any]:
    """What was given as a list; one alone makes a list of one.

    Args:
        value: several, or one alone.
        single: the type of one.
        name: of the parameter, for the message.
        hint: what such a list looks like, for the message.
        error: the class of the error.

    Raises:
        UsageError: or `error`: for what is neither one nor several.

    Example:
        >>> as_list("resid_post", name="sites"), as_list((3, 4), int)
        (['resid_post'], [3, 4])
    """
    if isinstance(value, single):
        return [value]
    try:
        if not isinstance(value, str | bytes | Mapping):
            return list(value)
    except TypeError:  # not all that has parts can be gone through, such as a number in an array
        pass
    raise error(f"{name} must be a list, not {kind_of(value)}{hint and f': {hint}'}")


def kind_of(value: object) -> str:
    """What kind of thing was given, in words: `a list of str`, `a DataFrame`, `'world'`."""
    if isinstance(value, str | bool | int | float) or value is None:
        return repr(value)
    kind = f"a {type(value).__name__}"
    if isinstance(value, list | tuple) and value:
        kind += f" of {type(value[0]).__name__}"
    return kind


def path_of(name: str, value: object) -> Path:
    """Return an argument that names a file or folder as a path.

    Raises:
        UsageError: for what is no path, has no name, or has a null byte in it.
    """
    if isinstance(value, str | os.PathLike) and str(value) and "\0" not in str(value):
        return Path(value)
    raise UsageError(f"{name} must be the path of a file or folder, not {_shortened(repr(value))}")


def _shortened(text: str) -> str:
    """A text in one line that a message can hold."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_SHOWN else f"{line[: LONGEST_SHOWN - 4]} ..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests similar names, or an empty string.

    Example:
        >>> did_you_mean("wrold", ["world", "facts"])
        '; did you mean world?'
    """
    similar = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


class NearNames:
    """A base whose objects, asked for an attribute that they have not, name those that are near."""

    if not TYPE_CHECKING:  # a type checker would take every name for one that is there

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):  # a property that failed: its own error says why
                return object.__getattribute__(self, name)
            near = "" if name.startswith("_") else did_you_mean(name, dir(self))
            kind = type(self).__name__
            # Without `obj`, or Python's traceback would suggest a name for the second time.
            raise AttributeError(
                f"{kind!r} object has no attribute {name!r}{near}", name=name, obj=None
            )


class TakenError(ResultError, UsageError):
    """A place for a result that holds something else: another run, or files of other things."""


class WriteError(HopscopeError, OSError):
    """A file that cannot be written, because the disk is full, say."""


class PlaceError(WriteError, UsageError):
    """A place that nothing can be written to: below a file, read-only, or of an unusable name."""
