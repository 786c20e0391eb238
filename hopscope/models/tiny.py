"""Provides small random models of each supported family, with a small tokenizer, for tests."""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from hopscope.errors import UnknownModelError, one_of

VOCAB_SIZE = 512
MAX_POSITIONS = 256
SLIDING_WINDOW = 8
"""Short, so that a prompt of a dozen tokens exceeds it."""

INITIALIZER_RANGE = 0.3
"""Large, so that the prediction depends on the blocks and not only on the last token."""

GAIN_SPREAD = 0.2
"""Standard deviation of the noise on norm weights and biases, which would otherwise be trivial."""

T5_WRITER_SCALE = 10.0
"""Factor on the weights that write to the residual stream of T5, to outweigh its embeddings."""

T5_QUERY_SCALE = 2.0
"""Factor on the query weights of T5, so that attention is not close to uniform."""

GEMMA_POST_NORM_GAIN = 2.0
"""Added to the weights of Gemma's post-norms, to outweigh its scaled embeddings."""

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"

_LLAMA_SHAPE: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": INITIALIZER_RANGE,
    }
)
_ALTERNATING = ("sliding_attention", "full_attention") * 2
_GEMMA_SHAPE: Mapping[str, Any] = MappingProxyType(
    {
        **_LLAMA_SHAPE,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": list(_ALTERNATING),
        "tie_word_embeddings": True,
    }
)
_GPT2_SHAPE: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCAB_SIZE,
        "n_embd": 48,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": MAX_POSITIONS,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": True,
    }
)
_T5_SHAPE: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCAB_SIZE,
        "d_model": 48,
        "d_kv": 12,
        "d_ff": 96,
        "num_layers": 4,
        "num_decoder_layers": 3,  # differs from num_layers, so that a mix-up shows
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    }
)
_NEOX_SHAPE: Mapping[str, Any] = MappingProxyType(
    {k: v for k, v in _LLAMA_SHAPE.items() if k != "num_key_value_heads"}
)

_FAMILIES: Mapping[str, tuple[Callable[..., PreTrainedConfig], Mapping[str, Any]]] = (
    MappingProxyType(
        {
            # Tied embeddings, as in SmolLM2 and Llama 3.2 1B.
            "tiny-random-llama": (LlamaConfig, {**_LLAMA_SHAPE, "tie_word_embeddings": True}),
            "tiny-random-mistral": (
                MistralConfig,
                {**_LLAMA_SHAPE, "sliding_window": SLIDING_WINDOW},
            ),
            "tiny-random-qwen2": (Qwen2Config, {**_LLAMA_SHAPE, "tie_word_embeddings": True}),
            "tiny-random-qwen3": (
                Qwen3Config,
                {**_LLAMA_SHAPE, "head_dim": 16, "tie_word_embeddings": True},
            ),
            "tiny-random-gemma2": (
                Gemma2Config,
                # Far lower than the real 50 and 30, which these logits would never reach.
                {**_GEMMA_SHAPE, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0},
            ),
            "tiny-random-gemma3": (Gemma3TextConfig, _GEMMA_SHAPE),
            "tiny-random-gpt2": (GPT2Config, _GPT2_SHAPE),
            "tiny-random-gpt-neox": (GPTNeoXConfig, _NEOX_SHAPE),
            "tiny-random-olmo2": (Olmo2Config, _LLAMA_SHAPE),
        }
    )
)

TINY_FAMILIES: tuple[str, ...] = tuple(_FAMILIES)
"""Names of the causal models that `build_tiny` can build, one for each supported family."""

_ENCODER_DECODERS: Mapping[str, tuple[Callable[..., PreTrainedConfig], Mapping[str, Any]]] = (
    MappingProxyType({"tiny-random-t5": (T5Config, _T5_SHAPE)})
)

TINY_ENCODER_DECODERS: tuple[str, ...] = tuple(_ENCODER_DECODERS)
"""Names of the encoder-decoders that `build_tiny` can build."""

_ADDS_BOS = frozenset({"tiny-random-mistral", "tiny-random-gemma2", "tiny-random-gemma3"})

