"""Provides read(): prompts under masks; what prompts have in common is computed once.

What is computed of a segment (the instruction, a document, the question) depends on its tokens, on
what they see, and on how far away that lies. Segments in which all of this is the same are
computed once: under a causal mask the documents with which several orders begin (a prefix tree),
under a block mask each document, wherever it stands, its keys turned to the new place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from hopscope.documents.layout import Layout
from hopscope.engine.attention import KeysValues, MaskedCache, forward_streams
from hopscope.engine.hooks import masking
from hopscope.engine.sweep import CellOutputs, NextToken, ReadOut, free_memory, outputs_of
from hopscope.errors import ModelError, UsageError
from hopscope.masks.algebra import Mask
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import TokenModel

RATHER_ALIKE = 0.85
"""Rows of a batch are padded to the longest; shorter ones than this share of it wait."""


@dataclass(frozen=True)
class Version:
    """A prompt, and who sees whom in it."""

    layout: Layout
    mask: Mask


@dataclass(frozen=True)
class Readings:
    """What was read of each version.

    Attributes:
        outputs: next tokens and generations.
        masses: for each version, if asked for, the attention of single tokens to whole segments,
            shape (token, layer, head, segment). Token 0 is the prompt's last, the others are those
            that were generated; the segments are those of the layout, and what was generated.
    """

    outputs: CellOutputs
    masses: tuple[Float[Tensor, "token layer head segment"], ...] | None = None


@torch.no_grad()
def read(
    model: LanguageModel,
    versions: Sequence[Version],
    what: ReadOut,
    *,
    attention: bool = False,
    openings: Openings | None = None,
    max_memory: int | None = None,
) -> Readings:
    """Read prompts under masks: prefill with the mask, and decode after it, causally.

    What is generated sees of the prompt what the prompt's last token sees. Equal to
    `plain_read`, a masked forward of its own for each version, to float error.

    Args:
        model: the model.
        versions: the prompts; those of one question share the most.
        what: what to read.
        attention: also read how much attention goes to each segment.
        openings: keeps what was computed of instructions and demonstrations from call to call.
        max_memory: bytes that the rows may take; measured if None.

    Raises:
        ModelError: if attention is asked of a family whose attention cannot be replaced.
        UsageError: if a mask lets a token see nothing, or names a layer or head that is not there;
            for drawn tokens.
    """
    _check(model, versions, what)
    if not model.shares_prefixes:
        if attention:
            raise ModelError(f"{model.name} does not let its attention be read here")
        return Readings(plain_read(model, versions, what))
    plans = [_Plan(model, version) for version in versions]
    same: dict[object, list[int]] = {}
    for index, plan in enumerate(plans):
        same.setdefault(index if attention else plan.last.key, []).append(index)
    rows = [_Answer(plans[indices[0]], indices) for indices in same.values()]
    store = _Store(model, free_memory(model.device) if max_memory is None else max_memory)
    if openings is not None:
        store.kept |= openings.kept
    store.fill(_passes(rows, store.kept, keep_tails=not attention))
    if openings is not None:
        openings.take(plans, store.kept)
    return _Decoding(model, store, rows, what, attention).run(len(versions))


def _check(model: LanguageModel, versions: Sequence[Version], what: ReadOut) -> None:
    if what.draws is not None:
        raise UsageError("prompts under masks are decoded greedily: leave draws out")
    for version in versions:
        if max(version.mask.layers, default=0) >= model.n_layers:
            raise UsageError(
                f"the mask {version.mask.name!r} names layer {max(version.mask.layers)}, but the "
                f"model has layers 0 to {model.n_layers - 1}"
            )


def unavoidable_tokens(model: LanguageModel, versions: Sequence[Version]) -> int:
    """How many tokens have to be computed for some prompts, each shared one once.

    Args:
        model: the model.
        versions: the prompts.
    """
    units = {
        unit.key: len(unit.tokens)
        for plan in (_Plan(model, version) for version in versions)
        for unit in (*plan.needed, plan.last)
    }
    return sum(units.values())


@dataclass(frozen=True)
class _Unit:
    """Tokens that are computed together, as they stand in one version.

    Attributes:
        key: the same for all that compute the same.
        tokens: their places in the row.
        base: the position id of the first.
        seen: the other units that they see, in an order that does not depend on the version.
    """

    key: bytes
    tokens: np.ndarray
    base: int
    seen: tuple[_Unit, ...]


class _Plan:
    """One version, divided into units in an order in which each sees only earlier ones."""

    def __init__(self, model: LanguageModel, version: Version) -> None:
        self.layout = version.layout
        self.positions = np.array(self.layout.positions)
        self.ids = np.array(self.layout.ids)
        own: dict[int | None, int] = {}
        self.of_layer = []
        self.keeps: list[Tensor] = []
        for layer in range(model.n_layers):
            kind = layer if layer in version.mask.layers else None
            if kind not in own:
                own[kind] = len(self.keeps)
                self.keeps.append(version.mask.keep(self.layout, layer, model.n_heads))
            self.of_layer.append(own[kind])
        self.relative = model.rotary is not None
        self.units = self._divided()
        self.last = next(unit for unit in self.units if unit.tokens[-1] == len(self.layout) - 1)

    @cached_property
    def needed(self) -> list[_Unit]:
        """The units that the last token sees, or they see; itself only with others in its unit."""
        reached = {id(self.last): self.last}
        for unit in reversed(self.units):
            if id(unit) in reached:
                reached |= {id(each): each for each in unit.seen}
        alone = len(self.last.tokens) == 1
        return [
            each for each in self.units if id(each) in reached and not (alone and each is self.last)
        ]

    def _divided(self) -> list[_Unit]:
        segments = [range(*segment) for segment in self.layout.segments]
        whole = [tokens for tokens in segments if len(tokens)]
        parts = [*whole[:-1], whole[-1][:-1], whole[-1][-1:]]
        parts = [tokens for tokens in parts if len(tokens)]
        member = torch.zeros(len(self.layout), len(parts))
        for index, tokens in enumerate(parts):
            member[tokens.start : tokens.stop, index] = 1
        seen = torch.stack([keep.any(dim=0) for keep in self.keeps]).any(dim=0)
        sees = ((member.T @ seen.float() @ member) > 0).numpy()
        n, label = connected_components(sees, directed=True, connection="strong")
        members = [np.flatnonzero(label == each) for each in range(n)]
        graph = {
            group: sorted(
                {int(other) for other in label[sees[members[group]].any(axis=0)]} - {group}
            )
            for group in np.argsort([parts_of[0] for parts_of in members]).tolist()
        }
        made: dict[int, _Unit] = {}
        for group in TopologicalSorter(graph).static_order():
            places = np.concatenate([np.array(parts[each]) for each in members[group]])
            made[group] = self._unit(np.sort(places), [made[other] for other in graph[group]])
        return list(made.values())

    def _unit(self, tokens: np.ndarray, seen: list[_Unit]) -> _Unit:
        base = int(self.positions[tokens[0]])
        seen = sorted(seen, key=lambda unit: (unit.base - base, unit.key))
        digest = hashlib.blake2b(digest_size=16)
        digest.update(self.ids[tokens].tobytes())
        digest.update((self.positions[tokens] - (base if self.relative else 0)).tobytes())
        for unit in seen:
            digest.update(unit.key + (unit.base - base).to_bytes(8, "big", signed=True))
        keys = np.concatenate([*(unit.tokens for unit in seen), tokens])
        patterns = [_digest(keep[:, tokens][:, :, keys]) for keep in self.keeps]
        for which in self.of_layer:
            digest.update(patterns[which])
        return _Unit(digest.digest(), tokens, base, tuple(seen))


def _digest(seen: Tensor) -> bytes:
    if bool((seen == seen[:1]).all()):
        seen = seen[:1]
    packed = np.packbits(seen.numpy()).tobytes()
    return hashlib.blake2b(packed, digest_size=16, key=str(tuple(seen.shape)).encode()).digest()


@dataclass
class _Pass:
    """Units that one row computes at once, one after the other in one version."""

    plan: _Plan
    units: list[_Unit]

    @cached_property
    def tokens(self) -> np.ndarray:
        """The row's own tokens."""
        return np.concatenate([unit.tokens for unit in self.units])

    @cached_property
    def before(self) -> list[_Unit]:
        """The units that they see and that are not among them."""
        return _outside(self.units, self.units)

    @cached_property
    def places(self) -> np.ndarray:
        """The places of what comes before."""
        return _places(self.before)


