"""Provides CallRecipe: the call of an analysis as JSON, from which another process makes it again.

What JSON does not have is tagged, so that a call that is read is the one that was written. What has
no such form (a function or an object of one's own) is refused.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache, cached_property
from numbers import Integral, Real
from pathlib import Path
from types import FunctionType
from typing import Any, Self

import torch

from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.errors import DamagedResultError, ResultError, UsageError, kind_of
from hopscope.experiments.registry import REGISTERED
from hopscope.files import replacing
from hopscope.models.reference import ModelReference, reference_of
from hopscope.models.token_model import TokenModel
from hopscope.queries.conditions import Condition
from hopscope.queries.load import BUNDLED_QUERY_SETS, load_queries
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.results.run_folder import RECIPE, read_run

UNREGISTERED = {
    "grade_until": "hopscope.experiments.two_hop.grading:grade_until",
    "auto_patch_by": "hopscope.experiments.two_hop.auto_patching:auto_patch_by",
}
"""Functions that are no analyses of their own and run in parts, too, by their addresses."""
OF_CALL = ("out", "shard", "progress", "on")
"""Keywords that say where and how a call is made, not what it asks."""
OF_TORCH = {"torch:logical_and": torch.logical_and, "torch:logical_or": torch.logical_or}
"""Functions of torch that masks are made with."""
Rows = QuerySet | QuestionSet


@dataclass(frozen=True)
class CallRecipe:
    """A call of an analysis.

    Attributes:
        analysis: its name in the registry, or in `UNREGISTERED`.
        module: where it is defined.
        model: what the model is loaded by.
        inputs: the queries or questions.
        arguments: the other arguments that were given, but for those in `OF_CALL`.
    """

    analysis: str
    module: str
    model: Any
    inputs: Rows
    arguments: Mapping[str, Any]

    @cached_property
    def reference(self) -> ModelReference:
        """What the model is loaded by."""
        return reference_of(self.model)

    @cached_property
    def _content(self) -> bytes | None:
        """What the file of the inputs holds; None if they go by a name."""
        written = _written_inputs(self.inputs)
        return None if written is None else gzip.compress(written.encode(), mtime=0)

    @cached_property
    def inputs_file(self) -> str | None:
        """What the file of the inputs is called."""
        content = self._content
        return None if content is None else _name_of(content)

    def told(self) -> dict[str, Any]:
        """The recipe as JSON.

        Raises:
            UsageError: for an argument that cannot be told.
        """
        if self.module == "__main__":
            raise UsageError(
                f"{self.analysis} is defined in a script or notebook, where no other process finds "
                "it: move it into a module that can be imported"
            )
        named = {
            "source": self.inputs.name,
            "few_shot": self.inputs.few_shot,
            "few_shot_seed": self.inputs.few_shot_seed,
        }
        return {
            "analysis": self.analysis,
            "module": self.module,
            "model": self.reference.as_json(),
            "inputs": {
                **({"file": self.inputs_file} if self.inputs_file else named),
                "sha256": self.inputs.fingerprint,
            },
            "arguments": {name: _told(name, value) for name, value in self.arguments.items()},
        }

    def as_json(self) -> dict[str, Any]:
        """What a run's record says: the recipe, or why there is none, as `refused`."""
        try:
            return self.told()
        except UsageError as error:
            return {"refused": str(error)}

    def write_inputs(self, folder: Path) -> None:
        """Write the inputs into a run folder, unless they are there or go by a name."""
        name, content = self.inputs_file, self._content
        if name and content and not (folder / name).exists():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)

    @property
    def files(self) -> dict[str, bytes]:
        """The files that the recipe names, with what they hold."""
        return {str(self.inputs_file): self._content} if self._content else {}


