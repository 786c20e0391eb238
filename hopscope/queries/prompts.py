"""Provides Prompt: the text of a query with its named spans, and the tokens of these spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hopscope.errors import QueryError
from hopscope.queries.conditions import Condition
from hopscope.queries.query import Form, Query, Span


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of one query.

    Args:
        text: the demonstrations, followed by the question.
        query_id: id of the query.
        form: form of the question.
        few_shot: length of what stands before the question in characters: the demonstrations, and
            in a chat the turns before; 0 for a zero-shot prompt.
        spans: half-open character spans in ``text``, by name; see `Query.compose`. In a chat,
            the last position ends with the text.
        after: length of what stands after the question in characters: in a chat the beginning of
            the assistant's turn.
        chat: whether the text is a chat, with its special tokens written out.
        condition: what is written around the question; what it puts before the question is part of
            it here.
    """

    text: str
    query_id: str
    form: Form
    few_shot: int = 0
    spans: Mapping[str, Span] = field(default_factory=dict, hash=False)
    after: int = 0
    chat: bool = False
    condition: Condition | None = None

    @classmethod
    def of(
        cls,
        query: Query,
        form: Form | None = None,
        demonstrations: str = "",
        after: str = "",
        chat: bool = False,
        condition: Condition | None = None,
    ) -> Prompt:
        """Compose the prompt of a query, with what stands before and after its question.

        Args:
            query: the query.
            form: form of the question; all hops if None.
            demonstrations: the text before the question, in a chat with the turns.
            after: the text after the question.
            chat: whether these texts are turns of a chat.
            condition: what is written around the question; it says what stands after it.
        """
        text, spans = query.compose(form)
        before = ""
        if condition is not None:
            before, after = condition.around(query, form or query.whole)
        shift = len(demonstrations) + len(before)
        shifted = {name: (start + shift, end + shift) for name, (start, end) in spans.items()}
        whole = demonstrations + before + text + after
        shifted[query.positions[-1]] = (shift, len(whole))
        n_shown, form = len(demonstrations), form or query.whole
        return cls(whole, query.id, form, n_shown, shifted, len(after), chat, condition)

    @property
    def before(self) -> str:
        """What stands before the question."""
        return self.text[: self.few_shot]

    @property
    def question(self) -> str:
        """The question alone."""
        return self.text[self.few_shot : len(self.text) - self.after]

    @property
    def end(self) -> str:
        """The text from the question on, which an answer continues."""
        return self.text[self.few_shot :]

    def with_question(self, query: Query) -> Prompt:
        """Return the prompt of another query, with the same text before and after its question."""
        after = self.text[len(self.text) - self.after :]
        return Prompt.of(query, self.form, self.before, after, self.chat, self.condition)


def token_span(prompt: Prompt, name: str, offsets: Sequence[Span]) -> Span:
    """Return the half-open range of the tokens that cover a span.

    Args:
        prompt: the prompt.
        name: the name of a span of the prompt: "e1", "r1e1", "t1", "t2", ...
        offsets: half-open character range of each token of ``prompt.text``, from a fast tokenizer
            (``return_offsets_mapping=True``); (0, 0) for special tokens.

    Raises:
        QueryError: if the prompt has no span of that name, or if no token lies in it.
    """
    if name not in prompt.spans:
        raise QueryError(
            f"the {prompt.form} prompt of query {prompt.query_id!r} has no span {name!r}; "
            f"it has {', '.join(sorted(prompt.spans))}"
        )
    start, end = prompt.spans[name]
    part = prompt.text[start:end]
    start += len(part) - len(part.lstrip())
    if end < len(prompt.text):  # white space at the end of the prompt is its last token
        end -= len(part) - len(part.rstrip())
    inside = [i for i, (a, b) in enumerate(offsets) if max(a, start) < min(b, end)]
    if not inside:
        raise QueryError(
            f"no token of query {prompt.query_id!r} lies in span {name!r} ({part!r}) of the prompt "
            f"{prompt.text!r}; pass the offsets of exactly this text, untruncated, from a fast "
            "tokenizer, or leave the query out"
        )
    return inside[0], inside[-1] + 1


def token_position(prompt: Prompt, name: str, offsets: Sequence[Span]) -> int:
    """Return the index of the last token of a span; arguments and errors as for `token_span`.

    Example:
        >>> prompt = Prompt("the capital is", "1", "first_hop", 0, {"t1": (0, 11)})
        >>> token_position(prompt, "t1", [(0, 0), (0, 3), (3, 7), (7, 11), (11, 14)])
        3
    """
    return token_span(prompt, name, offsets)[1] - 1