@dataclass
class _Answer:
    """A row that is decoded, for all versions that cannot differ.

    Attributes:
        plan: of one of them.
        versions: their numbers.
        tail: the units that nobody else needs, which run in one pass with the last token.
    """

    plan: _Plan
    versions: list[int]
    tail: _Pass | None = None

    @cached_property
    def tokens(self) -> np.ndarray:
        """What is run: the tail, and the prompt's last token."""
        last = len(self.plan.layout) - 1
        tail = np.empty(0, dtype=np.int64) if self.tail is None else self.tail.tokens
        return tail if last in tail else np.append(tail, last)

    @cached_property
    def before(self) -> tuple[list[_Unit], int]:
        """The units that come before, and how many of their last tokens do not."""
        last, tail = self.plan.last, [] if self.tail is None else self.tail.units
        outside = _outside([*tail, last], [*tail, last])
        if len(last.tokens) > 1 and not any(unit is last for unit in tail):
            return [*outside, last], 1
        return outside, 0

    @cached_property
    def places(self) -> np.ndarray:
        """The places of what comes before."""
        units, less = self.before
        places = _places(units)
        return places[: len(places) - less]


def _outside(units: Sequence[_Unit], own: Sequence[_Unit]) -> list[_Unit]:
    """The units that some see, without `own`, each once."""
    seen = {id(each): each for unit in units for each in unit.seen}
    return [each for key, each in seen.items() if key not in {id(unit) for unit in own}]


