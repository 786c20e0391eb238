"""Provides the models of training: a small one from nothing, and LoRA on a pretrained one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from hopscope.documents.layout import template_of
from hopscope.documents.question_set import MultiDocQuestion
from hopscope.documents.world_docs import NAMES
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.training.fit import (
    WEIGHTS,
    Schedule,
    check_not_negative,
    check_positive,
    check_shares,
    seeded,
    share_at,
)

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"


@dataclass(frozen=True)
class TrainingSettings(Schedule):
    """How a model is trained to answer questions over documents.

    Attributes:
        hop_share: share of the prompts that ask a single hop of their question.
        late_hop_share: the same from step `late` on; None leaves it as it was. Once single hops are
            learned, few are needed, and with more of the others composing is learned earlier.
        late: the step from which `late_hop_share` holds.
        orders: of the documents, one drawn for each prompt; if empty, any permutation.
        n_names: how many of the invented names of `world-docs` are in use. Each prompt draws from
            them anew, so that no answer can be learned by heart; 0 leaves questions as they are.
        turns: how many questions are asked of the same documents, one after the other, each about
            another chain, as far as there are any. Each has an answer to learn from.
        template: a name of `hopscope.documents.layout.TEMPLATES`.
        second_hops: whether the second hop of a chain is asked by itself, too. Of bare pairs of
            names it is the harder one to learn: its name stands twice among the documents.
        n_layers, d_model, n_heads, d_mlp: shape of the model that is made from nothing.
        lora_rank: rank of the updates of a pretrained model.
        lora_alpha: they are scaled by `lora_alpha / lora_rank`.
        steps, batch_size, ...: those of `Schedule`.

    Raises:
        UsageError: for a number that cannot be.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 3e-3
    hop_share: float = 0.5
    late_hop_share: float | None = None
    late: int = 600
    orders: tuple[str, ...] = ()
    n_names: int = 20
    turns: int = 2
    template: str = "plain"
    second_hops: bool = True
    n_layers: int = 4
    d_model: int = 64
    n_heads: int = 4
    d_mlp: int = 256
    lora_rank: int = 8
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "orders", tuple(self.orders))
        template_of(self.template)
        check_positive(self, "turns", "n_layers", "d_model", "n_heads", "d_mlp")
        check_positive(self, "lora_rank", "lora_alpha")
        if not 0 <= self.n_names <= len(NAMES):
            raise UsageError(f"n_names is a number from 0 to {len(NAMES)}, not {self.n_names}")
        check_shares(self, "hop_share", "late_hop_share")
        check_not_negative(self, "late")
        if self.d_model % (2 * self.n_heads):
            raise UsageError(
                f"d_model {self.d_model} does not give {self.n_heads} heads of an even width"
            )

    def hops_at(self, step: int) -> float:
        """The share of the prompts of a step, counted from 0, that ask a single hop."""
        return share_at(step, self.hop_share, self.late_hop_share, self.late)


def word_tokenizer(questions: Sequence[MultiDocQuestion]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word and mark of some questions, and for every name.

    Args:
        questions: whose documents, questions and answers give the words; all the given names of
            `world-docs` are words, too. Others become one and the same unknown word.
    """
    split = pre_tokenizers.Whitespace()
    words = set(NAMES)
    for question in questions:
        asked = [question.question, question.answer, *(hop.question for hop in question.hops)]
        texts = [*asked, *(document.text for document in question.documents), "Question: Answer:"]
        words.update(word for text in texts for word, _ in split.pre_tokenize_str(text))
    return whole_words(sorted(words))


def whole_words(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of given words, each one token; special tokens come first."""
    vocabulary = {word: index for index, word in enumerate([PAD, END, UNKNOWN, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def small_model(
    questions: Sequence[MultiDocQuestion],
    settings: TrainingSettings | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> LanguageModel:
    """An untrained Llama of a few layers with a tokenizer of whole words.

    Args:
        questions: whose words it knows.
        settings: for its shape.
        seed: of the weights, which are drawn on the CPU.
        device: where it goes; CUDA by default if there is any.
    """
    settings = settings or TrainingSettings()
    tokenizer = word_tokenizer(questions)
    with seeded(torch.device("cpu"), seed), torch.device("cpu"):
        hf = small_llama(
            tokenizer,
            n_layers=settings.n_layers,
            d_model=settings.d_model,
            n_heads=settings.n_heads,
            d_mlp=settings.d_mlp,
            n_positions=1024,
        )
        scale(hf)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = f"llama-{settings.n_layers}x{settings.d_model}"
    return load_model(hf, device, tokenizer=tokenizer, name=name)


def small_llama(
    tokenizer: PreTrainedTokenizerFast,
    *,
    n_layers: int,
    d_model: int,
    n_heads: int,
    d_mlp: int,
    n_positions: int,
    tied: bool = False,
) -> LlamaForCausalLM:
    """A Llama with transformers' own random weights, drawn from torch's generator as it stands."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=d_model,
            intermediate_size=d_mlp,
            num_hidden_layers=n_layers,
            num_attention_heads=n_heads,
            num_key_value_heads=n_heads,
            max_position_embeddings=n_positions,
            tie_word_embeddings=tied,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def scale(hf: PreTrainedModel) -> None:
    """Draw the weights of a model anew, each matrix by its fan-in and embeddings of variance 1.

    With transformers' own small weights, attention to a token that matches another, as in copying
    from the prompt, is found only after thousands of steps, if at all; with these after hundreds.
    The embeddings must not be tied to the output, whose weights stay small.
    """
    output = hf.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in hf.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, Conv1D):
            nn.init.normal_(module.weight, std=module.weight.shape[0] ** -0.5)
        elif isinstance(module, nn.Linear) and module is not output:
            nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)


def with_updates(hf: nn.Module, settings: TrainingSettings, seed: int, device: torch.device) -> Any:
    """Low-rank updates beside every linear map of the blocks, put in place; peft's wrapper."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ModelError(
            "training a pretrained model needs peft: pip install hopscope[train]"
        ) from None
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with seeded(device, seed):
        return get_peft_model(hf, config)


def save_model(model: LanguageModel, folder: Path) -> None:
    """Write a model into a folder, its weights last, so that they stand for the whole."""
    beside = Path(tempfile.mkdtemp(prefix=".model.", dir=folder))
    try:
        model.hf.save_pretrained(beside, max_shard_size="1000GB")
        model.tokenizer.save_pretrained(beside)
        for file in sorted(beside.iterdir(), key=lambda each: each.name == WEIGHTS):
            file.chmod(0o644)
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
