"""Provides a model that says the name in the first document, and questions whose order decides.

A `LlamaForCausalLM` of two blocks and one head, with weights written by hand and without norms. A
document is a name and the word "end":

- block 0, attention: each token notes how much "end" stands before it;
- block 0, MLP: a name before which there is no "end" is marked as the first;
- block 1, attention: each token takes over the names that are marked before it, in equal shares;
- a name that is taken over whole is said; else "Metro", which is also said of nothing.
"""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.documents.templates import Template
from hopscope.models.language_model import LanguageModel

NAMES = ("Alba", "Brig", "Crag", "Dale")
WORDS = ("<unk>", "<eos>", *NAMES, "end", "Metro", "say", "\n")
FEATURES = (
    *(("token", word) for word in WORDS),
    ("seen", "end"),
    *(("first", name) for name in NAMES),
    *(("took", name) for name in NAMES),
    ("says", "Metro"),
)
PLACE = {feature: place for place, feature in enumerate(FEATURES)}
HEAD_DIM = 16
CONTENT = 7
"""The dimension in which keys are told apart; rotary positions leave it as it is."""

FORM = Template("", "{text}\n", "{question}", max_new_tokens=1)


class MarkFirst(nn.Module):
    """Marks a name where no "end" was seen, even faintly."""

    def forward(self, hidden: Tensor) -> Tensor:
        written = torch.zeros_like(hidden)
        seen = (hidden[..., PLACE["seen", "end"]] > 0.01).to(hidden)
        for name in NAMES:
            first = hidden[..., PLACE["token", name]] * (1 - seen)
            written[..., PLACE["first", name]] = first
        return written


class Nothing(nn.Module):
    """Writes nothing."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


def _write_weights(hf: LlamaForCausalLM) -> None:
    for parameter in hf.parameters():
        parameter.zero_()
    for number, word in enumerate(WORDS):
        hf.model.embed_tokens.weight[number, PLACE["token", word]] = 1.0
        hf.model.embed_tokens.weight[number, PLACE["says", "Metro"]] = 0.6
    for name in NAMES:
        hf.lm_head.weight[WORDS.index(name), PLACE["took", name]] = 1.0
    hf.lm_head.weight[WORDS.index("Metro"), PLACE["says", "Metro"]] = 1.0
    looks = (
        [(("token", "end"), ("seen", "end"))],
        [(("first", name), ("took", name)) for name in NAMES],
    )
    for layer, pairs in zip(hf.model.layers, looks, strict=True):
        layer.self_attn.q_proj.bias[CONTENT] = 16.0
        for index, (sees, writes) in enumerate(pairs):
            layer.self_attn.k_proj.weight[CONTENT, PLACE[sees]] = 16.0
            layer.self_attn.v_proj.weight[index, PLACE[sees]] = 1.0
            layer.self_attn.o_proj.weight[PLACE[writes], index] = 1.0


@cache
def first_model() -> LanguageModel:
    """The model that says the name in the first document."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=len(FEATURES) + len(FEATURES) % 2,
        intermediate_size=1,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=HEAD_DIM,
        max_position_embeddings=64,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e20},
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=None,
    )
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        _write_weights(hf)
    hf.model.norm = nn.Identity()
    for layer, mlp in zip(hf.model.layers, (MarkFirst(), Nothing()), strict=True):
        layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
        layer.mlp = mlp
    hf.eval()  # type: ignore[no-untyped-call]
    hf.requires_grad_(False)
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    words = Regex(r"\n|[^\s]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, behavior="removed", invert=True)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    return LanguageModel(hf, fast, "first-document")


def first_questions() -> QuestionSet:
    """Questions that are right only if the second hop's document comes first: `backward`."""
    made = []
    for first, second, other in ((1, 0, 2), (2, 3, 0), (3, 1, 2)):
        documents = [Document(f"T{each}", f"{NAMES[each]} end") for each in (first, second, other)]
        hops = (Hop("", NAMES[first], 0), Hop("", NAMES[second], 1))
        made.append(MultiDocQuestion(f"q{second}", "say", NAMES[second], tuple(documents), hops))
    return QuestionSet(tuple(made), "first")