class _Row(Protocol):
    """Tokens of one version that are run after others of it: `tokens` after `places`."""

    @property
    def plan(self) -> _Plan: ...
    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def places(self) -> np.ndarray: ...


R = TypeVar("R", bound=_Row)


@dataclass
class _Stored:
    """The keys and values of a unit by block, each of shape (kv_head, token, head_dim)."""

    base: int
    layers: list[KeysValues]


@dataclass
class Openings:
    """The keys and values of what prompts begin with: instructions, demonstrations.

    Attributes:
        most: how many are kept; the oldest goes first.
    """

    most: int = 16
    kept: dict[bytes, _Stored] = field(default_factory=dict)

    def take(self, plans: Sequence[_Plan], computed: Mapping[bytes, _Stored]) -> None:
        """Keep the opening of each plan."""
        for plan in plans:
            n_first = plan.layout.segments[0][1]
            first = next((unit for unit in plan.needed if unit.tokens[0] == 0), None)
            if first is None or first.seen or len(first.tokens) != n_first:
                continue
            if first.key in computed and first.key not in self.kept:
                own = computed[first.key]
                layers = [(keys.clone(), values.clone()) for keys, values in own.layers]
                self.kept[first.key] = _Stored(own.base, layers)
        while len(self.kept) > self.most:
            del self.kept[next(iter(self.kept))]


