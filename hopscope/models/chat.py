"""Provides chat prompts by a tokenizer's own template, and the part of a text that is thinking."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from hopscope.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = date(2024, 7, 26)
"""The date that templates tell a model, always the same, so that prompts are: the one that Llama 3
has where it knows none."""
CHAT_SLOT = "\x00prompt\x00"
"""Marks the place of the prompt in a chat that is rendered before the prompt is known."""
CHANNEL, FINAL = "<|channel|>", "<|channel|>final<|message|>"
"""What a message of gpt-oss begins with, and what its answer begins with."""
THOUGHTS: Mapping[str, str] = {
    "<think>": "</think>",  # Qwen 3, DeepSeek R1, SmolLM3, OLMo 3
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",  # Ministral 3
}
"""What begins and ends a thought."""
MARKERS = frozenset({*THOUGHTS, *THOUGHTS.values(), CHANNEL, "<|message|>"})
_MISFITS = (TemplateError, ValueError, TypeError)
"""What a template that was written for other turns, or of which there are several, may raise."""
_NOW = re.compile(r"""strftime_now\(\s*(?:(["'])(.*?)\1\s*\))?""")
"""Where a template asks for the date, and how it is to be written, if that can be read."""
_END = re.compile("|".join(map(re.escape, THOUGHTS.values())))
_OPEN = re.compile("|".join(map(re.escape, THOUGHTS)))


def dated_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a tokenizer's chat template, with the date written where it asks for today's: `TODAY`.

    Args:
        tokenizer: the tokenizer, which brings the template.

    Raises:
        UsageError: if there is none, or one that asks for the date in an unknown form.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the tokenizer has no chat template: ask without one (for queries leave with_chat() "
            "or --chat out, for documents take the template 'answer_only' or 'plain'), or set "
            "tokenizer.chat_template"
        )

    def written(asked: re.Match[str]) -> str:
        if asked[2] is None:
            raise UsageError(
                "the tokenizer's chat template tells the model today's date, in a form that cannot "
                "be read: set tokenizer.chat_template to one with a fixed date"
            )
        return json.dumps(TODAY.strftime(asked[2]))

    try:
        template = str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UsageError(f"the tokenizer has several chat templates: {error}") from error
    return _NOW.sub(written, template)


def chat_frame(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    prefill: str = "",
    template: str | None = None,
) -> tuple[str, str]:
    """Return what a chat template writes before and after the prompt, with thinking switched off.

    Args:
        tokenizer: the tokenizer, which brings the template.
        messages: the turns, each with a `role` and a `content`; `CHAT_SLOT` stands for the prompt
            in one of them.
        prefill: the beginning of the assistant's turn, which the model continues. If there is
            none, the template's own generation prompt comes last; a thought that it opens is
            closed, and of the channels of gpt-oss that of the answer is chosen.
        template: what `dated_template` has returned; it is called if None.

    Raises:
        UsageError: if there is no chat template, or it does not take these turns.
    """
    template = dated_template(tokenizer) if template is None else template
    answer = [{"role": "assistant", "content": prefill}] if prefill else []
    try:
        text = tokenizer.apply_chat_template(
            [*messages, *answer],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=not prefill,
            continue_final_message=bool(prefill),
            enable_thinking=False,
        )
    except _MISFITS as error:
        raise UsageError(
            f"the tokenizer's chat template does not take these turns: {error}. Leave out the "
            "system prompt, the demonstrations or the prefill"
        ) from error
    before, slot, after = str(text).partition(CHAT_SLOT)
    if not slot:
        raise UsageError("the tokenizer's chat template leaves the user's turn out")
    if not prefill and CHANNEL in template and FINAL not in after:  # else it begins to think
        return before, after + FINAL
    opened = next((end for start, end in THOUGHTS.items() if after.rstrip().endswith(start)), None)
    return before, f"{after.rstrip()}\n\n{opened}\n\n" if opened else after


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the token by which a chat template ends the assistant's turn; none if there is none.

    Args:
        tokenizer: the tokenizer, with or without a chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        return frozenset()
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": CHAT_SLOT}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except _MISFITS:  # of another kind of turns: it ends none that is asked for here
        return frozenset()
    _, slot, rest = text.rpartition(CHAT_SLOT)
    if not slot:
        return frozenset()
    ids = tokenizer(rest.strip(), add_special_tokens=False)["input_ids"][:1]
    return frozenset(ids) & frozenset(tokenizer.added_tokens_decoder)


def without_thoughts(text: str) -> str:
    """Return the part of a generated text that is no thinking; "" while the model still thinks.

    Args:
        text: a text with the markers of thoughts, as `TokenModel.decode` returns it.

    Example:
        >>> without_thoughts("<think>\\nFrance. So Paris.\\n</think>\\n\\nParis")
        'Paris'
        >>> without_thoughts("<|channel|>analysis<|message|>So<|channel|>final<|message|>Paris")
        'Paris'
    """
    return text[slice(*span_without_thoughts(text))]


def span_without_thoughts(text: str) -> tuple[int, int]:
    """Return the half-open character range of the part of a generated text that is no thinking.

    Args:
        text: as for `without_thoughts`.
    """
    if CHANNEL in text:
        at = text.rfind(FINAL)
        return (len(text) if at < 0 else at + len(FINAL)), len(text)
    start = max((thought.end() for thought in _END.finditer(text)), default=0)
    opened = _OPEN.search(text, start)
    end = len(text) if opened is None else opened.start()
    if (start, end) != (0, len(text)):  # white space between a thought and the answer
        start = end - len(text[start:end].lstrip())
    return start, end
