"""Provides what the arguments of an analysis may be, declared beside its parameters.

A constraint checks a value, says in one form what is wrong with it, and gives it back as the
analysis wants it: names each once, layers as a list, one alone as a list of one. Those that need
the model let everything pass before it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from types import UnionType
from typing import Any, ClassVar, Protocol

from hopscope.documents.orders import Order, order_name
from hopscope.documents.question_set import QuestionSet
from hopscope.engine.edits import Knockout
from hopscope.engine.masked.reader import reader_of
from hopscope.errors import UsageError, one_of
from hopscope.experiments.registry import REGISTERED
from hopscope.masks.algebra import Mask
from hopscope.masks.named import mask_of
from hopscope.models.token_model import TokenModel
from hopscope.prompting.document_prompts import DocumentModel
from hopscope.queries.query_set import QuerySet


class Constraint(Protocol):
    """What a parameter may be."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        """The value as the analysis wants it.

        Args:
            name: the parameter's name.
            value: what was given.
            model: the model; None before it is loaded.

        Raises:
            UsageError: with what was given and what is expected.
        """


def as_list(value: Any, single: type | UnionType = str) -> list[Any]:
    """What was given as a list; one alone makes a list of one.

    Args:
        value: several, or one alone.
        single: the type of one.
    """
    return [value] if isinstance(value, single) else list(value)


def kind_of(value: object) -> str:
    """What kind of thing was given, in words: `a list of str`, `a DataFrame`, `'world'`."""
    if isinstance(value, str) or value is None:
        return repr(value)
    kind = f"a {type(value).__name__}"
    if isinstance(value, list | tuple) and value:
        kind += f" of {type(value[0]).__name__}"
    return kind


@dataclass(frozen=True)
class _Made:
    """Something that hopscope makes.

    Attributes:
        kind: its class.
        wanted: what it must be, in words.
        advice: how it is made.
    """

    kind: ClassVar[type]
    wanted: ClassVar[str]
    advice: ClassVar[str]

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if isinstance(value, self.kind):
            return value
        raise UsageError(f"{name} must be {self.wanted}, not {kind_of(value)}: {self.advice}")


class Loaded(_Made):
    """A model that was loaded."""

    kind = TokenModel
    wanted = "one that hs.load_model gives"
    advice = "it loads a name, a folder, a hub id, or a model of transformers"


class Queries(_Made):
    """A set of two-hop queries."""

    kind = QuerySet
    wanted = "a QuerySet"
    advice = (
        "make one with hs.load_queries(...) of 'world', a .csv, .parquet or .jsonl file, a hub id "
        "or a data frame, or with hs.QuerySet([hs.TwoHopQuery(...), ...]); texts alone do not say "
        "which entities and relations they have"
    )


class Questions(_Made):
    """A set of questions over documents."""

    kind = QuestionSet
    wanted = "a QuestionSet"
    advice = (
        "make one with hs.load_questions(...) of 'world-docs', 'world-docs-shared', "
        "'world-docs-real', a .jsonl, .json or .parquet file, a hub id or rows "
        "(frame.to_dict('records')), or with hs.QuestionSet([hs.MultiDocQuestion(...), ...])"
    )


@dataclass(frozen=True)
class OneOf:
    """One of some names.

    Attributes:
        known: the names.
        optional: whether it may be None.
    """

    known: Sequence[str]
    optional: bool = False

    def checked(self, name: str, value: Any, model: TokenModel | None) -> str | None:
        if value is None and self.optional:
            return None
        return str(one_of(name, value, self.known))


@dataclass(frozen=True)
class ListOf:
    """Some names, each once.

    Attributes:
        known: the names.
        noun: what one of them is called; the parameter's name without its last letter if empty.
        empty: whether there may be none.
    """

    known: Sequence[str]
    noun: str = ""
    empty: bool = False

    def checked(self, name: str, value: Any, model: TokenModel | None) -> list[str]:
        noun, given = self.noun or name.removesuffix("s"), as_list(value)
        if not (self.empty or given):
            known = ", ".join(self.known)
            raise UsageError(f"give a list of {noun}s with any of {known}, not {value!r}")
        return [one_of(noun, each, self.known) for each in dict.fromkeys(given)]


@dataclass(frozen=True)
class AtLeast:
    """A number that is not below another."""

    least: int

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if not value >= self.least:
            raise UsageError(f"{name} must be {self.least} or more, not {value}")
        return value


@dataclass(frozen=True)
class Above:
    """A number above another, and perhaps not above a third."""

    least: float
    most: float = float("inf")

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if not self.least < value <= self.most:
            upper = "" if self.most == float("inf") else f" and at most {self.most:g}"
            raise UsageError(f"{name} must be above {self.least:g}{upper}, not {value}")
        return value


@dataclass(frozen=True)
class Layers:
    """Layers of the model, each once; all of them for None."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        return value if model is None else check_layers(value, layers_of(model))