@dataclass
class _Store:
    """The keys and values of units, each computed once."""

    model: LanguageModel
    budget: int
    kept: dict[bytes, _Stored] = field(default_factory=dict)

    def fill(self, passes: Sequence[_Pass]) -> None:
        """Compute units, those of a level at once."""
        for level in _levels(passes):
            for chunk in self.chunks(level):
                self._compute(chunk)

    def chunks(self, rows: Sequence[R], more: int = 0) -> Iterator[list[R]]:
        """Rows that are about as long, as many as memory allows.

        Args:
            rows: what is to run.
            more: how many tokens are to come after each.
        """
        chunk: list[R] = []
        n_keys = 0
        for row in sorted(rows, key=lambda one: (-len(one.tokens), -len(one.places))):
            longest = len((chunk or [row])[0].tokens)
            n_keys = max(n_keys, len(row.places) + longest + more)
            needed = (len(chunk) + 1) * self.bytes_of(longest, n_keys)
            if chunk and (needed > self.budget or len(row.tokens) < RATHER_ALIKE * longest):
                yield chunk
                chunk, n_keys = [], len(row.places) + len(row.tokens) + more
            chunk.append(row)
        if chunk:
            yield chunk

    def bytes_of(self, n_queries: int, n_keys: int) -> int:
        """What a row takes: keys and values, the widest block, and its mask as numbers."""
        config, width = self.model.config, torch.finfo(self.model.dtype).bits // 8
        kv_heads = getattr(config, "num_key_value_heads", None) or self.model.n_heads
        states = 2 * self.model.n_layers * kv_heads * self.model.head_dim * n_keys
        inner = getattr(config, "intermediate_size", None) or 4 * self.model.d_model
        block = n_queries * (4 * inner + 8 * self.model.d_model)
        return (states + block) * width + 4 * self.model.n_heads * n_queries * n_keys

    def cache(
        self,
        rows: Sequence[tuple[Sequence[_Unit], int]],
        more: int,
        *,
        growing: bool = False,
        record_patterns: bool = False,
    ) -> MaskedCache:
        """A cache that holds the keys and values of the units of each row, padded on the left.

        Args:
            rows: for each row its units, and how many of their last tokens to leave out.
            more: how many tokens are to come.
            growing: whether they come in more than one pass.
            record_patterns: keep the attention weights of each pass.
        """
        lengths = [len(_places(units)) - less for units, less in rows]
        longest = max(lengths)
        moved = torch.zeros(len(rows), longest, dtype=torch.long)
        for row, ((units, _), length) in enumerate(zip(rows, lengths, strict=True)):
            by = [unit.base - self.kept[unit.key].base for unit in units]
            each = np.repeat(by, [len(unit.tokens) for unit in units])[:length]
            moved[row, longest - length :] = torch.as_tensor(each, dtype=torch.long)
        rotary = self.model.rotary if bool(moved.any()) else None
        angles = None if rotary is None else rotary.angles(moved)

        def past(layer: int) -> KeysValues:
            keys, values = (self._filled(rows, lengths, layer, part, more) for part in (0, 1))
            if rotary is not None and angles is not None:
                rotary.turn(keys[:, :, :longest], *angles(layer))
            return keys, values

        return MaskedCache(
            self.model.n_layers,
            past if longest else None,
            longest,
            more,
            growing=growing,
            record_patterns=record_patterns,
        )

    def _filled(
        self,
        rows: Sequence[tuple[Sequence[_Unit], int]],
        lengths: Sequence[int],
        layer: int,
        part: int,
        more: int,
    ) -> Tensor:
        """The keys (0) or values (1) of one block, with room for more."""
        like, longest = next(iter(self.kept.values())).layers[layer][part], max(lengths)
        filled = like.new_zeros(len(rows), like.shape[0], longest + more, like.shape[2])
        for row, ((units, _), length) in enumerate(zip(rows, lengths, strict=True)):
            start = longest - length
            for unit in units:
                stop = min(longest, start + len(unit.tokens))
                piece = self.kept[unit.key].layers[layer][part]
                filled[row, :, start:stop] = piece[:, : stop - start]
                start = stop
        return filled

    def _compute(self, chunk: Sequence[_Pass]) -> None:
        """Run some passes as the rows of one batch, padded on the left, and keep their units."""
        longest = max(len(each.tokens) for each in chunk)
        cache = self.cache([(each.before, 0) for each in chunk], longest)
        n_before = cache.get_seq_length()
        batch = _Batch.of(self.model, chunk, n_before)
        cache.visible, cache.positions = batch.visible, batch.positions
        forward_streams(self.model, cache, batch.ids, positions=batch.positions[:, n_before:])
        for row, each in enumerate(chunk):
            start = longest - len(each.tokens)
            for unit in each.units:
                stop = start + len(unit.tokens)
                layers = [
                    (keys[row, :, start:stop], values[row, :, start:stop])
                    for keys, values in filter(None, cache.own)
                ]
                self.kept[unit.key] = _Stored(unit.base, layers)
                start = stop


