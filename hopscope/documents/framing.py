"""Provides what a model's tokenizer puts around a prompt over documents, and how it reads it."""

from __future__ import annotations

from collections.abc import Sequence

from hopscope.documents.layout import Encode
from hopscope.documents.templates import Template
from hopscope.models.chat import CHAT_SLOT, chat_frame
from hopscope.models.token_model import TokenModel

LLAMA, QWEN = ("Llama", "Meta"), ("Qwen", "Alibaba Cloud")
"""What the system's turn may call a model, and who made it."""


def encoder_of(model: TokenModel, form: Template, *, fitting: bool = False) -> Encode:
    """Return a model's tokenizer as layouts take it; a chat template brings its special tokens.

    Args:
        model: the model.
        form: the template of the prompts.
        fitting: whether a text that does not fit into the context is refused with a `UsageError`.
    """
    tokenise = model.encode if fitting else model.tokenize

    def encode(text: str) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
        encoded = tokenise(text, special=not form.chat)
        return encoded.ids, encoded.offsets

    return encode


def frame_of(model: TokenModel, form: Template) -> tuple[str, str]:
    """Return what the chat template puts around a user's turn; nothing if the prompt is no chat.

    Args:
        model: the model.
        form: the template of the prompts.

    Raises:
        UsageError: if the tokenizer has no chat template, or one that does not take the turns.
    """
    if not form.chat:
        return "", ""
    name, maker = LLAMA if model.config.model_type == "llama" else QWEN
    told = form.system.format(name=name, maker=maker)
    system = [{"role": "system", "content": told}] if told else []
    turns = [*system, {"role": "user", "content": CHAT_SLOT}]
    return chat_frame(model.tokenizer, turns, form.prefill)
