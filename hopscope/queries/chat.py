"""Provides Chat: how the queries of a set are asked in the turns of a chat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hopscope.errors import QueryError
from hopscope.models.chat import CHAT_SLOT, chat_frame
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

    Raises:
        QueryError: if the instruction does not have exactly one `{}`.
        UsageError: if the tokenizer has no chat template, or one that does not take such turns.
    """

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    instruction: str = INSTRUCTION
    prefill: str = PREFILL
    system: str | None = None

    def __post_init__(self) -> None:
        if self.instruction.count("{}") != 1:
            raise QueryError(
                f"the instruction is {self.instruction!r}; expected a text with exactly one {{}} "
                "where the prompt goes"
            )
        self.frame(())

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
        return chat_frame(self.tokenizer, messages[:-1], self.prefill)

    @property
    def settings(self) -> dict[str, str | None]:
        """What a run record says."""
        template = str(self.tokenizer.chat_template)
        return {
            "instruction": self.instruction,
            "prefill": self.prefill,
            "system": self.system,
            "template": hashlib.sha256(template.encode()).hexdigest(),
        }
