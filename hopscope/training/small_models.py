"""Provides the models to train: a small model from scratch, or LoRA on a pretrained one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from hopscope.documents.question_set import MultiDocQuestion
from hopscope.documents.world_docs import NAMES
from hopscope.errors import ModelError
from hopscope.files import filling_folder
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.text_bars import text_bars
from hopscope.training.fit import WEIGHTS, torch_seed
from hopscope.training.settings import TrainingSettings

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"


def word_tokenizer(questions: Sequence[MultiDocQuestion]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each word and punctuation mark of some questions.

    Args:
        questions: the questions. The vocabulary consists of the words in their documents,
            questions and answers, and of all invented names of `world-docs`; other words become
            the unknown token.
    """
    split = pre_tokenizers.Whitespace()
    words = set(NAMES)
    for question in questions:
        question_texts = [
            question.question,
            question.answer,
            *(hop.question for hop in question.hops),
        ]
        texts = [
            *question_texts,
            *(document.text for document in question.documents),
            "Question: Answer:",
        ]
        words.update(word for text in texts for word, _ in split.pre_tokenize_str(text))
    return whole_words(sorted(words))


def whole_words(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer in which each given word is one token, after the special tokens."""
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
    """Build an untrained Llama model of a few layers with a tokenizer of whole words.

    Args:
        questions: questions whose words form the vocabulary.
        settings: settings that give the shape of the model.
        seed: seed of the weights, which are drawn on the CPU.
        device: device of the model; by default CUDA if available.
    """
    settings = settings or TrainingSettings()
    tokenizer = word_tokenizer(questions)
    with torch_seed(torch.device("cpu"), seed), torch.device("cpu"):
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
    """Build a Llama with the default random weights of transformers, without seeding torch."""
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
    """Redraw the weights of a model: matrices scaled by fan-in, embeddings of variance 1.

    With the small default weights of transformers, attention to a matching token, as in copying
    from the prompt, emerges after thousands of steps, if at all; with these weights, after
    hundreds. The embeddings must not be tied to the output matrix, which keeps its small weights.
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
    """Add low-rank updates (LoRA) to all linear maps of the blocks in place.

    Returns:
        The peft model that wraps `hf`.

    Raises:
        ModelError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ModelError(
            "training a pretrained model needs peft: pip install hopscope[train]"
        ) from None
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch_seed(device, seed):
        return get_peft_model(hf, config)


def save_model(model: LanguageModel, folder: Path) -> None:
    """Write a model and its tokenizer into an existing folder, in the Hugging Face layout.

    The weights are put in place last, so that a folder that has them is complete.
    """
    with filling_folder(folder, last=WEIGHTS) as temporary, text_bars():
        model.hf.save_pretrained(temporary, max_shard_size="1000GB")
        model.tokenizer.save_pretrained(temporary)
