"""read_encoder_decoder against T5 written out with loops over layers, and against transformers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MT5Config, UMT5Config
from transformers.models.auto import AutoModelForSeq2SeqLM

from hopscope.documents.lay_out import lay_out
from hopscope.documents.layout import Layout
from hopscope.documents.question_set import Document, Hop, MultiDocQuestion
from hopscope.engine.masked.encoder_decoder import encoder_masses, read_encoder_decoder
from hopscope.engine.read_out import ReadOut, Version
from hopscope.errors import UsageError
from hopscope.masks.algebra import Mask
from hopscope.masks.named import causal, itself, knock_out, mask_of, prefix_bidirectional
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.load import load_encoder_decoder
from hopscope.models.tiny import build_tiny

QUESTION = MultiDocQuestion(
    id="q",
    question="Where was the author of Hamlet born?",
    answer="Stratford",
    documents=(
        Document("Kyoto", "Kyoto is a city of Japan."),
        Document("Hamlet", "The author of Hamlet is William Shakespeare."),
        Document("The yen", "The yen is the currency of Japan, a country of Asia."),
        Document("Shakespeare", "William Shakespeare was born in Stratford."),
    ),
    hops=(
        Hop("Who is the author of Hamlet?", "William Shakespeare", 1),
        Hop("Where was #1 born?", "Stratford", 3),
    ),
)
SHORT = QUESTION.without([2])
ALL = ReadOut(track=tuple(range(512)), max_new_tokens=5)
BIDIRECTIONAL = prefix_bidirectional()
MASKS: tuple[Mask, ...] = (
    BIDIRECTIONAL,
    causal(),
    mask_of("document_block"),
    mask_of("document_bidirectional"),
    BIDIRECTIONAL & knock_out("question", "gold 1", layers=[0, 2]),
    BIDIRECTIONAL & knock_out("last", "documents", heads=[1, 3]),
    (causal() & knock_out("gold 2", "gold 1", layers=[1], heads=[0])) | itself(),
)
T5_LIKE = ("t5", "mt5", "umt5")


@cache
def model_of(kind: str = "t5", implementation: str = "sdpa", seed: int = 0) -> EncoderDecoder:
    """A tiny model: T5 itself, or one of its kin with random weights of its own."""
    hf, tokenizer = build_tiny("tiny-random-t5", seed)
    if kind != "t5":
        config_class: Any = {"mt5": MT5Config, "umt5": UMT5Config}[kind]
        settings = {k: v for k, v in hf.config.to_dict().items() if k != "model_type"}
        config = config_class(**settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            auto: Any = AutoModelForSeq2SeqLM
            hf = auto.from_config(config)
            for name, parameter in hf.named_parameters():
                parameter.data *= 8 if name.endswith((".o.weight", ".wo.weight")) else 1
                if "relative_attention_bias" in name:
                    parameter.data.normal_()
    hf.set_attn_implementation(implementation)
    return load_encoder_decoder(hf, tokenizer=tokenizer, name=kind)


def layout(order: Any = "original", question: MultiDocQuestion = QUESTION, **how: Any) -> Layout:
    def encode(text: str) -> Any:
        encoded = model_of().encode(text)
        return encoded.ids, encoded.offsets

    return lay_out(encode, question, order, template="plain", **how)


def normed(hidden: Tensor, norm: Any) -> Tensor:
    scale = (hidden.pow(2).mean(dim=-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    return norm.weight * (hidden * scale)  # type: ignore[no-any-return]


def attended(
    module: Any, queries: Tensor, keys: Tensor, keep: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention one head after the other, and its weights (head, query, key)."""
    width, outputs, weights = module.key_value_proj_dim, [], []
    for head in range(module.n_heads):
        own = slice(head * width, (head + 1) * width)
        q, k, v = (queries @ module.q.weight[own].T, *(keys @ w.weight[own].T for w in kv(module)))
        scores = q @ k.T + bias[head]
        seen = keep[head if len(keep) > 1 else 0]
        scores = scores.masked_fill(~seen, float("-inf"))
        weights.append(scores.softmax(dim=-1))
        outputs.append(weights[-1] @ v)
    return torch.cat(outputs, dim=-1) @ module.o.weight.T, torch.stack(weights)


