"""When a generation has ended: the early verdict is that of the whole text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from hopscope.engine.decoding import grow
from hopscope.models.token_model import TokenModel
from hopscope.prompting.generation import answer_text, stop_when_answered
from hopscope.queries.answers import MATCHES, Match, matches

WORDS = [
    "<unk>",
    "▁",
    "▁it",
    "▁is",
    "▁10",
    "10",
    ",",
    "000",
    "▁Niger",
    "ia",
    "n't",
    "▁.",
    "▁,",
    "-",
]
BYTES = [f"<0x{byte:02X}>" for byte in (*"\n東京".encode(), 0xE6, 0x41)]
NAMES = ("10", "10,000", "-10", "Niger", "Nigeria", "東", "東京", "Ω", "A", "Niger ")


@cache
def model() -> TokenModel:
    """A tokenizer as Llama 2's, which cleans up spaces, and nothing that it would be asked for."""
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*WORDS, *BYTES]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)
    made: Any = TokenModel.__new__(TokenModel)
    made.tokenizer = fast
    return made  # type: ignore[no-any-return]


def generated(tokens: list[int], stop: Any) -> tuple[int, ...]:
    """What a greedy loop keeps of a model's tokens."""
    so_far: list[tuple[int, ...]] = [()]
    for token in tokens:
        if not grow(so_far, [0], [token], frozenset({0}), stop)[0]:
            break
    return so_far[0]


def verdicts(tokens: list[int], name: str, match: Match, one_line: bool) -> tuple[bool, bool]:
    """Whether the name is in a generation that stops early, and in the whole one."""
    stop = stop_when_answered(model(), (name,), match, one_line)  # type: ignore[arg-type]
    early, whole = (generated(tokens, each) for each in (stop, None))
    assert whole[: len(early)] == early
    texts = [answer_text(model().decode(each), one_line) for each in (early, whole)]
    return matches(texts[0], (name,), match), matches(texts[1], (name,), match)


@given(
    st.lists(st.integers(0, len(WORDS) + len(dict.fromkeys(BYTES)) - 1), max_size=12),
    st.sampled_from(NAMES),
    st.sampled_from(MATCHES),
    st.booleans(),
)
@settings(max_examples=2000)
def test_the_early_verdict_is_that_of_the_whole_text(
    tokens: list[int], name: str, match: Match, one_line: bool
) -> None:
    """For tokens that a tokenizer joins, cleans up, and makes of bytes that may not fit."""
    line_end = model().tokenizer.convert_tokens_to_ids("<0x0A>")
    if one_line and line_end in tokens:  # what follows the line is not read
        tokens = tokens[: tokens.index(line_end) + 1]
    early, whole = verdicts(tokens, name, match, one_line)
    assert early == whole


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize(
    ("name", "tokens", "found"),
    [
        ("Niger", ["▁Niger", "▁", "n't"], True),
        ("10", ["▁10", "▁", ",", "000"], True),
        ("東京", [f"<0x{byte:02X}>" for byte in (*"東京A".encode(), 0xE6)] + ["▁it"], False),
        ("東京", [f"<0x{byte:02X}>" for byte in "東京A".encode()] + ["▁it"], True),
    ],
)
def test_what_a_tokenizer_would_change_later_is_not_decided(
    name: str, tokens: list[str], found: bool, match: Match
) -> None:
    ids = model().tokenizer.convert_tokens_to_ids(tokens)
    assert verdicts(ids, name, match, True) == (found, found)


@pytest.mark.parametrize(
    ("tokens", "n_kept"),
    [
        (["▁it", "▁is", "▁10", ",", "000"], 5),
        (["▁it", "▁is", "▁10", ",", "▁is", "▁it"], 5),
        (["▁it", "▁is", "▁10", "▁is", "▁it"], 4),
        (["▁Niger", "ia", "▁is"], 3),
        (["▁Niger", "▁is", "▁it"], 2),
    ],
)
def test_where_a_generation_stops(tokens: list[str], n_kept: int) -> None:
    stop = stop_when_answered(model(), ("10", "Niger"), "word", True)  # type: ignore[arg-type]
    ids = model().tokenizer.convert_tokens_to_ids(tokens)
    assert len(generated(ids, stop)) == n_kept