_CORPUS: tuple[str, ...] = (
    "The capital of France is Paris. The capital of Italy is Rome.",
    "The capital of Spain is Madrid. The capital of Germany is Berlin.",
    "The capital of the country of the Eiffel Tower is Paris.",
    "The capital of the country of the Colosseum is Rome.",
    "The country of the Eiffel Tower is France. The country of Kyoto is Japan.",
    "The official language of the country of Kyoto is Japanese.",
    "The official language of Brazil is Portuguese. The currency of Japan is the yen.",
    "The currency of the country of Berlin is the euro.",
    "The author of the novel Hamlet is William Shakespeare.",
    "The author of War and Peace is Leo Tolstoy, who was born in Russia.",
    "The birthplace of the author of the novel Pride and Prejudice is Steventon.",
    "The spouse of the performer of the song Imagine is Yoko Ono.",
    "The performer of the song Imagine is John Lennon, a singer of the United Kingdom.",
    "The mother of the singer of the song Thriller is Katherine Jackson.",
    "The director of the film Titanic is James Cameron, born in Canada.",
    "The country of citizenship of the director of the film Titanic is Canada.",
    "The founder of the company Microsoft is Bill Gates.",
    "The place of birth of the founder of the company Tesla is Pretoria.",
    "The continent of the country of the city of Nairobi is Africa.",
    "The head of state of the country of the city of London is the king.",
    "Which river flows through the capital of Austria? The river Danube.",
    "Who was the father of the composer of the opera The Magic Flute?",
    "Question: where was the author of the book born? Answer: in the city of Dublin.",
    "The university of the inventor of the World Wide Web is Oxford.",
    "The sport of the player Lionel Messi is football, and his team is of Argentina.",
    "The largest city of the country whose capital is Ottawa is Toronto.",
)


@cache
def _trained_tokenizer() -> str:
    """Returns the shared byte-level BPE as JSON, trained on `_CORPUS` (deterministic)."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, EOS, BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return str(tokenizer.to_str())


def _build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(_trained_tokenizer())
    special: dict[str, Any] = {"pad_token": PAD, "eos_token": EOS}
    if name in _ADDS_BOS:
        special |= {"bos_token": BOS, "add_bos_token": True}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    if name in TINY_ENCODER_DECODERS:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        name_or_path=name,  # TransformerLens reads it
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **special,
    )


def _spread_gains(model: PreTrainedModel) -> None:
    """Perturbs norm weights and biases from their initial 0 or 1, so that omitting one shows.

    In T5 it also scales the blocks to outweigh the embeddings and draws the relative position bias.
    """
    is_t5 = model.config.model_type == "t5"
    is_gemma = model.config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=GAIN_SPREAD)
            if is_t5 and name.endswith((".o.weight", ".wo.weight")):
                parameter.mul_(T5_WRITER_SCALE)
            if is_t5 and name.endswith(".q.weight"):
                parameter.mul_(T5_QUERY_SCALE)
            if is_t5 and "relative_attention_bias" in name:
                parameter.normal_()
            if is_gemma and ".post_" in name:
                parameter.add_(GEMMA_POST_NORM_GAIN)


def build_tiny(name: str, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Builds a random four-layer model of one family, with its tokenizer, from a seed.

    The weights are drawn on the CPU in float32, without changing the global random state. The
    tokenizer is a byte-level BPE of 512 tokens that round-trips any text. It adds a BOS token for
    the families whose real tokenizer does (Mistral, Gemma), and appends an EOS token for T5. The
    decoder of T5 has three layers.

    Args:
        name: One of `TINY_FAMILIES`, such as `"tiny-random-llama"`, or of `TINY_ENCODER_DECODERS`.
        seed: Seed of the weights.

    Returns:
        The model, in eval mode on the CPU, and its fast tokenizer.

    Raises:
        UnknownModelError: For any other name.

    Example:
        >>> model, tokenizer = build_tiny("tiny-random-llama", seed=1)
        >>> model.config.num_hidden_layers, len(tokenizer)
        (4, 512)
    """
    known = {**_FAMILIES, **_ENCODER_DECODERS}
    config_class, settings = known[one_of("tiny model", name, known, UnknownModelError)]
    tokenizer = _build_tokenizer(name)
    auto: Any = AutoModelForSeq2SeqLM if name in _ENCODER_DECODERS else AutoModelForCausalLM
    config = config_class(
        **settings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    # Only the CPU generator: torch.manual_seed would also reseed all CUDA devices.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
        _spread_gains(model)
    model.config.architectures = [type(model).__name__]  # as in a saved model
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer
