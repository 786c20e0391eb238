"""Provides the attention operations of one prompt with a graph, and what they depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopscope.engine.attention import forward_streams
from hopscope.engine.cache import PassPlan, Prefix, StreamCache
from hopscope.engine.finite import refuse_not_finite
from hopscope.engine.hooks import rewriting_residual
from hopscope.engine.read_out import is_finite
from hopscope.errors import QueryError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.queries.graph_paths import PathPrompt, reachable

PER_PART = 8


TOKENS_AT_ONCE = 16_384


SCORES_AT_ONCE = 2**26


OTHER_PLACES = 12
"""To which a token is moved at most, where its place is given by its position id alone."""


ADDED = 1e-3
"""Share of what words add to the states above which places are held to be added, too."""


Signs = Literal["positive", "both", "fewer"]
SIGNS: tuple[Signs, ...] = ("positive", "both", "fewer")
"""Which operations are looked for: those that are needed; also those that must not be stronger; of
both in a block, by each measure, those of which there are fewer, as in the paper's code."""


class Operation(NamedTuple):
    """Attention of a head of a block to a token from an earlier one.

    Its sign is 1 if it is needed, and -1 if it must not be strong.
    """

    layer: int
    head: int
    to: int
    source: int
    sign: int = 1


@dataclass(frozen=True)
class Thresholds:
    """What counts as a fall. The published ones; a score is a product of query and key over √d.

    An operation is taken away as by an attention knock-out: what it weighed goes to the other keys,
    where the paper's code sets its weight to 0.

    Attributes:
        logit: an operation is important if the answer's logit falls by more without it.
        score: so is one without which the score of an important operation of a later block falls
            by more (√d/20 of the product). The paper looks at those of the last block alone, in
            which its models decide; a model may have decided before.
        dependence: it depends on a word or place without which its score falls by more (√d/10).

    Raises:
        UsageError: for one that is negative.
    """

    logit: float = 0.4
    score: float = 0.05
    dependence: float = 0.1

    def __post_init__(self) -> None:
        for name in ("logit", "score", "dependence"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} must be 0 or more, not {getattr(self, name)}")


@dataclass(frozen=True)
class _Versions:
    """Versions of a prompt, a row each; by default it alone, as it is.

    Attributes:
        changed: an operation in each row, all of one block and sign: it is knocked out, or, if its
            sign is -1, made as strong as its key's strongest in that head.
        added: what is added to the states before the first block.
        positions: the position ids of the tokens.
    """

    changed: Sequence[Operation] = ()
    added: Float[Tensor, "row token d_model"] | None = None
    positions: Int[Tensor, "row token"] | None = None

    @property
    def n_rows(self) -> int:
        given = (each for each in (self.changed, self.added, self.positions) if each is not None)
        return max(1, *(len(each) for each in given))

    def part(self, rows: slice) -> _Versions:
        """Some of the versions."""
        return _Versions(
            self.changed[rows],
            None if self.added is None else self.added[rows],
            None if self.positions is None else self.positions[rows],
        )


class _Passed(NamedTuple):
    """What passes over one prompt gave."""

    answer: Float[Tensor, " row"]
    """The logit of the answer."""
    said: Int[Tensor, " row"]
    """The likeliest token."""
    scores: Float[Tensor, "row operation"]
    """The scores of the operations that were asked for."""


