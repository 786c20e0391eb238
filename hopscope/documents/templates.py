"""Provides the prompt templates for questions over documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hopscope.errors import one_of


@dataclass(frozen=True)
class Template:
    """The format in which a question and its documents are written as a prompt.

    Attributes:
        instruction: text before the documents.
        document: format of one document, with `{title}`, `{text}` and `{label}`.
        question: format of the text after the documents, with `{question}`.
        one_line: whether the answer is the first line of the generated text. Otherwise it is what
            follows the last "answer is", or the whole text.
        max_new_tokens: number of tokens to generate for an answer.
        chat: whether the prompt is a user turn in the chat template of the tokenizer.
        prefill: the beginning of the assistant's turn in a chat, which the model continues.
    """

    instruction: str
    document: str
    question: str
    one_line: bool = True
    max_new_tokens: int = 16
    chat: bool = False
    prefill: str = ""


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
"""`answer_only` and `cot` follow Huang et al. 2025, section 3. `plain` is meant for base models and
short documents: it has no instruction and no titles. `bare`, for models that are trained here, is
only the texts and the question. `chat` is meant for models with a chat template."""


def template_of(template: str | Template) -> Template:
    """Return a template by its name in `TEMPLATES`; a template is returned as it is.

    Raises:
        UsageError: for an unknown name.
    """
    if isinstance(template, Template):
        return template
    return TEMPLATES[one_of("template", template, TEMPLATES)]