def kv(module: Any) -> tuple[Any, Any]:
    return module.k, module.v


def plain(
    model: EncoderDecoder, version: Version, answer: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (token, vocabulary), encoder and cross-attention weights, of one version."""
    hf: Any = model.hf
    ids, n = list(version.layout.ids), len(version.layout)
    n_answer = len(answer)
    keep = [version.mask.keep(version.layout, layer, 4) for layer in range(4)]
    hidden, patterns, cross_patterns = hf.shared.weight[ids], [], []
    first: Any = None
    for layer, block in enumerate(hf.encoder.block):
        own = block.layer[0].SelfAttention
        if own.has_relative_attention_bias:
            first = own.compute_bias(n, n)[0]
        at = normed(hidden, block.layer[0].layer_norm)
        written, weights = attended(own, at, at, keep[layer], first)
        hidden = hidden + written
        hidden = hidden + fed_forward(block.layer[1], hidden)
        patterns.append(weights)
    encoded = normed(hidden, hf.encoder.final_layer_norm)
    hidden, first = hf.shared.weight[answer], None
    before = torch.ones(1, n_answer, n_answer, dtype=torch.bool).tril()
    for layer, block in enumerate(hf.decoder.block):
        own, cross = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
        if own.has_relative_attention_bias:
            first = own.compute_bias(n_answer, n_answer)[0]
        at = normed(hidden, block.layer[0].layer_norm)
        hidden = hidden + attended(own, at, at, before, first)[0]
        at = normed(hidden, block.layer[1].layer_norm)
        seen = keep[layer][:, -1:].expand(-1, n_answer, -1)
        written, weights = attended(cross, at, encoded, seen, torch.zeros(4))
        hidden = hidden + written
        hidden = hidden + fed_forward(block.layer[2], hidden)
        cross_patterns.append(weights)
    hidden = normed(hidden, hf.decoder.final_layer_norm)
    if hf.config.scale_decoder_outputs and hf.config.model_type != "mt5":
        hidden = hidden * hf.config.d_model**-0.5
    return hf.lm_head(hidden), torch.stack(patterns), torch.stack(cross_patterns)


def fed_forward(sublayer: Any, hidden: Tensor) -> Tensor:
    dense = sublayer.DenseReluDense
    hidden = normed(hidden, sublayer.layer_norm)
    gate = torch.nn.functional.gelu(hidden @ dense.wi_0.weight.T, approximate="tanh")
    return (gate * (hidden @ dense.wi_1.weight.T)) @ dense.wo.weight.T  # type: ignore[no-any-return]


def plain_greedy(model: EncoderDecoder, version: Version, n_new: int) -> tuple[int, ...]:
    answer = [0]
    for _ in range(n_new):
        token = int(plain(model, version, answer)[0][-1].argmax())
        if token in model.end_tokens:
            break
        answer.append(token)
    return tuple(answer[1:])


def plain_masses(weights: Tensor, of: Layout) -> Tensor:
    """Weights (layer, head, token, key) summed by segment, as (token, layer, head, segment)."""
    parts = [weights[..., start:end].sum(dim=-1) for start, end in of.segments]
    parts.append(torch.zeros_like(parts[0]))
    return torch.stack(parts, dim=-1).permute(2, 0, 1, 3)


@pytest.mark.parametrize("kind", T5_LIKE)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_every_mask_equals_a_plain_forward(kind: str, implementation: str) -> None:
    model = model_of(kind, implementation)
    layouts = [layout(), layout("backward", way="mask"), layout("rm_first", way="mask")]
    layouts.append(layout(question=SHORT))
    versions = [Version(each, mask) for each in layouts for mask in MASKS]
    read = read_encoder_decoder(model, versions, ALL, attention=True)
    assert read.masses is not None
    for index, version in enumerate(versions):
        said = read.outputs.tokens[index]
        logits, _, weights = plain(model, version, [0, *said])
        found = read.outputs.tracked[index]
        torch.testing.assert_close(found, logits[0].log_softmax(-1), atol=2e-4, rtol=1e-4)
        assert said == plain_greedy(model, version, 5)
        expected = plain_masses(weights, version.layout)
        torch.testing.assert_close(read.masses[index], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_masks_and_orders_make_a_difference() -> None:
    """If they did not, the test above would show nothing."""
    versions = [Version(layout(), mask) for mask in MASKS]
    versions += [Version(layout(order), BIDIRECTIONAL) for order in ("forward", "backward")]
    read = read_encoder_decoder(model_of(), versions, ALL).outputs.tracked
    distances = torch.cdist(read, read) + 9 * torch.eye(len(read))
    same = [(a, b) for a, b in (distances < 0.1).nonzero().tolist() if a < b]
    assert same == [(0, 7)], "only the original order, which is forward, may be the same"


@pytest.mark.parametrize("kind", T5_LIKE)
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.name)
@torch.no_grad()
def test_encoder_masses_equal_a_plain_forward(kind: str, mask: Mask) -> None:
    model, version = model_of(kind), Version(layout("rm_first", way="mask"), mask)
    _, weights, _ = plain(model, version, [0])
    found, segments = encoder_masses(model, version), version.layout.segments
    assert found.shape == (4, 4, len(segments), len(segments))
    for i, (a, b) in enumerate(segments):
        for j, (c, d) in enumerate(segments):
            expected = weights[:, :, a:b, c:d].sum(dim=-1).mean(dim=-1)
            torch.testing.assert_close(found[:, :, i, j], expected, equal_nan=True)
    filled = [i for i, (a, b) in enumerate(segments) if b > a]
    assert len(filled) == len(segments) - 1, "the template has an instruction after all"
    torch.testing.assert_close(found[:, :, filled].sum(dim=-1), torch.ones(4, 4, len(filled)))


def generated(hf: Any, of: Layout, n_new: int, **how: Any) -> tuple[int, ...]:
    ids = torch.tensor([of.ids])
    out = hf.generate(input_ids=ids, max_new_tokens=n_new, do_sample=False, **how)
    return tuple(token for token in out[0, 1:].tolist() if token != 1)


@pytest.mark.parametrize("kind", T5_LIKE)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_without_a_mask_it_says_what_generate_says(kind: str, implementation: str) -> None:
    model = model_of(kind, implementation)
    hf = model_of(kind, "sdpa").hf
    layouts = [layout(order) for order in ("original", "backward", "rm_first", "gold")]
    versions = [Version(each, BIDIRECTIONAL) for each in layouts]
    read = read_encoder_decoder(model, versions, ReadOut(max_new_tokens=8))
    assert read.outputs.tokens == tuple(generated(hf, each, 8) for each in layouts)
    assert read.masses is None


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_a_hidden_document_is_as_one_that_transformers_masks(seed: int) -> None:
    model = model_of(seed=seed)
    hidden = layout("rm_first", way="mask")
    seen = torch.as_tensor(~hidden.hidden)[None].long()
    assert int((1 - seen).sum()) == len(hidden.document(QUESTION.gold[0])) > 0
    version = Version(hidden, BIDIRECTIONAL)
    read = read_encoder_decoder(model, [version], ALL, attention=True)
    expected = model.hf(
        input_ids=torch.tensor([hidden.ids]),
        attention_mask=seen,
        decoder_input_ids=torch.tensor([[0]]),
    ).logits[0, -1]
    torch.testing.assert_close(
        read.outputs.tracked[0], expected.log_softmax(-1), atol=1e-4, rtol=1e-4
    )
    assert read.outputs.tokens[0] == generated(model.hf, hidden, 5, attention_mask=seen)
    assert read.masses is not None
    assert not read.masses[0][..., 1 + QUESTION.gold[0]].any()


@torch.no_grad()
def test_a_hidden_last_document_is_as_one_that_is_not_there() -> None:
    """Nothing but the question lies behind it, and that is as far away as if it were there."""
    model = model_of()
    hidden = layout((0, 1, 2), way="mask")
    gone = layout((0, 1, 2))
    assert len(gone) < len(hidden)
    whole = torch.arange(len(hidden))
    kept = whole[~torch.as_tensor(hidden.hidden)]
    assert [hidden.ids[place] for place in kept] == list(gone.ids)
    read = read_encoder_decoder(model, [Version(hidden, BIDIRECTIONAL)], ALL)
    hf: Any = model.hf
    bias = model.encoder_bias(0, len(hidden))[:, :, kept][..., kept]
    handles = [
        block.layer[0].register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "position_bias": bias}), with_kwargs=True
        )
        for block in hf.encoder.block
    ]
    ids = torch.tensor([gone.ids])
    logits = hf(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, -1]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(
        read.outputs.tracked[0], logits.log_softmax(-1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", T5_LIKE)
@torch.no_grad()
def test_masses_equal_the_attentions_that_an_eager_model_tells(kind: str) -> None:
    model, eager = model_of(kind), model_of(kind, "eager")
    version = Version(layout(), BIDIRECTIONAL)
    read = read_encoder_decoder(model, [version], ReadOut(max_new_tokens=4), attention=True)
    assert read.masses is not None
    masses = read.masses[0]
    answer = [0, *read.outputs.tokens[0]]
    assert masses.shape == (len(answer), 3, 4, len(version.layout.segments) + 1)
    told = eager.hf(
        input_ids=torch.tensor([version.layout.ids]),
        decoder_input_ids=torch.tensor([answer]),
        output_attentions=True,
    )
    expected = plain_masses(torch.stack(told.cross_attentions)[:, 0], version.layout)
    torch.testing.assert_close(masses, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masses.sum(dim=-1), torch.ones(masses.shape[:-1]))
    assert not masses[..., -1].any()
    own = torch.stack(told.encoder_attentions)[:, 0]
    (a, b), (c, d) = version.layout.segments[-1], version.layout.segments[2]
    group = own[:, :, a:b, c:d].sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(encoder_masses(model, version)[:, :, -1, 2], group)


def test_batches_equal_single_rows() -> None:
    model = model_of()
    layouts = [layout(), layout("rm_first"), layout(question=SHORT), layout(SHORT.gold)]
    versions = [Version(each, mask) for each in layouts for mask in MASKS]
    what = ReadOut((300, 41), 6, top_k=3, track=(5, 6))
    together = read_encoder_decoder(model, versions, what, attention=True)
    few = read_encoder_decoder(model, versions, what, attention=True, max_memory=1)
    alone = [read_encoder_decoder(model, [each], what, attention=True) for each in versions]
    for index, one in enumerate(alone):
        for read in (together, few):
            for name in ("rank", "top_tokens"):
                assert torch.equal(
                    getattr(read.outputs, name)[index], getattr(one.outputs, name)[0]
                )
            for name in ("logprob", "top_logprobs", "tracked"):
                found = getattr(read.outputs, name)[index]
                torch.testing.assert_close(found, getattr(one.outputs, name)[0])
            assert read.outputs.tokens[index] == one.outputs.tokens[0]
            assert read.masses is not None
            assert one.masses is not None
            torch.testing.assert_close(read.masses[index], one.masses[0], atol=1e-5, rtol=1e-4)


def test_a_batch_is_halved_when_memory_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    model, versions = model_of(), [Version(layout(), mask) for mask in MASKS]
    expected = read_encoder_decoder(model, versions, ALL)

    def hook(_: Any, __: Any, output: Any) -> None:
        if len(output.last_hidden_state) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.encoder.register_forward_hook(hook)
    try:
        found = read_encoder_decoder(model, versions, ALL)
    finally:
        handle.remove()
    assert f"out of memory with {len(MASKS)} rows; going on with {len(MASKS) // 2}" in caplog.text
    assert found.outputs.tokens == expected.outputs.tokens
    torch.testing.assert_close(found.outputs.tracked, expected.outputs.tracked)


def test_versions_that_cannot_differ_are_encoded_once() -> None:
    model, rows = model_of(), list[int]()
    handle = model.encoder.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    orders = ("original", "backward", "forward", "shuffle_1")
    versions = [Version(layout(order, way="mask"), BIDIRECTIONAL) for order in orders]
    try:
        read = read_encoder_decoder(model, versions, ALL, attention=True)
    finally:
        handle.remove()
    assert rows == [1]
    assert len(set(read.outputs.tokens)) == 1
    assert torch.equal(read.outputs.tracked, read.outputs.tracked[:1].expand(4, -1))


def test_a_generation_stops_where_it_is_told_to() -> None:
    model, version = model_of(), Version(layout(), BIDIRECTIONAL)
    long = read_encoder_decoder(model, [version], ReadOut(max_new_tokens=6)).outputs.tokens[0]
    what = ReadOut(max_new_tokens=6, stop=lambda tokens: len(tokens) == 2)
    read = read_encoder_decoder(model, [version], what, attention=True)
    assert read.outputs.tokens == (long[:2],)
    assert read.masses is not None
    assert len(read.masses[0]) == 3
    read = read_encoder_decoder(model, [version], ReadOut((7,)), attention=True)
    assert read.outputs.tokens == ((),)
    assert read.masses is not None
    assert len(read.masses[0]) == 1


def test_a_generation_ends_at_an_end_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(seed=1)
    version = Version(layout(), BIDIRECTIONAL)
    said = read_encoder_decoder(model, [version], ReadOut(max_new_tokens=6)).outputs.tokens[0]
    monkeypatch.setattr(type(model), "end_tokens", frozenset([said[0]]))
    ended = read_encoder_decoder(model, [version], ReadOut(max_new_tokens=6), attention=True)
    assert ended.outputs.tokens == ((),)
    assert ended.masses is not None
    assert len(ended.masses[0]) == 1


def test_hooks_are_gone_afterwards() -> None:
    model = model_of()
    read_encoder_decoder(model, [Version(layout(), causal())], ALL, attention=True)
    encoder_masses(model, Version(layout(), causal()))
    for module in model.hf.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("way", ["positions", "positions+mask"])
def test_position_ids_cannot_be_permuted(way: str) -> None:
    version = Version(layout("backward", way=way), BIDIRECTIONAL)
    for call in (
        lambda: read_encoder_decoder(model_of(), [version], ALL),
        lambda: encoder_masses(model_of(), version),
    ):
        with pytest.raises(UsageError, match="takes no position ids: permute by way='text'"):
            call()


def test_shared_positions_are_position_ids_too() -> None:
    version = Version(layout().with_shared_positions(), BIDIRECTIONAL)
    with pytest.raises(UsageError, match="no position ids"):
        read_encoder_decoder(model_of(), [version], ALL)


def test_an_answer_is_no_part_of_the_prompt() -> None:
    version = Version(layout(answer="Stratford"), BIDIRECTIONAL)
    with pytest.raises(UsageError, match="without an answer"):
        read_encoder_decoder(model_of(), [version], ALL)


def test_draws_are_refused() -> None:
    what = ReadOut(max_new_tokens=1, draws=torch.zeros(1, 1))
    with pytest.raises(UsageError, match="draws"):
        read_encoder_decoder(model_of(), [Version(layout(), BIDIRECTIONAL)], what)


def test_flex_attention_is_refused() -> None:
    model = load_encoder_decoder("tiny-random-t5", device="cpu")
    config: Any = model.encoder.config
    config._attn_implementation = "flex_attention"
    version = Version(layout(), BIDIRECTIONAL)
    for call in (
        lambda: read_encoder_decoder(model, [version], ALL),
        lambda: encoder_masses(model, version),
    ):
        with pytest.raises(UsageError, match="'sdpa' or 'eager'"):
            call()


def test_a_blind_token_is_refused() -> None:
    with pytest.raises(UsageError, match="sees nothing"):
        read_encoder_decoder(model_of(), [Version(layout(), ~BIDIRECTIONAL)], ALL)