def _places(units: Sequence[_Unit]) -> np.ndarray:
    """The places of the tokens of some units, one unit after the other."""
    nothing = np.empty(0, dtype=np.int64)
    return np.concatenate([nothing, *(unit.tokens for unit in units)])


def _passes(rows: Sequence[_Answer], there: Container[bytes], keep_tails: bool) -> list[_Pass]:
    """What is to be computed for some rows, each unit once.

    A unit goes with the one before it in one pass if it sees it and the same rows need both.

    Args:
        rows: the rows.
        there: keys of units that are computed already.
        keep_tails: give a row its last pass as its `tail`, if no other row needs it.
    """
    users: dict[bytes, set[int]] = {}
    for index, row in enumerate(rows):
        for unit in row.plan.needed:
            users.setdefault(unit.key, set()).add(index)
    passes: list[_Pass] = []
    known: set[bytes] = set()
    for row in rows:
        before: _Unit | None = None
        for unit in row.plan.needed:
            if unit.key in known or unit.key in there:
                before = None
                continue
            known.add(unit.key)
            sees_it = before is not None and any(each is before for each in unit.seen)
            if before is None or not sees_it or users[unit.key] != users[before.key]:
                passes.append(_Pass(row.plan, []))
            passes[-1].units.append(unit)
            before = unit
        if keep_tails and before is not None and len(users[before.key]) == 1:
            row.tail = passes.pop()
    return passes


def _levels(passes: Sequence[_Pass]) -> list[list[_Pass]]:
    """The passes in groups, each of which needs only earlier groups."""
    level: dict[bytes, int] = {}
    groups: list[list[_Pass]] = []
    for each in passes:
        own = max((level.get(unit.key, 0) + 1 for unit in each.before), default=0)
        level |= {unit.key: own for unit in each.units}
        groups += [[] for _ in range(own + 1 - len(groups))]
        groups[own].append(each)
    return groups


@dataclass(frozen=True)
class _Batch:
    """Rows as tensors, padded on the left: what came before, and the rows' own tokens.

    Attributes:
        ids: shape (row, own token).
        positions: shape (row, key), of what came before and of the own tokens.
        visible: by block, shape (row, head or 1, own token, key), or None where it is causal and
            nothing came before. Padding sees itself.
    """

    ids: Tensor
    positions: Tensor
    visible: Mapping[int, Tensor | None]

    @classmethod
    def of(cls, model: LanguageModel, rows: Sequence[_Row], n_before: int) -> _Batch:
        n_own = max(len(row.tokens) for row in rows)
        ids = torch.zeros(len(rows), n_own, dtype=torch.long)
        positions = torch.zeros(len(rows), n_before + n_own, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index] = int(row.plan.ids[row.tokens[0]])  # a pad token would raise a warning
            ids[index, n_own - len(row.tokens) :] = torch.as_tensor(row.plan.ids[row.tokens])
            for end, places in ((n_before, row.places), (n_before + n_own, row.tokens)):
                at = torch.as_tensor(row.plan.positions[places])
                positions[index, end - len(places) : end] = at
        made: dict[tuple[int, ...], Tensor | None] = {}
        visible = {}
        for layer in range(model.n_layers):
            which = tuple(row.plan.of_layer[layer] for row in rows)
            if which not in made:
                keeps = [row.plan.keeps[each] for row, each in zip(rows, which, strict=True)]
                seen = _padded(keeps, rows, n_before, n_own)
                made[which] = None if _is_causal(seen) else seen.to(model.device)
            visible[layer] = made[which]
        return cls(ids.to(model.device), positions.to(model.device), visible)


