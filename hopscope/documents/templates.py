"""Provides the templates by which a question over documents becomes a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hopscope.errors import UsageError


@dataclass(frozen=True)
class Template:
    """How a question and its documents become a prompt.

    Attributes:
        instruction: what comes before the documents.
        document: one document, with `{title}`, `{text}` and `{label}`.
        question: what comes after the documents, with `{question}`.
        one_line: whether the first line of what is generated is the answer; else all of it is, or
            what follows the last "answer is".
        max_new_tokens: how many tokens an answer may take.
        chat: whether the prompt is a user's turn in the tokenizer's chat template.
    """

    instruction: str
    document: str
    question: str
    one_line: bool = True
    max_new_tokens: int = 16
    chat: bool = False


_DOCUMENT = "Document{label}(Title: {title}) {text}\n"


_SHORT = "Answer the question with a name or a short phrase, using only the documents below.\n\n"


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "answer_only": Template(_SHORT, _DOCUMENT, "\nQuestion: {question}\nAnswer:"),
        "cot": Template(
            "Answer the question using only the documents below. Think step by step, and end with "
            '"The answer is: ".\n\n',
            _DOCUMENT,
            "\nQuestion: {question}\nLet's think step by step.",
            one_line=False,
            max_new_tokens=128,
        ),
        "plain": Template("", "{text}\n", "Question: {question}\nAnswer:"),
        "bare": Template("", "{text}\n", "{question}", max_new_tokens=4),
        "chat": Template(_SHORT, _DOCUMENT, "\nQuestion: {question}", max_new_tokens=24, chat=True),
    }
)
"""`answer_only` and `cot` after Huang et al. 2025, section 3; `plain` for base models and short
documents: their texts alone, and no instruction; `bare` for the documents of models trained here,
nothing but texts and question; `chat` for models with a chat template."""


CHAT_SLOT = "\x00documents\x00"


def template_of(template: str | Template) -> Template:
    """A template by its name.

    Raises:
        UsageError: if there is none of that name.
    """
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise UsageError(f"unknown template {template!r}: choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[template]