class OperationSearch:
    """The operations of one prompt."""

    def __init__(
        self,
        model: LanguageModel,
        prompt: PathPrompt,
        thresholds: Thresholds,
        signs: Signs = "positive",
    ) -> None:
        self.model, self.prompt, self.thresholds, self.signs = model, prompt, thresholds, signs
        encoded = model.encode(prompt.text)
        self.ids = torch.tensor(encoded.ids, device=model.device)
        self.n = len(encoded.ids)
        self.words = [encoded.text[start:stop].strip() for start, stop in encoded.offsets]
        places = [prompt.start, prompt.goal, *(place for edge in prompt.edges for place in edge)]
        wrong = [place for place in places if place >= self.n or not self.words[place]]
        if wrong:
            raise QueryError(
                f"path prompt {prompt.id!r} has no vertex at place {wrong[0]}; its {self.n} "
                f"tokens, special ones included, are {self.tokens}"
            )
        answers = model.first_tokens([prompt.answer])
        if not answers:
            raise QueryError(f"path prompt {prompt.id!r} has no answer")
        self.answer = answers[0]
        self.strongest: dict[int, Float[Tensor, "head key"]] = {}
        self.clean, self.clean_scores = self._run(_Versions())
        if not bool(is_finite(self.clean).all()):
            refuse_not_finite(model, "logits", encoded.ids)

    @property
    def tokens(self) -> str:
        """The tokens, one space between; a dot for one without text."""
        return " ".join(word or "·" for word in self.words)

    def tables(self) -> tuple[pd.DataFrame, dict[str, object]]:
        """The rows of the frame, and the row of the details."""
        drops = self._important()
        operations = sorted(drops)
        words, places = self._dependences(operations)
        explained, merged = self._merged(operations, words, places)
        rows = [
            {
                "query": self.prompt.id,
                "layer": each.layer,
                "head": each.head,
                "to_token": each.to,
                "from_token": each.source,
                "sign": each.sign,
                "logit_drop": drops[each][0],
                "score_drop": drops[each][1],
                "words": " ".join(map(str, words[each])),
                "places": " ".join(map(str, places[each])),
                "explained": each in explained,
            }
            for each in operations
        ]
        said = int(self.clean.argmax())
        details = {
            "query": self.prompt.id,
            "group": self.prompt.group,
            "prompt": self.prompt.text,
            "tokens": self.tokens,
            "answer": self.prompt.answer,
            "said": self.model.decode([said]).strip(),
            "correct": said == self.answer,
            "n_operations": len(operations),
            "n_explained": len(explained),
            **self._joined(merged),
        }
        return pd.DataFrame(rows, columns=list(TYPES)).astype(TYPES), details

    @torch.no_grad()
    def _run(self, versions: _Versions) -> tuple[Float[Tensor, "row vocab"], Mapping[int, Tensor]]:
        """The logits after the prompt, and by block the scores (row, head, query, key)."""
        added, changed = versions.added, versions.changed

        def rewrite(boundary: int, hidden: Tensor) -> Tensor | None:
            return None if boundary or added is None else hidden + added.to(hidden)

        n_layers, clean = self.model.n_layers, not self.strongest
        cache = StreamCache(Prefix(), n_layers, record_patterns=clean, record_scores=True)
        plan = PassPlan(positions=versions.positions)
        if changed and changed[0].sign > 0:
            plan = replace(plan, blocked={changed[0].layer: self._edges(changed)})
        elif changed:
            plan = replace(plan, weights={changed[0].layer: self._strong(changed)})
        with rewriting_residual(self.model, rewrite):
            rows = self.ids.expand(versions.n_rows, -1)
            logits = forward_streams(self.model, cache, rows, plan)
        assert cache.scores is not None
        if cache.patterns is not None:
            own = cache.patterns.items()
            self.strongest = {layer: each[0].amax(dim=1) for layer, each in own}
        return logits.float(), cache.scores

    def _passes(self, versions: _Versions, at: Sequence[Operation]) -> _Passed:
        """Run many versions, as many at once as there is room for, and read some scores."""
        own = self.model.n_layers * self.model.n_heads * self.n * self.n
        at_once = max(1, min(TOKENS_AT_ONCE // self.n, SCORES_AT_ONCE // own))
        parts = []
        for start in range(0, versions.n_rows, at_once):
            logits, scores = self._run(versions.part(slice(start, start + at_once)))
            parts.append(
                _Passed(logits[:, self.answer], logits.argmax(-1), _at(scores, at, logits))
            )
        return _Passed(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def _falls(
        self, versions: _Versions, at: Sequence[Operation]
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, "row operation"]]:
        """How far the answer's logit falls in versions of the prompt, and some scores.

        The score of an operation that must not be strong is worse where it rises.
        """
        passed = self._passes(versions, at)
        clean = _at(self.clean_scores, at, self.clean)
        falls = (clean - passed.scores) * clean.new_tensor([each.sign for each in at])
        return self.clean[:, self.answer] - passed.answer, falls

    def _important(self) -> dict[Operation, tuple[float, float]]:
        """Important operations, with the falls of the answer's logit and of later scores."""
        found: dict[Operation, tuple[float, float]] = {}
        read = {self.n - 1}
        for layer in reversed(range(self.model.n_layers)):
            tried = [
                Operation(layer, head, to, source)
                for to in sorted(read)
                for head in range(self.model.n_heads)
                for source in range(to)
            ]
            if not tried:
                continue
            found |= self._of_block(tried, list(found))
            read |= {each.source for each in found if each.layer == layer}
        return found

    def _of_block(
        self, tried: Sequence[Operation], later: Sequence[Operation]
    ) -> dict[Operation, tuple[float, float]]:
        """The important ones of some operations of one block, given those of later blocks."""
        signs = [1] if self.signs == "positive" else [1, -1]
        versions = [[each._replace(sign=sign) for each in tried] for sign in signs]
        measured = [self._falls(_Versions(each), later) for each in versions]
        falls = torch.stack([torch.cat([a[:, None], b], dim=1) for a, b in measured])
        limits = torch.full_like(falls[0, 0], self.thresholds.score)
        limits[0] = self.thresholds.logit
        fell = falls > limits  # (sign, operation, measure): the logit, and each score
        if self.signs == "fewer":
            fell &= _fewer(fell.sum(dim=1))[:, None]
        important = fell.any(dim=2)
        important[1:] &= ~important[0]  # what is needed is not negative, too
        most = falls[:, :, 1:].amax(dim=2) if later else torch.zeros_like(falls[:, :, 0])
        return {
            versions[sign][at]: (float(falls[sign, at, 0]), float(most[sign, at]))
            for sign, at in important.nonzero().tolist()
        }

    def _edges(self, operations: Sequence[Operation]) -> Bool[Tensor, "row head query key"]:
        """For each operation its own edge."""
        shape = len(operations), self.model.n_heads, self.n, self.n
        edges = torch.zeros(shape, dtype=torch.bool, device=self.model.device)
        _, head, to, source, _ = torch.tensor(operations).T
        edges[torch.arange(len(operations)), head, to, source] = True
        return edges

    def _strong(self, operations: Sequence[Operation]) -> Float[Tensor, "row head query key"]:
        """For each operation the weights that it changes: its own, to the key's largest.

        The others stay, as in the paper's code.
        """
        strongest = self.strongest[operations[0].layer][:, None]
        return torch.where(self._edges(operations), strongest, torch.nan)

    def _dependences(
        self, operations: Sequence[Operation]
    ) -> tuple[dict[Operation, list[int]], dict[Operation, list[int]]]:
        """The tokens on whose word, and on whose place, the score of each operation depends."""
        if not operations:
            return {}, {}
        words, places = self._starts()
        in_states = places.abs().max() > ADDED * words.abs().max()
        falls = (
            self._changed(operations, words),
            self._changed(operations, places) if in_states else self._moved(operations),
        )
        of_words, of_places = (
            {
                each: (column > self.thresholds.dependence).nonzero().flatten().tolist()
                for each, column in zip(operations, fall.cpu().T, strict=True)
            }
            for fall in falls
        )
        return of_words, of_places

    def _changed(
        self, operations: Sequence[Operation], away: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token operation"]:
        """How far scores fall when something is added to the state of each token at the start."""
        token = torch.arange(self.n)
        added = away.new_zeros(self.n, *away.shape)
        added[token, token] = away
        return self._falls(_Versions(added=added), operations)[1]

    def _moved(self, operations: Sequence[Operation]) -> Float[Tensor, "token operation"]:
        """How far scores fall, on average, when each token stands at other tokens' places.

        What it sees and what sees it stays as it was.
        """
        here = torch.arange(self.n, device=self.ids.device)
        n_others = min(self.n - 1, OTHER_PLACES)
        others = torch.linspace(0, self.n - 2, n_others, device=here.device).round().long()
        others = others + (others >= here[:, None])  # without its own place
        positions = here.repeat(self.n, n_others, 1)
        positions[here, :, here] = others
        _, falls = self._falls(_Versions(positions=positions.flatten(0, 1)), operations)
        return falls.view(self.n, n_others, -1).mean(dim=1)

    @torch.no_grad()
    def _starts(self) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
        """What turns each token's state at the start into one of no word, or of no place.

        The word becomes the mean of the other words of the prompt in that place, and the place the
        mean of the other places with that word.
        """
        kinds, own = torch.unique(self.ids, return_inverse=True)
        states: list[Tensor] = []

        def keep(boundary: int, hidden: Tensor) -> None:
            if not boundary:
                states.append(hidden)

        with rewriting_residual(self.model, keep):
            rows = kinds[:, None].expand(-1, self.n)
            forward_streams(self.model, StreamCache(Prefix(), self.model.n_layers), rows)
        table, token = states[0].float(), torch.arange(self.n, device=self.ids.device)
        here = table[own, token]
        others = (table.sum(dim=0) - here) / max(1, len(kinds) - 1)
        elsewhere = (table.sum(dim=1)[own] - here) / max(1, self.n - 1)
        return others - here, elsewhere - here

    def _merged(
        self,
        operations: Sequence[Operation],
        words: Mapping[Operation, Sequence[int]],
        places: Mapping[Operation, Sequence[int]],
    ) -> tuple[set[Operation], set[str]]:
        """The explained operations, and the vertices that the last token holds in the end.

        Negative ones are explained and merge as the others do, as in the paper's code.
        """
        held = [{word} for word in self.words]
        explained = set()
        for layer in range(self.model.n_layers):
            before = [set(each) for each in held]
            for each in operations:
                if each.layer != layer:
                    continue
                shared = before[each.to] & before[each.source]
                met = any(self.words[token] in shared for token in words[each])
                if met or {each.to, each.source} <= set(places[each]):
                    explained.add(each)
                    held[each.to] |= before[each.source]
        return explained, held[-1]

    def _joined(self, merged: set[str]) -> dict[str, bool]:
        """Whether edges between merged vertices lead to the goal, or elsewhere as far away."""
        edges = [(self.words[a], self.words[b]) for a, b in self.prompt.edges]
        start, goal = self.words[self.prompt.start], self.words[self.prompt.goal]
        steps = reachable(edges, start)

        def as_far(vertex: str) -> set[str]:
            return {each for each, n in reachable(edges, vertex).items() if n == steps.get(goal)}

        others = {start: as_far(start) - {goal}}
        if not others[start]:
            elsewhere = {vertex for vertex, _ in edges} - set(steps)
            others = {vertex: as_far(vertex) - set(steps) for vertex in elsewhere}
        held = [edge for edge in edges if {*edge} <= merged]
        return {
            "joined": goal in reachable(held, start),
            "joined_other": any(ends & set(reachable(held, a)) for a, ends in others.items()),
        }


def _at(
    scores: Mapping[int, Tensor], operations: Sequence[Operation], logits: Tensor
) -> Float[Tensor, "row operation"]:
    """The scores of some operations, in a tensor like the logits."""
    found = logits.new_zeros(len(logits), len(operations))
    for column, (layer, head, to, source, _) in enumerate(operations):
        found[:, column] = scores[layer][:, head, to, source]
    return found


def _fewer(counts: Int[Tensor, "sign measure"]) -> Bool[Tensor, "sign measure"]:
    """For each measure the sign of which there are fewer operations, if there are any.

    Of as many of both, those that are needed.
    """
    needed, strong = counts
    first = (needed > 0) & (needed <= strong) | (strong == 0)
    return torch.stack([first, ~first])


TYPES = {
    "query": "str",
    **dict.fromkeys(("layer", "head", "to_token", "from_token", "sign"), "int64"),
    **dict.fromkeys(("logit_drop", "score_drop"), "float64"),
    **dict.fromkeys(("words", "places"), "str"),
    "explained": "bool",
}
"""The columns of the frame; a prompt without operations has them, too."""
