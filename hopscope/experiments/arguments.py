"""Provides what the arguments of an analysis may be, declared beside its parameters.

A constraint checks a value, says in one form what is wrong with it, and gives it back as the
analysis wants it: names each once, layers as a list, one alone as a list of one. Those that need
the model let everything pass before it is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar, Protocol

from hopscope.distributed.engines import engine_of
from hopscope.documents.orders import NAMES, Order, order_name
from hopscope.documents.question_set import QuestionSet
from hopscope.documents.templates import TEMPLATES, Template, template_of
from hopscope.engine.attention import give_back_attention
from hopscope.engine.edits import Knockout
from hopscope.engine.masked.reader import reader_of
from hopscope.errors import (
    QueryError,
    UsageError,
    as_list,
    kind_of,
    of_type,
    one_of,
    path_of,
    whole_number,
)
from hopscope.experiments.registry import REGISTERED
from hopscope.masks.algebra import Mask
from hopscope.masks.named import MASKS, mask_of
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import device_of
from hopscope.models.token_model import TokenModel
from hopscope.prompting.document_prompts import DocumentModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.runs import check_shard


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


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded.

    Attributes:
        kind: its class; an analysis that says no other goes from left to right.
    """

    kind: type[TokenModel] = LanguageModel

    def checked(self, name: str, value: Any, model: TokenModel | None) -> TokenModel:
        if not isinstance(value, TokenModel):
            raise UsageError(
                f"{name} must be one that hs.load_model gives, not {kind_of(value)}: it loads a "
                "name, a folder, a hub id, or a model of transformers"
            )
        if not isinstance(value, self.kind):
            raise UsageError(
                f"{name} must generate from left to right, and {value.name} is an "
                "encoder-decoder: give one that hs.load_model gives"
            )
        if isinstance(value, LanguageModel):
            give_back_attention(value)
        return value


class Queries(_Made):
    """A set of queries of two to four hops."""

    kind = QuerySet
    wanted = "a QuerySet"
    advice = (
        "make one with hs.load_queries(...) of 'world', a .csv, .parquet or .jsonl file, a hub id "
        "or a data frame, or with hs.QuerySet([hs.TwoHopQuery(...), ...]); texts alone do not say "
        "which entities and relations they have"
    )


class TwoHopQueries(Queries):
    """A set of two-hop queries."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> QuerySet:
        queries: QuerySet = super().checked(name, value, model)
        if queries.n_hops != 2:
            bridges = ", ".join(queries.entities[1:-1])
            raise QueryError(
                f"{name} have {queries.n_hops} hops, and this analysis takes two: divide them at a "
                f"bridge, one of {bridges}, with queries.as_two_hop({queries.entities[-2]!r}), "
                f"or --bridge {queries.entities[-2]} in a shell"
            )
        return queries


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
        return str(_named(name, value, self.known))


def _named(noun: str, value: Any, known: Sequence[str]) -> str:
    """One of some names; what is no name, such as a list or a table, is told by its kind."""
    shown = value if isinstance(value, str) else kind_of(value)
    return one_of(noun, shown, known)


@dataclass(frozen=True)
class ListOf:
    """Some names, each once.

    Attributes:
        known: the names.
        noun: what one of them is called; the parameter's name without its last letter if empty.
        empty: whether there may be none.
        optional: whether it may be None.
    """

    known: Sequence[str]
    noun: str = ""
    empty: bool = False
    optional: bool = False

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None and self.optional:
            return None
        noun, given = self.noun or name.removesuffix("s"), as_list(value, name=name)
        if not (self.empty or given):
            known = ", ".join(self.known)
            raise UsageError(f"give a list of {noun}s with any of {known}, not {value!r}")
        return list(dict.fromkeys(_named(noun, each, self.known) for each in given))


@dataclass(frozen=True)
class AtLeast:
    """A whole number that is not below another, nor above a third.

    Attributes:
        least, most: the smallest and the largest.
        optional: whether it may be None.
    """

    least: int
    most: int | None = None
    optional: bool = False

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None and self.optional:
            return None
        return whole_number(name, value, self.least, self.most)


@dataclass(frozen=True)
class Above:
    """A finite number above another, and perhaps not above a third."""

    least: float
    most: float = float("inf")

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise UsageError(f"{name} must be a number, not {kind_of(value)}")
        if not self.least < float(value) <= self.most or not math.isfinite(value):
            upper = "" if self.most == float("inf") else f" and at most {self.most:g}"
            raise UsageError(f"{name} must be above {self.least:g}{upper}, not {value}")
        return value


@dataclass(frozen=True)
class WholeNumbers:
    """Whole numbers that are not below another; one alone is a list of one.

    Attributes:
        least: the smallest; any if None.
        optional: whether it may be None.
    """

    least: int | None = 0
    optional: bool = False

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None and self.optional:
            return None
        given = as_list(value, Integral, name)
        return [whole_number(f"each of {name}", each, self.least) for each in given]


@dataclass(frozen=True)
class NumbersEach:
    """For each of several things a list of whole numbers; None for the usual ones."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None:
            return None
        of_one = WholeNumbers(1)
        given = as_list(value, name=name)
        return [of_one.checked(f"each of {name}", each, model) for each in given]


