"""Provides TokenizedPrompt: a prompt as one model's tokens, with its named positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hopscope.errors import QueryError, of_type, one_of, whole_number
from hopscope.models.language_model import LanguageModel
from hopscope.queries.prompts import Prompt, token_position, token_span
from hopscope.queries.query import MAX_HOPS, POSITIONS


def spans_of(n_hops: int) -> tuple[str, ...]:
    """The parts of a prompt of n hops that `TokenizedPrompt.tokens` gives."""
    hops = range(1, n_hops + 1)
    ends, relations, words = ([f"{kind}{k}{what}" for k in hops] for kind, what in _OF_HOPS)
    return (*ends, "e1", *relations, *words, "before", "few_shot")


_OF_HOPS = (("t", ""), ("r", ""), ("r", "_word"))
SPANS = spans_of(MAX_HOPS)
"""Those of prompts of any number of hops."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """The tokens of a prompt.

    Attributes:
        prompt: the prompt.
        ids: its tokens, special ones included.
        offsets: the character range of each token.
        special: number of special tokens before the text, which belong to no part of it.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    special: int = 0

    @classmethod
    def of(cls, model: LanguageModel, prompt: Prompt | str, room: int = 0) -> TokenizedPrompt:
        """Tokenise a prompt, leaving `room` tokens of context for what is generated.

        Raises:
            UsageError: if it is empty or too long for the model's context.
        """
        of_type("prompt", prompt, str | Prompt, "such as queries.prompts() gives", QueryError)
        if isinstance(prompt, str):
            prompt = Prompt(prompt, query_id="", form="two_hop", spans={"t2": (0, len(prompt))})
        encoded = model.encode(prompt.text, room, special=not prompt.chat)
        return cls(prompt, encoded.ids, encoded.offsets, encoded.special)

    @property
    def n_shared(self) -> int:
        """Number of tokens that lie before the question; never the last token."""
        inside = 0
        while inside < len(self.ids) - 1 and self.offsets[inside][1] <= self.prompt.few_shot:
            inside += 1
        return inside if self.prompt.few_shot else 0

    @property
    def shared(self) -> tuple[int, ...]:
        """The tokens before the question."""
        return self.ids[: self.n_shared]

    def position(self, name: str | int) -> int:
        """The index of a token: the last one of a named span, or a number as in a list.

        Raises:
            QueryError: if there is no such span or token.
        """
        if isinstance(name, str):
            return token_position(self.prompt, name, self.offsets)
        whole_number("the place of a token", name, error=QueryError)
        if not -len(self.ids) <= name < len(self.ids):
            raise QueryError(f"no token {name}: {self.prompt.text!r} has {len(self.ids)} tokens")
        return name % len(self.ids)

    def tokens(self, name: str) -> tuple[int, ...]:
        """The indices of the tokens of a named part, in their order; there may be none.

        Args:
            name: `t1`, `t2`, …: the last token of each hop's phrase, the last one of the prompt;
                `e1`: the source entity; `r1`, `r2`, …: what a hop's phrase adds to the one before,
                the last one but the prompt's last token; `r1_word`, `r2_word`, …: the last token of
                the third word from the end of a relation's template, where it has so many, which
                the code of Hopping Too Late takes for the relation; `before`: all tokens but the
                last; `few_shot`: the demonstrations, and in a chat the turns before.

        Raises:
            QueryError: for another name, or a prompt without that part.
        """
        one_of("span", name, spans_of(self.n_hops), QueryError)
        last = len(self.ids) - 1
        if name.startswith("t"):
            return (self.position(name),)
        if name.endswith("_word"):
            return (self.position(name),) if name in self.prompt.spans else ()
        if name == "before":
            return tuple(range(last))
        if name == "few_shot":
            return tuple(range(self.n_shared))
        if name == "e1":
            return tuple(self._span("e1"))
        hop = int(name[1:])
        inner = self._span("e1" if hop == 1 else self._phrase(hop - 1))
        if hop < self.n_hops:
            whole: Sequence[int] = self._span(self._phrase(hop))
        else:
            whole = self.question
        return tuple(index for index in whole if index not in inner)

    @property
    def question(self) -> list[int]:
        """The indices of the tokens of the question, but for the prompt's last token."""
        start, end = max(self.n_shared, self.special), len(self.prompt.text) - self.prompt.after
        inside = range(start, len(self.ids) - 1)
        return [index for index in inside if self.offsets[index][0] < end]

    @property
    def n_hops(self) -> int:
        """How many hops the question of the prompt has, by its positions."""
        return max(int(name[1:]) for name in self.prompt.spans if name in POSITIONS)

    @staticmethod
    def _phrase(hop: int) -> str:
        """The span of the phrase of a hop."""
        return "r1e1" if hop == 1 else f"t{hop}"

    def _span(self, name: str) -> range:
        return range(*token_span(self.prompt, name, self.offsets))


def by_prefix(prompts: Sequence[TokenizedPrompt], most: int) -> list[list[int]]:
    """Group prompts with the same shared tokens, those of like length together.

    Args:
        prompts: the prompts.
        most: largest number of prompts in a group.

    Returns:
        Indices into `prompts`, each exactly once.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids)):
        groups.setdefault(prompts[index].shared, []).append(index)
    return [
        group[start : start + most]
        for group in groups.values()
        for start in range(0, len(group), most)
    ]


def by_shape(prompts: Sequence[TokenizedPrompt]) -> list[list[int]]:
    """Group prompts that can be one batch: the same shared tokens, and equally many in all.

    Returns:
        Indices into `prompts`, each exactly once.
    """
    groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault((prompt.shared, len(prompt.ids)), []).append(index)
    return list(groups.values())
