"""Provides a model whose answers and back-patching hits are known, and results made by hand.

The model is a `LlamaForCausalLM` of six blocks whose weights are written by hand. Its norms do
nothing, its residual stream holds features that are 0 or 1, and its MLPs are lists of rules, so
that what it says can be read off the table `FACTS`:

- block 0, attention: each token notes whether "country" and "capital" stand before it;
- block 1, MLP: the token of a bridge names that bridge; the token of an *early* source does, too,
  where "country" stands before it;
- block 2, attention: each token takes over a bridge that is named before it, or at it;
- block 3, MLP: where "capital" stands before it, a token that has taken over a bridge writes the
  answer; only now the token of a *late* source names its bridge;
- block 4, attention: as block 2;
- block 5, MLP: a token that has taken over a bridge writes the bridge's name, fainter than an
  answer; what follows a name ("." and a new line) is written over all of it.

So a late source's bridge comes to the last token after the block that knows the answer. Two
single hops are right and their composition is wrong, as Hopping Too Late (Biran et al. 2024) has
it. It is right again if t1 has its state after block 3 before block 2 runs, or t2 its state after
block 4 before block 3 runs: `HITS`. Another query's state brings another answer.

Where nothing is known the model says "Metro", which makes both shortcuts of one query right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaAttention

from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.experiments.two_hop.grading import Grading
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import FORMS, TwoHopQuery

N_LAYERS = 6
CONTEXT = 64
HEADS, HEAD_DIM = 3, 16
CONTENT = 7
"""The dimension of a head in which keys are told apart; rotary positions leave it as it is."""

ASKED = ("<unk>", "<eos>", "The", "the", "of", "is", "Upper", "country", "capital")
ONLY_SAID = ("again", ".", "\n", "Wrongville", "Lundby")


@dataclass(frozen=True)
class Fact:
    """What the model knows of one query.

    Attributes:
        id: the query's id.
        source: e1, whose last word names the bridge.
        bridge: e2.
        answer: e3.
        block: whose MLP names the bridge at the source; None if none does.
        says: what is written for the answer; None if nothing is.
    """

    id: str
    source: str
    bridge: str
    answer: str
    block: int | None
    says: str | None


FACTS = (
    Fact("early-1", "Arbor", "Aland", "Alba", 1, "Alba"),
    Fact("early-2", "Upper Birch", "Bland", "Brig", 1, "Brig"),
    Fact("late-1", "Cedar", "Cland", "Crag", 3, "Crag"),
    Fact("late-2", "Upper Dogwood", "Dland", "Dale", 3, "Dale"),
    Fact("late-3", "Elm", "Eland", "Port Alva", 3, "Port"),
    Fact("named", "Fir", "Fland", "Firth", 1, "Firth"),
    Fact("usual", "Gorse", "Gland", "Metro", 1, "Metro"),
    Fact("no-first", "Hazel", "Hland", "Holm", None, "Holm"),
    Fact("no-second", "Ivy", "Iland", "Isle", 1, None),
    Fact("second-line", "Juniper", "Jland", "Jarn", 1, "Wrongville"),
    Fact("longer", "Larch", "Lland", "Lund", 1, "Lundby"),
    Fact("half", "Maple", "Mland", "Port Bela", 1, "Port"),
)

SINGLE_HOPS = {"first_hop", "second_hop"}
RIGHT: dict[str, set[str]] = {
    "early-1": {*SINGLE_HOPS, "two_hop"},
    "early-2": {*SINGLE_HOPS, "two_hop"},
    "late-1": SINGLE_HOPS,
    "late-2": SINGLE_HOPS,
    "late-3": SINGLE_HOPS,
    "named": {*SINGLE_HOPS, "two_hop", "entity_shortcut"},
    "usual": {*SINGLE_HOPS, "two_hop", "entity_shortcut", "relation_shortcut"},
    "no-first": {"second_hop"},
    "no-second": {"first_hop"},
    "second-line": {*SINGLE_HOPS, "two_hop"},
    "longer": {"first_hop"},
    "half": {"first_hop"},
}
"""The forms that each query gets right, by whole words in all of the generated text."""

CORRECT = ["early-1", "early-2", "second-line"]
INCORRECT = ["late-1", "late-2", "late-3"]

EARLY_ENOUGH = {(a, b) for a in (3, 4, 5) for b in (0, 1)}
HITS: dict[str, set[tuple[int, int]]] = {
    "t1": EARLY_ENOUGH,
    "t2": {(a, b) for a in (4, 5) for b in (0, 1, 2)},
    "t1->t2": EARLY_ENOUGH | {(4, 2), (5, 2)},
}
"""The cells (source layer, target layer) that repair a late query, by position."""


def known_queries() -> QuerySet:
    """The queries of `FACTS`; demonstrations would come from queries that mean nothing here."""
    queries = tuple(
        TwoHopQuery(
            id=fact.id,
            e1_label=fact.source,
            e2_label=fact.bridge,
            e3_label=fact.answer,
            r1_template="The country of {}",
            r2_template="The capital of {}",
            r2="capital",
        )
        for fact in FACTS
    )
    strange = tuple(
        TwoHopQuery(
            id=f"strange-{i}",
            e1_label=f"zip{i}",
            e2_label=f"zap{i}",
            e3_label=f"zop{i}",
            r1_template="The gear of {}",
            r2_template="The whirr of {}",
        )
        for i in range(4)
    )
    return QuerySet(queries, "known", pool=strange)


def many_queries() -> QuerySet:
    """Queries of which the model knows nothing."""
    return QuerySet(
        tuple(
            TwoHopQuery(
                id=f"q{number}",
                e1_label=f"Tower {number}",
                e2_label=f"Land {number}",
                e3_label=f"City {number}",
                r1_template="The country of {}",
                r2_template="The capital of {}",
            )
            for number in range(40)
        ),
        "many",
    )


def _words() -> list[str]:
    names = (
        word for f in FACTS for name in (f.source, f.bridge, f.answer) for word in name.split()
    )
    return list(dict.fromkeys([*ASKED, *ONLY_SAID, *names]))


Feature = tuple[str, str]
WORDS = _words()
FEATURES: list[Feature] = [
    *(("token", word) for word in WORDS),
    *(("seen", word) for word in ("country", "capital")),
    *(("names", fact.id) for fact in FACTS),
    *(("took", fact.id) for fact in FACTS),
    *(("says", word) for word in WORDS),
]
PLACE = {feature: place for place, feature in enumerate(FEATURES)}
WIDTH = -(-len(FEATURES) // HEADS) * HEADS


@dataclass(frozen=True)
class Rule:
    """In one block: where all features are there, another one is written."""

    block: int
    needs: tuple[Feature, ...]
    writes: Feature
    strength: float = 1.0


def rules() -> Iterator[Rule]:
    """What the MLPs know."""
    for number, fact in enumerate(FACTS):
        source, names, took = fact.source.split()[-1], ("names", fact.id), ("took", fact.id)
        asked = () if fact.id == "named" else (("seen", "country"),)
        yield Rule(1, (("token", fact.bridge),), names)
        if fact.block is not None:
            yield Rule(fact.block, (("token", source), *asked), names)
        if fact.says is not None:
            needs = (took, ("seen", "capital"))
            yield Rule(3, needs, ("says", fact.says), 10 + number / 8)
        yield Rule(5, (took,), ("says", fact.bridge), 1 + number / 64)
    for word, follows in _what_follows().items():
        yield Rule(5, (("token", word),), ("says", follows), 30)
    yield Rule(5, (("token", "\n"), ("took", "second-line")), ("says", "Jarn"), 40)


def _what_follows() -> dict[str, str]:
    ends = [word for fact in FACTS for word in (fact.bridge, fact.answer.split()[-1])]
    return {
        **dict.fromkeys([*ends, "Lundby", "again"], "."),
        "Port": "Alva",
        "Brig": "<eos>",
        "Wrongville": "\n",
        ".": "\n",
        "\n": "again",
    }


class RuleMLP(nn.Module):
    """Adds what the rules of one block write; half a feature is none."""

    def __init__(self, chosen: Sequence[Rule]) -> None:
        super().__init__()
        needs, writes = torch.zeros(WIDTH, len(chosen)), torch.zeros(len(chosen), WIDTH)
        for index, rule in enumerate(chosen):
            for feature in rule.needs:
                needs[PLACE[feature], index] = 2
            writes[index, PLACE[rule.writes]] = rule.strength
        self.needs, self.writes = nn.Parameter(needs), nn.Parameter(writes)
        self.bias = nn.Parameter(torch.tensor([1.0 - 2 * len(rule.needs) for rule in chosen]))

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden.clamp(0, 1) @ self.needs + self.bias).clamp(0, 1) @ self.writes


def _look(attention: LlamaAttention, head: int, pairs: Sequence[tuple[Feature, Feature]]) -> None:
    """Let a head attend to tokens with any of some features, and write others for them."""
    start = head * HEAD_DIM
    attention.q_proj.bias[start + CONTENT] = 16.0
    for index, (sees, writes) in enumerate(pairs):
        attention.k_proj.weight[start + CONTENT, PLACE[sees]] = 16.0
        attention.v_proj.weight[start + index, PLACE[sees]] = 1.0
        attention.o_proj.weight[PLACE[writes], start + index] = 1.0


def _write_weights(hf: LlamaForCausalLM) -> None:
    for parameter in hf.parameters():
        parameter.zero_()
    for number, word in enumerate(WORDS):
        hf.model.embed_tokens.weight[number, PLACE["token", word]] = 1.0
        hf.model.embed_tokens.weight[number, PLACE["says", "Metro"]] = 0.5
        hf.lm_head.weight[number, PLACE["says", word]] = 1.0
    first, second, fourth = (hf.model.layers[block].self_attn for block in (0, 2, 4))
    for head, word in enumerate(("country", "capital")):
        _look(first, head, [(("token", word), ("seen", word))])
    for attention in (second, fourth):
        _look(attention, 2, [(("names", fact.id), ("took", fact.id)) for fact in FACTS])


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words = Regex(r"\n|\.|[^\s.]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, behavior="removed", invert=True)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


@cache
def known_model() -> LanguageModel:
    """The model that knows `FACTS`."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=1,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e20},
        tie_word_embeddings=False,
        eos_token_id=WORDS.index("<eos>"),
        pad_token_id=WORDS.index("<eos>"),
        bos_token_id=None,
    )
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        _write_weights(hf)
    hf.model.norm = nn.Identity()
    for block, layer in enumerate(hf.model.layers):
        layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
        layer.mlp = RuleMLP([rule for rule in rules() if rule.block == block])
    hf.eval()  # type: ignore[no-untyped-call]
    hf.requires_grad_(False)
    return LanguageModel(hf, _tokenizer(), "known")