def _padded(keeps: Sequence[Tensor], rows: Sequence[_Row], n_before: int, n_own: int) -> Tensor:
    """Who sees whom in a batch: booleans of shape (row, head or 1, own token, key)."""
    n_heads = max(len(keep) for keep in keeps)
    seen = torch.zeros(len(rows), n_heads, n_own, n_before + n_own, dtype=torch.bool)
    seen[..., n_before:] = torch.eye(n_own, dtype=torch.bool)
    for index, (keep, row) in enumerate(zip(keeps, rows, strict=True)):
        before, own = torch.as_tensor(row.places), torch.as_tensor(row.tokens)
        here = seen[index, :, n_own - len(own) :]
        here[..., n_before - len(before) : n_before] = keep[:, own][:, :, before]
        here[..., n_before + n_own - len(own) :] = keep[:, own][:, :, own]
    return seen


def _is_causal(seen: Tensor) -> bool:
    n_queries, n_keys = seen.shape[-2:]
    causal = torch.ones(n_queries, n_keys, dtype=torch.bool).tril()
    return 1 < n_queries == n_keys and bool((seen == causal).all())


@dataclass
class _Decoding:
    """Reads next tokens and generations off rows whose units are there."""

    model: LanguageModel
    store: _Store
    rows: Sequence[_Answer]
    what: ReadOut
    attention: bool

    def run(self, n_versions: int) -> Readings:
        """Decode all rows, and give every version what its row says."""
        next_token = NextToken.empty(n_versions, self.what)
        tokens: list[tuple[int, ...]] = [()] * n_versions
        masses: list[Tensor] = [torch.empty(0)] * n_versions
        for chunk in self.store.chunks(self.rows, self.what.max_new_tokens):
            generated, read = self._decode(chunk, next_token)
            for index, row in enumerate(chunk):
                for version in row.versions:
                    tokens[version] = generated[index]
                    if self.attention:
                        masses[version] = read[index]
        outputs = outputs_of(next_token, tokens)
        return Readings(outputs, tuple(masses) if self.attention else None)

    def _decode(
        self, rows: Sequence[_Answer], next_token: NextToken
    ) -> tuple[list[tuple[int, ...]], list[Tensor]]:
        """Run the tail and last token of each row, and then what it generates."""
        model, what = self.model, self.what
        longest = max(len(row.tokens) for row in rows)
        cache = self.store.cache(
            [row.before for row in rows],
            longest + what.max_new_tokens,
            growing=True,
            record_patterns=self.attention,
        )
        n_before = cache.get_seq_length()
        cells = np.array([version for row in rows for version in row.versions])
        of_row = np.repeat(np.arange(len(rows)), [len(row.versions) for row in rows])
        batch = _Batch.of(model, rows, n_before)
        ids, positions, visible = batch.ids, batch.positions, batch.visible
        member = _member(rows, n_before).to(model.device) if self.attention else None
        generated: list[list[int]] = [[] for _ in rows]
        open_rows = set(range(len(rows)))
        masses: list[Tensor] = []
        for step in range(max(1, what.max_new_tokens + self.attention)):
            if step:
                positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
                visible = _and_itself(visible, positions.shape[1])
            cache.visible, cache.positions = visible, positions
            at = positions[:, -ids.shape[1] :]
            logits = forward_streams(model, cache, ids, positions=at)
            if step == 0:
                next_token.read(logits, of_row, cells, what)
            if member is not None:
                masses.append(_masses(cache, member))
            if not open_rows or step == what.max_new_tokens:
                break
            ids = logits.argmax(dim=-1, keepdim=True)
            for row, token in enumerate(ids[:, 0].tolist()):
                if row in open_rows and not grown(model, generated[row], token, what):
                    open_rows.remove(row)
            if not open_rows and not self.attention:
                break
        tokens = [tuple(each) for each in generated]
        return tokens, _by_row(masses, tokens, rows)


def grown(model: TokenModel, generated: list[int], token: int, what: ReadOut) -> bool:
    """Add a token to a generation; whether it goes on."""
    if token in model.end_tokens:
        return False
    generated.append(token)
    return what.stop is None or not what.stop(tuple(generated))


