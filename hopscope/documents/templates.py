"""Provides the prompt templates for questions over documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar

from hopscope.documents.question_set import QuestionSet
from hopscope.errors import one_of
from hopscope.queries.answers import ANSWER_RULES


@dataclass(frozen=True)
class Template:
    """The format in which a question and its documents are written as a prompt.

    Attributes:
        instruction: text before the documents.
        document: format of one document, with `{title}`, `{text}` and `{label}`.
        question: format of the text after the documents, with `{question}`.
        one_line: whether the answer is the first line of the generated text, with which the
            generation ends. Otherwise `answer` says where it stands.
        max_new_tokens: number of tokens to generate for an answer.
        chat: whether the prompt is a user turn in the chat template of the tokenizer. An
            encoder-decoder, which knows no turns, reads the user's text alone.
        prefill: the beginning of the assistant's turn in a chat, which the model continues.
        system: the system's turn in a chat, if any; with `{name}` and `{maker}`, those of the
            model: of Llama if that is its architecture, else of Qwen.
        first_number: the number of the first document.
        verbatim: whether titles and texts keep their white space; line breaks in them become
            single spaces otherwise.
        answer: where the answer stands in a text of several lines. `answer_is`: behind the last
            "answer is", or it is the whole text; `boxed`: in the last `\\boxed{…}`; `first_boxed`:
            in the first one, up to the first closing brace; `last_line`; `whole`: the whole text.
            Where a text has no box, the answer is empty.
        metric: how answers are scored where no other metric is asked for; if empty, as the
            analysis does.

    Raises:
        UsageError: for an unknown `answer`.
    """

    added_settings: ClassVar = {
        "system": "",
        "first_number": 1,
        "verbatim": False,
        "answer": "answer_is",
        "metric": "",
    }
    """Attributes that records of earlier versions lack, and what they were then."""

    instruction: str
    document: str
    question: str
    one_line: bool = True
    max_new_tokens: int = 16
    chat: bool = False
    prefill: str = ""
    system: str = ""
    first_number: int = 1
    verbatim: bool = False
    answer: str = "answer_is"
    metric: str = ""

    def __post_init__(self) -> None:
        one_of("answer", self.answer, ANSWER_RULES)

    def number(self, place: int) -> str:
        """Return the label of the document in a place, counted from 0."""
        return f" [{place + self.first_number}]"

    def without_turns(self) -> Template:
        """Return the template for a model that knows no turns."""
        return replace(self, chat=False, system="", prefill="")

    def as_record(self) -> dict[str, Any]:
        """Return what a run's record says; of `added_settings` only those that are set."""
        return without_unset(self)


def without_unset(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, of its `added_settings` only those that are set."""
    added = settings.added_settings
    found = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return {
        name: value for name, value in found.items() if name not in added or value != added[name]
    }


_DOCUMENT = "Document{label}(Title: {title}) {text}\n"


_SHORT = "Answer the question with a name or a short phrase, using only the documents below.\n\n"

_PAPER_ANSWER = Template(
    "Answer the question using only the provided search results (some of which might be "
    "irrelevant). \n\n",
    _DOCUMENT,
    "\nQuestion: {question}\n.",
    one_line=False,
    max_new_tokens=768,
    chat=True,
    prefill="\\boxed{",
    system="You are {name} and are now helping answer question based on some search result. Only "
    "provide the exact final answer and put it within \\boxed{{}}.",
    first_number=0,
    verbatim=True,
    answer="last_line",
    metric="paper",
)
_PAPER_COT = replace(
    _PAPER_ANSWER,
    prefill="",
    system="Please reason step by step, and put your final answer within \\boxed{{}}.",
    answer="first_boxed",
)


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
        "paper": _PAPER_ANSWER,
        "paper_whole": replace(_PAPER_ANSWER, max_new_tokens=512, answer="whole"),
        "paper_cot": _PAPER_COT,
        "paper_cot_last_line": replace(_PAPER_COT, answer="last_line"),
        "paper_tuned": replace(
            _PAPER_ANSWER,
            prefill="",
            system="You are {name}, created by {maker}. You are a helpful assistant.",
        ),
    }
)
"""`answer_only` and `cot` ask as Huang et al. 2025 do (Masking in Multi-hop QA, section 3), for any
model. The `paper` ones are the prompts and the reading of answers of their code, to the letter:
`paper` asks for the answer only and reads the last line, `paper_whole` is the same in their choice
of an order, `paper_cot` asks for steps and reads the box, `paper_cot_last_line` reads the last line
(theirs for Llama and for Qwen2.5 below 3B), `paper_tuned` is for fine-tuned models. `plain` is
meant for base models and short documents: it has no instruction and no titles. `bare`, for models
that are trained here, is only the texts and the question. `chat` is meant for models with a chat
template."""


def template_of(template: str | Template) -> Template:
    """Return a template by its name in `TEMPLATES`; a template is returned as it is.

    Raises:
        UsageError: for an unknown name.
    """
    if isinstance(template, Template):
        return template
    return TEMPLATES[one_of("template", template, TEMPLATES)]


def template_for(questions: QuestionSet, template: str | Template | None) -> str | Template:
    """The template that was asked for, or the one that suits the set: `plain` for short documents
    with demonstrations."""
    if template is not None:
        return template
    return "plain" if questions.few_shot else "answer_only"
