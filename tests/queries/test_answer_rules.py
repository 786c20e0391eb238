"""Where an answer stands in a text, and the containment of Huang et al. 2025, on texts by hand."""

from __future__ import annotations

import string

import pytest

from hopscope.documents.templates import Template
from hopscope.errors import UsageError
from hopscope.queries.answers import (
    ANSWER_RULES,
    contains_ascii,
    first_boxed,
    last_boxed,
    last_line,
)

KEPT = set(string.ascii_letters + string.digits)


def plainly(text: str) -> str:
    """What is left of a text by the rule, character by character."""
    return "".join(each for each in text if each in KEPT or each.isspace()).lower()


CASES = [
    ("I live in NewYork", "New York", False),
    ("It is New York.", "new york", True),
    ("New  York", "New York", False),
    ("It is rock and roll", "Rock-and-roll", False),
    ("rockandroll", "Rock-and-roll", True),
    ("Beyonce", "Beyoncé", True),
    ("Beyoncé", "Beyonce", False),
    ("Nigeria", "Niger", True),
    ("In 1,984 days", "1984", True),
    ("Washington DC", "Washington, D.C.", True),
    ("\u212aiev", "Kiev", False),  # the Kelvin sign, which is K in lower case
    ("anything at all", "東京", False),
    ("東京", "東京", False),
    ("any thing", "東 京", False),  # white space is left of it
    ("", "Paris", False),
]


@pytest.mark.parametrize(("text", "name", "found"), CASES)
def test_containment_keeps_letters_digits_and_white_space(
    text: str, name: str, found: bool
) -> None:
    assert contains_ascii(text, [name]) is found
    if plainly(name).strip():
        assert (plainly(name) in plainly(text)) is found
    assert contains_ascii(text, ["zzz", name]) is found
    assert not contains_ascii(text, [])


@pytest.mark.parametrize(
    ("text", "last", "first"),
    [
        (r"Paris is the capital of France. \boxed{London}", "London", "London"),
        (r"Paris is the capital of France.", "", ""),
        (r"\boxed{Rome}, no: \boxed{Paris}.", "Paris", "Rome"),
        (r"\boxed{\text{Paris}}", r"\text{Paris}", r"\text{Paris"),
        (r"\boxed{a {b} {c {d}}} e}", "a {b} {c {d}}", "a {b"),
        (r"\boxed{Rome} or \boxed{Par", "Rome", "Rome"),
        (r"\boxed{Par", "", ""),
        (r"\boxed{} \boxed{Rome}", "Rome", "Rome"),
        (r"\boxed{Rome} \boxed{}", "", "Rome"),
        ("\\boxed{New\nYork}", "New\nYork", "New\nYork"),
        (r"boxed{Paris} \box{Paris}", "", ""),
    ],
)
def test_the_answer_is_what_stands_in_a_box(text: str, last: str, first: str) -> None:
    assert (last_boxed(text), first_boxed(text)) == (last, first)


def test_the_last_line_is_one_that_says_something() -> None:
    assert last_line("The Tower is in France.\nParis}\n\n") == "Paris}"
    assert last_line("Paris") == "Paris"
    assert last_line("\n \n") == ""


def test_the_rules_have_names() -> None:
    text = "The answer is Rome\n\\boxed{Oslo} \\boxed{Paris}\nBern"
    found = {name: rule(text) for name, rule in ANSWER_RULES.items()}
    assert found == {
        "answer_is": "Rome\n\\boxed{Oslo} \\boxed{Paris}\nBern",
        "boxed": "Paris",
        "first_boxed": "Oslo",
        "last_line": "Bern",
        "whole": text,
    }
    with pytest.raises(UsageError, match="unknown answer 'box': choose one of answer_is, boxed"):
        Template("", "{text}", "{question}", answer="box")