@dataclass(frozen=True)
class ReadRecipe:
    """A recipe that was written.

    Attributes:
        record: the recipe as JSON.
        files: the files that it names, with what they hold.
    """

    record: Mapping[str, Any]
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The recipe of a run folder.

        Raises:
            ResultError: if it has none, or one that cannot be used elsewhere.
            DamagedResultError: if a file that it names is missing.
        """
        record = read_run(folder).get(RECIPE)
        if not isinstance(record, Mapping):
            raise ResultError(
                f"{folder} does not say by which call it is made: it was begun by an earlier "
                "version of hopscope, or by no analysis. Call the analysis with it as out to go on"
            )
        if "refused" in record:
            raise ResultError(
                f"{folder} can be computed by its own call alone: {record['refused']}"
            )
        name = record["inputs"].get("file")
        try:
            files = {name: (folder / name).read_bytes()} if name else {}
        except OSError as error:
            raise DamagedResultError(
                f"{folder / name} cannot be read: {error.strerror}. Call the analysis with "
                f"{folder} as out, which writes it again"
            ) from error
        return cls(record, files)

    @property
    def model(self) -> ModelReference:
        """What the model is loaded by."""
        return ModelReference.read(self.record["model"])

    @property
    def function(self) -> Callable[..., Any]:
        """What is called.

        Raises:
            ResultError: if it is not there.
        """
        name = self.record["analysis"]
        if name in UNREGISTERED:
            return pkgutil.resolve_name(UNREGISTERED[name])  # type: ignore[no-any-return]
        try:
            importlib.import_module(self.record["module"])
            return REGISTERED[name].function  # type: ignore[no-any-return]
        except (ImportError, KeyError):
            raise ResultError(
                f"the analysis {name!r} of {self.record['module']} cannot be imported here; "
                "install what defines it"
            ) from None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments but for model and inputs."""
        return {name: _read(value) for name, value in self.record["arguments"].items()}

    def inputs(self, model: TokenModel) -> Rows:
        """The queries or questions.

        Raises:
            DamagedResultError: if they are not those that were written.
        """
        told = self.record["inputs"]
        if "file" in told:
            content = self.files[told["file"]]
            if _name_of(content) != told["file"]:
                raise DamagedResultError(f"{told['file']} was changed since the run was begun")
            found = _read_inputs(json.loads(gzip.decompress(content)), model)
        else:
            named = load_queries(told["source"])
            found = named.with_few_shot(told["few_shot"], told["few_shot_seed"])
        if found.fingerprint != told["sha256"]:
            raise DamagedResultError(
                f"the inputs {found.name} are not those of the run: another version of hopscope "
                "brings others, or the file was changed"
            )
        return found


def recipe_of(name: str, module: str, given: dict[str, Any]) -> CallRecipe:
    """The recipe of a call.

    Args:
        name: of the analysis.
        module: where it is defined.
        given: the arguments by name, the model and the inputs first. Iterators among them become
            lists, in place, since they can be read once.
    """
    for argument, value in given.items():
        if hasattr(value, "__next__"):
            given[argument] = list(value)
    (_, model), (_, inputs), *own = given.items()
    return CallRecipe(name, module, model, inputs, {k: v for k, v in own if k not in OF_CALL})


def _name_of(content: bytes) -> str:
    """What a file of inputs is called."""
    return f"inputs-{hashlib.sha256(content).hexdigest()}.json.gz"


def _told(name: str, value: Any) -> Any:
    """An argument as JSON.

    Raises:
        UsageError: if it cannot be told, or would be another one when it is read.
    """
    told = _tagged(name, value)
    read = _read(json.loads(json.dumps(told)))
    if read != value or _tagged(name, read) != told:
        raise _refusal(name, value)
    return told


def _tagged(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, list):
        return [_tagged(name, each) for each in value]
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if type(value) in (tuple, frozenset):
        tag = type(value).__name__
        return {tag: [_tagged(name, each) for each in value]}
    if isinstance(value, Mapping):
        return {"mapping": [[_tagged(name, each) for each in pair] for pair in value.items()]}
    if isinstance(value, Path):
        return {"path": str(value)}
    known = next((key for key, each in OF_TORCH.items() if each is value), None)
    if known is not None:
        return {"function": known}
    kind = value if isinstance(value, FunctionType) else type(value)
    if not _is_of_package(kind):
        raise _refusal(name, value)
    address = f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(value, FunctionType):
        return {"function": address}
    held = _fields(type(value))
    if held is None:
        raise _refusal(name, value)
    told = {each: _tagged(name, getattr(value, each)) for each in held}
    return {"dataclass": address, "fields": told}


def _fields(kind: type) -> list[str] | None:
    """What a dataclass or a named tuple is made of; None if a class is neither."""
    if is_dataclass(kind):
        return [each.name for each in fields(kind) if each.init]
    return list(kind._fields) if issubclass(kind, tuple) and hasattr(kind, "_fields") else None


def _is_of_package(kind: Any) -> bool:
    """Whether a class or function is one of hopscope's that can be imported."""
    return str(kind.__module__).startswith("hopscope.") and "<" not in kind.__qualname__


def _refusal(name: str, value: Any) -> UsageError:
    return UsageError(
        f"{name} holds {kind_of(value)}, which only this process has: beyond it go names, numbers, "
        "lists, and what hopscope itself makes of these"
    )