Cells = Mapping[tuple[str, str, str], set[tuple[int, int]]]


def made_back_patching(
    hits: Cells,
    cells: Sequence[tuple[int, int]],
    logprob: Mapping[tuple[int, int], float] | None = None,
) -> BackPatching:
    """A back-patching result with the hits of each query, position and control.

    Args:
        hits: the cells that hit; every key has a row for each of `cells`.
        cells: the cells that were run.
        logprob: of the answer in a cell; -1 where none is given.
    """
    rows = [
        {
            "query": query,
            "position": position,
            "source_layer": a,
            "target_layer": b,
            "control": control,
            "hit": (a, b) in there,
            "answer_rank": 0 if (a, b) in there else 5,
            "answer_logprob": np.float32((logprob or {}).get((a, b), -1.0)),
            "bridge_rank": 7,
            "bridge_logprob": np.float32(-2.0),
            "generation": f" {query} from {a} to {b}",
        }
        for (query, position, control), there in hits.items()
        for a, b in cells
    ]
    run = {
        "kind": "back_patching",
        "settings": {"criterion": "generation", "seed": 0},
        "model": {"name": "made-up"},
        "queries": {"name": "by-hand", "n": len({query for query, _, _ in hits})},
    }
    return BackPatching(pd.DataFrame(rows), _made_details(hits), run)