@dataclass(frozen=True)
class Heads:
    """Heads of the model, each once; None for all of them."""

    def checked(self, name: str, value: Any, model: Any) -> Any:
        if value is None or model is None:
            return value
        return list(Knockout([0], [1], [0], as_list(value, Integral)).placed(model, 2).heads or ())


@dataclass(frozen=True)
class Cells:
    """Pairs of a source and a target layer, each once; None for all with source > target."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None or model is None:
            return value
        given, last = list(value), model.n_layers - 1
        wrong = [cell for cell in given if not _is_cell(cell, last)]
        if wrong or not given:
            raise UsageError(
                f"cells are (source layer, target layer) pairs of layers 0 to {last}; "
                f"got {wrong[0] if wrong else 'none'}"
            )
        return list(dict.fromkeys((int(source), int(target)) for source, target in given))


def _is_cell(cell: object, last: int) -> bool:
    if not isinstance(cell, Sequence) or len(cell) != 2:
        return False
    return all(isinstance(layer, Integral) and 0 <= int(layer) <= last for layer in cell)


@dataclass(frozen=True)
class Orders:
    """Orders of documents, each once."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> list[Order]:
        given = as_list(value)
        if not given:
            raise UsageError(
                f"give a list of orders such as ['original', 'forward'], not {value!r}"
            )
        return list({order_name(order): order for order in given}.values())


@dataclass(frozen=True)
class Edges:
    """Edges of attention, `query->key`, each once.

    Attributes:
        spans: what the two ends may be; anything if there are none.
    """

    spans: Sequence[str] = ()

    def checked(self, name: str, value: Any, model: TokenModel | None) -> list[str]:
        given = as_list(value)
        if not given:
            raise UsageError(f"give a list of edges such as ['query->key'], not {value!r}")
        for edge in given:
            query, arrow, key = edge.partition("->")
            if not arrow or (self.spans and {query, key} - set(self.spans)):
                ends = f", each one of {', '.join(self.spans)}" if self.spans else ""
                raise UsageError(f"{edge!r} is no edge: write 'query->key'{ends}")
        return list(dict.fromkeys(given))


@dataclass(frozen=True)
class SettingsOf:
    """Settings of another analysis, by name, as that one checks them.

    Attributes:
        analysis: the name under which it is registered.
    """

    analysis: str

    def checked(self, name: str, value: Any, model: TokenModel | None) -> dict[str, Any]:
        entry = REGISTERED[self.analysis]
        if not isinstance(value, Mapping):
            known = ", ".join(entry.own_parameters)
            raise UsageError(
                f"{name} must be a dictionary of settings with any of {known}, not {kind_of(value)}"
            )
        for setting in value:
            one_of(f"setting of {name}", setting, entry.own_parameters)
        return dict(entry.check(value, model))


def check_masks(
    masks: Sequence[str | Mask] | str | Mask | None, model: DocumentModel
) -> list[Mask]:
    """The masks, each once; one alone may be given as it is; the model's usual one if None.

    Raises:
        UsageError: for none, or an unknown name.
    """
    if masks is None:
        masks = reader_of(model).usual_mask
    given = as_list(masks, str | Mask)
    if not given:
        raise UsageError("give at least one mask, such as 'causal'")
    return list({mask.name: mask for mask in map(mask_of, given)}.values())


def layers_of(model: TokenModel) -> int:
    """How many blocks read the prompt."""
    return reader_of(model).n_mask_layers


def check_layers(layers: Iterable[int] | int | None, n_layers: int) -> list[int]:
    """The given layers, each once; all if None.

    Raises:
        UsageError: for a layer that the model does not have, or none.
    """
    if layers is None:
        return list(range(n_layers))
    given = list(dict.fromkeys(int(layer) for layer in as_list(layers, Integral)))
    wrong = [layer for layer in given if not 0 <= layer < n_layers]
    if wrong or not given:
        raise UsageError(
            f"layers are numbers from 0 to {n_layers - 1}; got {wrong[0] if wrong else 'none'}"
        )
    return given