def _read(told: Any) -> Any:
    """What `_tagged` has told."""
    if isinstance(told, list):
        return [_read(each) for each in told]
    if not isinstance(told, Mapping):
        return told
    if "range" in told:
        return range(*told["range"])
    if "tuple" in told:
        return tuple(_read(each) for each in told["tuple"])
    if "frozenset" in told:
        return frozenset(_read(each) for each in told["frozenset"])
    if "mapping" in told:
        return {_read(key): _read(value) for key, value in told["mapping"]}
    if "path" in told:
        return Path(told["path"])
    address = str(told.get("function") or told.get("dataclass"))
    if address in OF_TORCH:
        return OF_TORCH[address]
    found = pkgutil.resolve_name(address) if address.startswith("hopscope.") else None
    if "function" in told and isinstance(found, FunctionType) and _is_of_package(found):
        return found
    if "dataclass" in told and isinstance(found, type) and _fields(found) is not None:
        return found(**{key: _read(value) for key, value in told["fields"].items()})
    raise ResultError(f"the recipe of the run names {address!r}, which is no part of hopscope")


def _written_inputs(inputs: Rows) -> str | None:
    """Inputs as JSON, each row once; None for a bundled set as a whole."""
    rows = inputs.queries if isinstance(inputs, QuerySet) else inputs.questions
    chat = inputs.chat if isinstance(inputs, QuerySet) else None
    source = inputs.name if _is_bundled(inputs) else None
    condition = inputs.condition if isinstance(inputs, QuerySet) else None
    if source and len(rows) == len(inputs.pool) and chat is None and condition is None:
        return None
    numbers = {id(each): index for index, each in enumerate(inputs.pool)}
    others = [each for each in rows if id(each) not in numbers]
    numbers |= {id(each): len(inputs.pool) + index for index, each in enumerate(others)}
    content = {
        "kind": "queries" if isinstance(inputs, QuerySet) else "questions",
        "name": inputs.name,
        "few_shot": inputs.few_shot,
        "few_shot_seed": inputs.few_shot_seed,
        "source": source,
        "rows": [asdict(each) for each in ([] if source else [*inputs.pool, *others])],
        "pool": len(inputs.pool),
        "chosen": [numbers[id(each)] for each in rows],
        "chat": chat
        and {"instruction": chat.instruction, "prefill": chat.prefill, "system": chat.system},
        **({} if condition is None else {"condition": asdict(condition)}),
    }
    return json.dumps(content, ensure_ascii=False, default=str)


def _is_bundled(inputs: Rows) -> bool:
    """Whether inputs were chosen from a bundled set of queries, and nothing else."""
    if not isinstance(inputs, QuerySet) or inputs.name not in BUNDLED_QUERY_SETS:
        return False
    of_pool = {id(each) for each in inputs.pool}
    chosen_from_it = all(id(each) in of_pool for each in inputs.queries)
    return chosen_from_it and _bundled(inputs.name) == inputs.pool


@cache
def _bundled(name: str) -> tuple[Query, ...]:
    return load_queries(name).queries


def _read_inputs(content: Mapping[str, Any], model: TokenModel) -> Rows:
    """What `_written_inputs` has written."""
    few_shot = {name: content[name] for name in ("name", "few_shot", "few_shot_seed")}
    if content["kind"] == "questions":
        questions = [_question(row) for row in content["rows"]]
        pool, chosen = questions[: content["pool"]], [questions[each] for each in content["chosen"]]
        return QuestionSet(tuple(chosen), pool=tuple(pool), **few_shot)
    queries = [_query(row) for row in content["rows"]]
    if content["source"]:
        queries = list(_bundled(content["source"]))
    picked = tuple(queries[each] for each in content["chosen"])
    condition = Condition(**content["condition"]) if "condition" in content else None
    found = QuerySet(
        picked, condition=condition, pool=tuple(queries[: content["pool"]]), **few_shot
    )
    return found if content["chat"] is None else found.with_chat(model, **content["chat"])


def _query(row: Mapping[str, Any]) -> Query:
    given = {name: _tuples(value) for name, value in row.items()}
    return MultiHopQuery(**given) if "labels" in row else TwoHopQuery(**given)


def _tuples(value: Any) -> Any:
    """A value in which lists are tuples, as they were before they were written."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _question(row: Mapping[str, Any]) -> MultiDocQuestion:
    documents = tuple(Document(**each) for each in row["documents"])
    hops = tuple(Hop(**each) for each in row["hops"])
    return MultiDocQuestion(**{**row, "documents": documents, "hops": hops})
