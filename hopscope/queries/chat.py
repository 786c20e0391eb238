"""Provides Chat: how the queries of a set are asked in the turns of a chat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hopscope.errors import QueryError, UsageError
from hopscope.models.chat import CHAT_SLOT, chat_frame, dated_template
from hopscope.scripts import needs_space

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = "Complete the sentence with a name: {}"
PREFILL = "Answer:"


@dataclass(frozen=True)
class Chat:
    """How a query is asked in a chat: each demonstration, and then the query, is a user's turn.

    Attributes:
        tokenizer: whose chat template writes the turns.
        instruction: the user's turn, with one `{}` for the prompt.
        prefill: the beginning of the assistant's turn; the answer comes next. "" for none.
        system: the system prompt; what the template has by itself if None.
        template: the template as it is now, with a fixed date where it asks for one.

    Raises:
        QueryError: if the instruction does not have exactly one `{}`.
        UsageError: if the tokenizer has no chat template, or one that does not take such turns.
    """

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    instruction: str = INSTRUCTION
    prefill: str = PREFILL
    system: str | None = None
    template: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.instruction.count("{}") != 1:
            raise QueryError(
                f"the instruction is {self.instruction!r}; expected a text with exactly one {{}} "
                "where the prompt goes"
            )
        object.__setattr__(self, "template", dated_template(self.tokenizer))
        self.frame(())

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that the model that is asked writes turns as this chat does.

        Args:
            tokenizer: of that model.

        Raises:
            UsageError: if its chat template or its special tokens are others.
        """
        try:
            own = replace(self, tokenizer=tokenizer)
        except UsageError:  # it has no template for such turns
            own = None
        if own is None or (own.template, own.frame(())) != (self.template, self.frame(())):
            raise UsageError(
                "the queries are asked in the chat template of another model, or in one that was "
                "changed since: call with_chat(model) anew, with the model that is asked"
            )

    def frame(self, demonstrations: Sequence[tuple[str, str]]) -> tuple[str, str]:
        """Return what stands before and after a prompt.

        Args:
            demonstrations: prompts with their answers, each a turn of the user and one of the
                assistant.
        """
        asked = [*demonstrations, (CHAT_SLOT, "")]
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for prompt, answer in asked:
            said = f"{self.prefill}{' ' * needs_space(self.prefill)}{answer}"
            messages += [
                {"role": "user", "content": self.instruction.replace("{}", prompt)},
                {"role": "assistant", "content": said},
            ]
        return chat_frame(self.tokenizer, messages[:-1], self.prefill, self.template)

    @property
    def settings(self) -> dict[str, str | None]:
        """What a run record says."""
        return {
            "instruction": self.instruction,
            "prefill": self.prefill,
            "system": self.system,
            "template": hashlib.sha256(self.template.encode()).hexdigest(),
        }