def _made_details(hits: Cells) -> pd.DataFrame:
    asked = dict.fromkeys((query, position) for query, position, _ in hits)
    return pd.DataFrame(
        [
            {
                "query": query,
                "position": position,
                "prompt": f"The capital of the country of {query} is",
                "bridge": f"bridge of {query}",
                "answer": f"answer of {query}",
                "token": 3,
                "clean_generation": f" before {query}",
                "clean_hit": False,
                "clean_rank": 7,
                "clean_logprob": -5.0,
                "clean_bridge_rank": 3,
                "clean_bridge_logprob": -4.0,
                "donor": None,
                "donor_same_relation": None,
            }
            for query, position in asked
        ]
    )


def made_grading(right: Mapping[str, set[str]]) -> Grading:
    """A grading in which each query passes the forms of `right`."""
    rows = [
        (query, form, f"{form} of {query}", f" {form} said", form in passed)
        for query, passed in right.items()
        for form in FORMS
    ]
    frame = pd.DataFrame(rows, columns=["query", "form", "prompt", "generation", "correct"])
    details = pd.DataFrame({"query": list(right), "source": "s", "bridge": "b", "answer": "a"})
    run = {
        "kind": "grading",
        "settings": {"match": "word"},
        "model": {"name": "made-up"},
        "queries": {"name": "by-hand", "n": len(right)},
    }
    return Grading(frame, details, run)


def parts(folder: Path) -> dict[str, bytes]:
    """The tables of a run folder, by the names of their files."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}