@dataclass(frozen=True)
class Flag:
    """True or False.

    Attributes:
        optional: whether it may be None.
    """

    optional: bool = False

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if isinstance(value, bool) or (value is None and self.optional):
            return value
        raise UsageError(f"{name} must be True or False, not {kind_of(value)}")


@dataclass(frozen=True)
class InstanceOf:
    """An object of a class, or of one of several.

    Attributes:
        kinds: the classes.
        optional: whether it may be None.
    """

    kinds: type | UnionType
    optional: bool = False

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        return None if value is None and self.optional else of_type(name, value, self.kinds)


@dataclass(frozen=True)
class SeveralOf:
    """Objects of a class; one alone is a list of one."""

    kind: type

    def checked(self, name: str, value: Any, model: TokenModel | None) -> list[Any]:
        given, each_of = as_list(value, self.kind, name), InstanceOf(self.kind)
        if not given:
            raise UsageError(f"{name} is empty: give at least one {self.kind.__name__}")
        return [each_of.checked(f"each of {name}", each, model) for each in given]


@dataclass(frozen=True)
class Folder:
    """A path to a folder.

    Attributes:
        optional: whether it may be None.
    """

    optional: bool = True

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        return None if value is None and self.optional else path_of(name, value)


@dataclass(frozen=True)
class Shard:
    """A shard (i, n), the i-th of n, or None."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None:
            return None
        given = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else []
        if len(given) != 2 or not all(isinstance(each, Integral) for each in given):
            raise UsageError(f"{name} must be two numbers (i, n), not {kind_of(value)}")
        return check_shard(int(given[0]), int(given[1]))


@dataclass(frozen=True)
class OnEngine:
    """What computes the parts of a run elsewhere, or its name; None for this process."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is not None:
            engine_of(value)
        return value


@dataclass(frozen=True)
class Device:
    """A device that torch knows and this machine has; None for the usual one."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is not None:
            device_of(value)
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
        given = WholeNumbers(None).checked(name, value, model)
        return list(Knockout([0], [1], [0], given).placed(model, 2).heads or ())


@dataclass(frozen=True)
class Cells:
    """Pairs of a source and a target layer, each once; None for all with source > target."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None or model is None:
            return value
        given, last = as_list(value, name=name), model.n_layers - 1
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
    """Orders of documents, each once.

    Attributes:
        known: their names.
    """

    known: Sequence[str] = tuple(NAMES.split(", "))

    def checked(self, name: str, value: Any, model: TokenModel | None) -> list[Order]:
        given = as_list(value, name=name)
        if not given:
            raise UsageError(
                f"give a list of orders such as ['original', 'forward'], not {value!r}"
            )
        orders = [OneOrder().checked(f"each of {name}", order, model) for order in given]
        return list({order_name(order): order for order in orders}.values())


@dataclass(frozen=True)
class OneOrder:
    """An order of documents: a name, or a list of their indices."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Order:
        if isinstance(value, str):
            return value
        if isinstance(value, Sequence) and all(isinstance(each, Integral) for each in value):
            return value
        raise UsageError(
            f"{name} must be a name, such as 'forward', or a list of indices, not {kind_of(value)}"
        )


@dataclass(frozen=True)
class OneTemplate:
    """A template by name or as it is; None for the one that suits the questions.

    Attributes:
        known: the names.
    """

    known: Sequence[str] = tuple(TEMPLATES)

    def checked(self, name: str, value: Any, model: TokenModel | None) -> str | Template | None:
        if value is not None and not isinstance(value, Template):
            template_of(value if isinstance(value, str) else kind_of(value))
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Masks:
    """Masks by name or as they are; one alone is a list of one.

    Attributes:
        optional: whether it may be None, for the model's usual one.
        known: the names.
    """

    optional: bool = True
    known: Sequence[str] = tuple(MASKS)

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None and self.optional:
            return None
        given = as_list(value, str | Mask, name)
        if not given:
            raise UsageError("give at least one mask, such as 'causal'")
        named = [each if isinstance(each, str | Mask) else kind_of(each) for each in given]
        return [mask_of(each) for each in named]


@dataclass(frozen=True)
class Edges:
    """Edges of attention, `query->key`, each once.

    Attributes:
        spans: what the two ends may be; anything if there are none.
        optional: whether it may be None.
    """

    spans: Sequence[str] = ()
    optional: bool = False

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None and self.optional:
            return None
        given = as_list(value, name=name)
        if not given:
            raise UsageError(f"give a list of edges such as ['query->key'], not {value!r}")
        for edge in given:
            query, arrow, key = str(edge).partition("->")
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
    given = as_list(layers, Integral, "layers")
    wrong = [each for each in given if not _is_index(each, n_layers)]
    if wrong or not given:
        raise UsageError(
            f"layers are numbers from 0 to {n_layers - 1}; got {wrong[0] if wrong else 'none'}"
        )
    return list(dict.fromkeys(int(layer) for layer in given))


def _is_index(value: object, n: int) -> bool:
    return isinstance(value, Integral) and 0 <= int(value) < n
