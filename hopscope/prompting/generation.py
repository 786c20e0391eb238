"""Provides when a generation has ended, and which part of it is the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile

from hopscope.engine.read_out import Stop
from hopscope.errors import UsageError
from hopscope.models.chat import span_without_thoughts, without_thoughts
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import TokenModel
from hopscope.queries.answers import Match, decided, first_line

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""How tokenizers with byte fallback write a single byte."""


def check_tokens(max_new_tokens: int) -> None:
    """Refuse to generate nothing.

    Raises:
        UsageError: if there is no token to generate.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")


def stop_at_line_end(model: TokenModel) -> Stop:
    """A stop that ends a generation with its first line that says something."""

    def stop(tokens: tuple[int, ...]) -> bool:
        return "\n" in without_thoughts(model.decode(tokens))

    return stop


def reads_one_line(few_shot: int, asked: bool | None) -> bool:
    """Whether an answer is the first line only: as asked, or if None for few-shot prompts."""
    return few_shot > 0 if asked is None else asked


def answer_text(text: str, one_line: bool) -> str:
    """The part of a generation that counts as the answer; thoughts before it do not."""
    said = without_thoughts(text)
    return first_line(said) if one_line else said


def answer_span(model: TokenModel, tokens: Sequence[int], one_line: bool) -> range:
    """The indices of the generated tokens whose text is that of `answer_text`.

    A token that ends the line does not belong to it, whatever else it says.

    Args:
        model: the model.
        tokens: what was generated.
        one_line: whether the answer ends with its line.
    """
    ends = [len(model.decode(tokens[:n])) for n in range(len(tokens) + 1)]
    text = model.decode(tokens)
    start, end = span_without_thoughts(text)
    line_end = text.find("\n", start, end) if one_line else -1
    end = end if line_end < 0 else line_end
    inside = [n for n in range(len(tokens)) if start < max(ends[n] + 1, ends[n + 1])]
    inside = list(takewhile(lambda n: ends[n + 1] <= end, inside))
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def stop_when_answered(
    model: LanguageModel, names: Iterable[str], match: Match, one_line: bool
) -> Stop:
    """A stop for when the line has ended, or the answer is there whatever may follow."""
    names = tuple(names)

    def stop(tokens: tuple[int, ...]) -> bool:
        if one_line and "\n" in without_thoughts(model.decode(tokens)):
            return True
        lasting = _without_last_bytes(model, tokens)
        return decided(without_thoughts(model.decode(lasting)), names, match)

    return stop


def _without_last_bytes(model: TokenModel, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Drop single bytes at the end: what they stand for depends on the bytes that follow."""
    end = len(tokens)
    while end and _BYTE.fullmatch(str(model.tokenizer.convert_ids_to_tokens(tokens[end - 1]))):
        end -= 1
    return tokens[:end]


def same_answer(a: str, b: str, one_line: bool) -> bool:
    """Whether two generations say the same."""
    return answer_text(a, one_line).strip() == answer_text(b, one_line).strip()
