"""Tests that what the documentation tells to do works."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import family_page
import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope.experiments import registry
from hopscope.study.readme import marked

ROOT = Path(__file__).parents[1]


def code_of(page: str) -> list[str]:
    """The Python examples of a page."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_an_analysis_of_ones_own_is_written_in_a_few_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "margins.py").write_text(code_of("write_your_own.md")[0])
    monkeypatch.syspath_prepend(tmp_path)
    model, queries = known_model(), known_queries()[:3]
    try:
        from margins import margins  # type: ignore[import-not-found]

        result = margins(model, queries, out=tmp_path / "run", progress=False)
        assert set(result.frame["control"]) == {"none", "random"}
        assert len(result.frame) == 3 * (1 + model.n_layers)
        assert result.frame.dtypes.astype(str).to_dict() == result.columns
        assert list(result.tables()["mean"]) == ["control", "layer", "n", "margin", "low", "high"]
        assert type(hs.load_result(tmp_path / "run")) is type(result)
        with pytest.raises(hs.HopscopeError, match="unknown position 't9': choose one of t1, t2"):
            margins(model, queries, position="t9")
        assert registry.REGISTERED["margins"].command == "margins"
    finally:
        registry.REGISTERED.pop("margins", None)
        sys.modules.pop("margins", None)


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "reference").glob("*.md")), ids=str)
def test_the_reference_names_what_there_is(page: Path) -> None:
    import importlib

    for path in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE):
        path = re.sub(r"^probes\b", "hopscope.probes", path)
        try:
            importlib.import_module(path)
        except ModuleNotFoundError:
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name), path


def test_the_table_of_families_is_what_the_checks_find() -> None:
    (written,) = marked("families").findall(family_page.PAGE.read_text("utf-8"))
    assert written == family_page.table(), "run `make readme`"


FILLED = "\0"
"""Stands for what a message fills in, in the texts of the package."""
PUNCTUATION = " .,:;()"
"""Does not count at the ends of a fragment."""


def package_texts() -> Iterator[str]:
    """The string constants of the package but its docstrings; each f-string as one text.

    What `one_of` says of a kind of name is one, too.
    """
    for path in (*ROOT.glob("hopscope/**/*.py"), *ROOT.glob("probes/**/*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        parts = {id(each.value) for each in nodes if isinstance(each, ast.Expr)}
        for node in nodes:  # an f-string comes before its parts
            if isinstance(node, ast.JoinedStr):
                parts |= {id(each) for each in node.values}
                yield "".join(
                    str(each.value) if isinstance(each, ast.Constant) else FILLED
                    for each in node.values
                )
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "one_of":
                kind = node.args[0]
                yield f"unknown {kind.value if isinstance(kind, ast.Constant) else FILLED}"
            elif id(node) in parts or not isinstance(node, ast.Constant):
                continue
            elif isinstance(node.value, str):
                yield node.value


def occurs(fragment: list[str], text: list[str]) -> bool:
    """Whether words occur in those of a text, at least three of them as they are.

    The first and the last may be the end and the beginning of a word. A word of the text with
    something filled in stands for any word that fits it.
    """
    last = len(fragment) - 1
    for start in range(len(text) - last):
        as_they_are = 0
        for place, word in enumerate(fragment):
            said = text[start + place]
            if (
                word == said
                or (place == 0 and said.endswith(word))
                or (place == last and said.startswith(word))
            ):
                as_they_are += 1
            elif FILLED not in said or not re.fullmatch(
                re.escape(said.strip(PUNCTUATION)).replace(FILLED, ".*"), word
            ):
                break
        else:
            if as_they_are >= 3:
                return True
    return False


def stale(page: str, texts: Sequence[str]) -> list[str]:
    """The quotes in the tables of a page with a fragment of three words that no text has."""
    cells = re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE)
    quotes = dict.fromkeys(quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell))
    words = [text.split() for text in texts]
    return [
        quote
        for quote in quotes
        for fragment in (part.strip(PUNCTUATION).split() for part in quote.split("…"))
        if len(fragment) >= 3 and not any(occurs(fragment, each) for each in words)
    ]


def test_the_page_of_errors_quotes_messages_that_there_are() -> None:
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    texts = list(package_texts())
    assert page.count("\n| `") > 100
    assert stale(page, texts) == []


@pytest.mark.parametrize(
    ("message", "reworded"),
    [
        ("two paragraphs have the same idx", "two of its paragraphs have the same idx"),
        ("noise must be above 0", "noise must be 0 or above"),
        ("… is damaged: …; delete the folder to train again", "… is damaged: …; throw it away"),
        ("fewer than folds=…", "fewer than n_folds=…"),
    ],
)
def test_a_quote_of_a_reworded_message_is_found(message: str, reworded: str) -> None:
    texts = list(package_texts())
    assert stale(f"| `{message}` | why | what to do |", texts) == []
    assert stale(f"| `{reworded}` | why | what to do |", texts) == [reworded]