def _and_itself(visible: Mapping[int, Tensor | None], n_keys: int) -> Mapping[int, Tensor | None]:
    """What the next generated token sees: what the one before saw, and itself."""
    grown: dict[int, Tensor] = {}
    for each in visible.values():
        if each is not None and id(each) not in grown:
            grown[id(each)] = functional.pad(each[:, :, -1:], (0, 1), value=True)
        elif each is None and id(None) not in grown:
            grown[id(None)] = torch.ones(1, 1, 1, n_keys, dtype=torch.bool)
    return {layer: grown[id(each)] for layer, each in visible.items()}


def _member(rows: Sequence[_Row], n_before: int) -> Tensor:
    """Which segment each key belongs to, as one-hot numbers of shape (row, key, segment)."""
    n_segments = max(len(row.plan.layout.segments) for row in rows)
    member = torch.zeros(len(rows), n_before + 1, n_segments + 1)
    for index, row in enumerate(rows):
        places = np.concatenate([row.places, row.tokens])
        segment = torch.as_tensor(row.plan.layout.segment_of[places])
        keys = torch.arange(n_before + 1 - len(places), n_before + 1)
        member[index, keys, segment] = 1
    return member


def _masses(cache: MaskedCache, member: Tensor) -> Tensor:
    """The attention of the last pass by segment, shape (layer, row, head, segment)."""
    assert cache.patterns is not None
    found = []
    for pattern in cache.patterns.values():
        weights, belongs = pattern[:, :, -1].float(), member.to(pattern.device)
        n_generated = weights.shape[-1] - belongs.shape[1]
        mass = weights[..., : belongs.shape[1]] @ belongs
        if n_generated:
            mass[..., -1] += weights[..., -n_generated:].sum(dim=-1)
        found.append(mass.to(member.device))
    return torch.stack(found)


def _by_row(
    masses: Sequence[Tensor], tokens: Sequence[tuple[int, ...]], rows: Sequence[_Answer]
) -> list[Tensor]:
    """For each row the masses of its last prompt token and of those that it generated."""
    if not masses:
        return []
    stacked = torch.stack(list(masses)).cpu()  # (step, layer, row, head, segment)
    found = []
    for index, row in enumerate(rows):
        n = len(row.plan.layout.segments)
        own = stacked[: 1 + len(tokens[index]), :, index]
        found.append(torch.cat([own[..., :n], own[..., -1:]], dim=-1))
    return found


@torch.no_grad()
def plain_read(model: LanguageModel, versions: Sequence[Version], what: ReadOut) -> CellOutputs:
    """The same as `read`, one masked forward of the whole prompt for each version.

    It is what the engine must equal, and what serves families whose attention cannot be replaced.
    """
    next_token = NextToken.empty(len(versions), what)
    tokens = []
    for index, version in enumerate(versions):
        layout = version.layout
        keeps = [version.mask.keep(layout, layer, model.n_heads) for layer in range(model.n_layers)]
        ids = torch.tensor([layout.ids], device=model.device)
        positions = torch.tensor([layout.positions], device=model.device)
        cache, generated = DynamicCache(), list[int]()  # without a configuration: all keys stay
        for step in range(max(1, what.max_new_tokens)):
            with masking(model, keeps, positions):
                output = model.hf(
                    input_ids=ids,
                    position_ids=positions[:, -ids.shape[1] :],
                    use_cache=True,
                    **{model.cache_argument: cache},
                )
            logits = output.logits[:, -1]
            if step == 0:
                next_token.read(logits, np.array([0]), np.array([index]), what)
            if not what.max_new_tokens:
                break
            token = int(logits.argmax(dim=-1))
            if not grown(model, generated, token, what):
                break
            ids = torch.tensor([[token]], device=model.device)
            positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
            keeps = [functional.pad(keep[:, -1:], (0, 1), value=True) for keep in keeps]
        tokens.append(tuple(generated))
    return outputs_of(next_token, tokens)
