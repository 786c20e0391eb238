"""A prompt as tokens: its positions, its demonstrations, and which prompts can be one batch."""

from __future__ import annotations

import copy

import pytest
from conftest import loaded
from tokenizers import processors

from hopscope.documents.load import load_questions
from hopscope.errors import QueryError, UsageError
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.language_model import LanguageModel
from hopscope.models.tiny import build_tiny
from hopscope.prompting.document_prompts import DocumentPrompts
from hopscope.prompting.tokenized import TokenizedPrompt, by_shape, spans_of
from hopscope.queries.prompts import Prompt
from hopscope.queries.two_hop_query import TwoHopQuery

SPANS = spans_of(2)
QUERY = TwoHopQuery(
    id="1",
    e1_label="the Eiffel Tower",
    e2_label="France",
    e3_label="Paris",
    r1_template="The country where {} is located",
    r2_template="The capital of {}",
)
DEMONSTRATIONS = ("", "The capital of Japan is Tokyo.\n", "Q: 2+2?\n\nA: 4\n\n")


@pytest.mark.parametrize("demonstrations", DEMONSTRATIONS)
def test_named_positions(tiny_model: LanguageModel, demonstrations: str) -> None:
    prompt = TokenizedPrompt.of(tiny_model, Prompt.of(QUERY, demonstrations=demonstrations))
    names = ("e1", "t1", "t2")
    until = [tiny_model.decode(prompt.ids[: prompt.position(name) + 1]) for name in names]
    e1 = f"{demonstrations}The capital of the country where the Eiffel Tower"
    assert until == [e1, f"{e1} is located", f"{e1} is located is"]


@pytest.mark.parametrize("demonstrations", DEMONSTRATIONS)
def test_the_shared_tokens_are_the_demonstrations(
    tiny_model: LanguageModel, demonstrations: str
) -> None:
    prompt = TokenizedPrompt.of(tiny_model, Prompt.of(QUERY, demonstrations=demonstrations))
    shared = tiny_model.decode(prompt.ids[: prompt.n_shared])
    assert demonstrations.startswith(shared)
    assert (prompt.n_shared > 0) == bool(demonstrations)
    if demonstrations:
        assert prompt.offsets[prompt.n_shared][1] > len(demonstrations), "one more is shared"


def test_the_last_token_is_never_shared(llama: LanguageModel) -> None:
    text = "The capital of Japan is"
    prompt = TokenizedPrompt.of(llama, Prompt(text, "", "two_hop", few_shot=len(text)))
    assert prompt.n_shared == len(prompt.ids) - 1


def test_a_text_is_a_prompt_whose_last_token_is_t2(tiny_model: LanguageModel) -> None:
    prompt = TokenizedPrompt.of(tiny_model, "The capital of Japan is")
    assert prompt.position("t2") == len(prompt.ids) - 1
    assert prompt.ids == tiny_model.encode("The capital of Japan is").ids
    assert len(prompt.offsets) == len(prompt.ids)


@pytest.mark.parametrize(("number", "found"), [(0, 0), (2, 2), (-1, 4), (-5, 0)])
def test_numbered_positions(llama: LanguageModel, number: int, found: int) -> None:
    prompt = TokenizedPrompt.of(llama, "The capital of Japan is")
    assert len(prompt.ids) == 5, "another tokenizer: choose other numbers"
    assert prompt.position(number) == found


@pytest.mark.parametrize(
    ("position", "message"),
    [(5, "no token 5"), (-6, "no token -6.*has 5 tokens"), ("t1", "t1"), ("bridge", "bridge")],
)
def test_unknown_positions(llama: LanguageModel, position: str | int, message: str) -> None:
    prompt = TokenizedPrompt.of(llama, "The capital of Japan is")
    with pytest.raises(QueryError, match=message):
        prompt.position(position)


AROUND = TwoHopQuery(
    id="2",
    e1_label="the song Imagine",
    e2_label="John Lennon",
    e3_label="London",
    r1_template="{}'s singer",
    r2_template="The city where {} was born",
)
QUESTIONS = {
    "inside": (
        QUERY,
        {
            "e1": " the Eiffel Tower",
            "r1": " the country where is located",
            "r2": "The capital of",
            "t1": " located",
        },
    ),
    "around": (
        AROUND,
        {
            "e1": " the song Imagine",
            "r1": "'s singer",
            "r2": "The city where was born",
            "t1": " singer",
        },
    ),
}


@pytest.mark.parametrize("demonstrations", DEMONSTRATIONS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_tokens_of_every_span(
    tiny_model: LanguageModel, question: str, demonstrations: str
) -> None:
    query, parts = QUESTIONS[question]
    prompt = TokenizedPrompt.of(tiny_model, Prompt.of(query, demonstrations=demonstrations))
    said = {name: tiny_model.decode([prompt.ids[i] for i in prompt.tokens(name)]) for name in SPANS}
    assert {name: said[name] for name in ("e1", "r1", "r2")} == {
        name: parts[name] for name in ("e1", "r1", "r2")
    }
    assert said["few_shot"] == demonstrations
    assert said["before"] == prompt.prompt.text.removesuffix(" is")
    assert said["t2"] == " is"
    assert parts["t1"].endswith(said["t1"])  # a piece of the word, in some vocabularies


@pytest.mark.parametrize("demonstrations", DEMONSTRATIONS)
def test_parts_lie_side_by_side(tiny_model: LanguageModel, demonstrations: str) -> None:
    """Each token of a prompt is in one part, but for special ones, which are before all."""
    prompt = TokenizedPrompt.of(tiny_model, Prompt.of(QUERY, demonstrations=demonstrations))
    last, special = len(prompt.ids) - 1, sum(a == b for a, b in prompt.offsets)
    parts = [prompt.tokens(name) for name in ("few_shot", "r2", "r1", "e1", "t2")]
    together = sorted(token for part in parts for token in part)
    assert together == list(range(0 if demonstrations else special, last + 1))
    for name in SPANS:
        assert list(prompt.tokens(name)) == sorted(set(prompt.tokens(name)))
    assert prompt.tokens("before") == tuple(range(last))
    assert prompt.tokens("t1") == (prompt.position("t1"),)
    assert prompt.tokens("t2") == (last,)
    assert prompt.tokens("t1")[0] in prompt.tokens("r1")
    assert prompt.tokens("few_shot") == tuple(range(prompt.n_shared))


@pytest.mark.parametrize("demonstrations", DEMONSTRATIONS)
def test_a_special_token_is_no_part_of_the_question(demonstrations: str) -> None:
    model = loaded("tiny-random-mistral")
    prompt = TokenizedPrompt.of(model, Prompt.of(QUERY, demonstrations=demonstrations))
    assert prompt.ids[0] == model.tokenizer.bos_token_id
    assert {name for name in SPANS if 0 in prompt.tokens(name)} == (
        {"before", "few_shot"} if demonstrations else {"before"}
    )


def test_a_first_hop_that_is_the_source_alone_has_no_relation(llama: LanguageModel) -> None:
    """Nor is there a second relation but for the last token."""
    bare = Prompt("Kyoto is", "", "two_hop", spans={"e1": (0, 5), "r1e1": (0, 5), "t2": (0, 8)})
    prompt = TokenizedPrompt.of(llama, bare)
    assert (prompt.tokens("r1"), prompt.tokens("r2")) == ((), ())
    assert prompt.tokens("e1") == prompt.tokens("before")


@pytest.mark.parametrize("name", ["bridge", "r1e1", "", "T1"])
def test_an_unknown_part_is_told(llama: LanguageModel, name: str) -> None:
    prompt = TokenizedPrompt.of(llama, Prompt.of(QUERY))
    with pytest.raises(
        QueryError, match=r"unknown span .*t1, t2, e1, r1, r2, r1_word, r2_word, before, few_shot"
    ):
        prompt.tokens(name)


@pytest.mark.parametrize("name", ["e1", "r1", "r2", "t1"])
def test_a_prompt_without_a_part_is_told(llama: LanguageModel, name: str) -> None:
    prompt = TokenizedPrompt.of(llama, "The capital of Japan is")
    with pytest.raises(QueryError, match="no span"):
        prompt.tokens(name)
    assert prompt.tokens("few_shot") == ()
    assert prompt.tokens("before") == (0, 1, 2, 3)


@pytest.mark.parametrize(("n", "room", "fits"), [(256, 0, True), (246, 10, True), (247, 10, False)])
def test_room_for_what_is_generated(llama: LanguageModel, n: int, room: int, fits: bool) -> None:
    text = " the" * n
    assert llama.max_context == 256
    if fits:
        assert len(TokenizedPrompt.of(llama, text, room).ids) == n
        return
    with pytest.raises(UsageError, match=r"247 tokens and 10 are to be generated.* 256 tokens"):
        TokenizedPrompt.of(llama, text, room)


def test_prompts_of_one_shape(llama: LanguageModel) -> None:
    shots = "The capital of Japan is Tokyo.\n"
    texts = ["The capital of", "The author of", "The capital of France is", "The currency of"]
    zero = [TokenizedPrompt.of(llama, text) for text in texts]
    few = [
        TokenizedPrompt.of(llama, Prompt(shots + text, "", "two_hop", few_shot=len(shots)))
        for text in texts[:2]
    ]
    prompts = [*zero, *few]
    groups = by_shape(prompts)
    assert sorted(index for group in groups for index in group) == list(range(len(prompts)))
    shape = [(p.ids[: p.n_shared], len(p.ids)) for p in prompts]
    for group in groups:
        assert len({shape[i] for i in group}) == 1
    assert len(groups) == len(set(shape))
    assert by_shape([]) == []


SPACED = TwoHopQuery(
    id="3",
    e1_label="the Eiffel  Tower",
    e2_label="France",
    e3_label="Paris",
    r1_template="The country where\n\n {} is located",
    r2_template="The  capital of {}",
)
"""White space is a token of its own in it."""


@pytest.mark.parametrize("demonstrations", [*DEMONSTRATIONS, "\n\n"])
@pytest.mark.parametrize("bos", [False, True])
def test_a_tokenizer_that_trims_offsets(bos: bool, demonstrations: str) -> None:
    """It gives tokens of white space an empty range, as it does special tokens."""
    hf, tokenizer = build_tiny("tiny-random-llama")
    start = [("<bos>", tokenizer.convert_tokens_to_ids("<bos>"))] if bos else []
    template = processors.TemplateProcessing(
        single="<bos> $A" if bos else "$A", special_tokens=start
    )
    prompts = []
    for trims in (False, True):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=trims), template]
        )
        model = LanguageModel(hf, tokenizer, "trims")
        prompts.append(TokenizedPrompt.of(model, Prompt.of(SPACED, demonstrations=demonstrations)))
    whole, trimmed = prompts
    ranges = tokenizer(trimmed.prompt.text, return_offsets_mapping=True)["offset_mapping"]
    assert sum(a == b for a, b in ranges) > bos, "white space has an empty range"
    assert (trimmed.ids, trimmed.special) == (whole.ids, int(bos)) == (whole.ids, whole.special)
    for name in SPANS:
        assert trimmed.tokens(name) == whole.tokens(name), name
    assert trimmed.n_shared == whole.n_shared


@pytest.mark.parametrize("text", ["The capital of Japan is", "Japan<eos>", "a<eos> b<bos>"])
def test_a_tokenizer_that_appends_the_end_of_text(text: str) -> None:
    """What it puts behind a prompt is dropped; what the text says is not."""
    hf, tokenizer = build_tiny("tiny-random-mistral")
    expected = loaded("tiny-random-mistral").encode(text)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[
            (each, tokenizer.convert_tokens_to_ids(each)) for each in ("<bos>", "<eos>")
        ],
    )
    model = LanguageModel(hf, tokenizer, "appends")
    assert tokenizer(text)["input_ids"][-1] == tokenizer.eos_token_id
    assert model.encode(text) == expected
    documents = DocumentPrompts(model, load_questions("world-docs"), template="plain")
    assert documents.encode(text) == (expected.ids, expected.offsets)


def test_an_encoder_decoder_reads_the_end_of_text() -> None:
    hf, tokenizer = build_tiny("tiny-random-t5")
    encoded = EncoderDecoder(hf, tokenizer, "t5").encode("The capital of Japan is")
    assert encoded.ids[-1] == tokenizer.eos_token_id
    assert encoded.special == 0


def test_a_token_that_the_model_does_not_know(llama: LanguageModel) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.add_tokens(["Kyoto"])
    model = LanguageModel(llama.hf, tokenizer, "llama")
    assert TokenizedPrompt.of(model, "The capital of Japan is").ids
    message = r"'Kyoto' the id 512, but llama knows 512 tokens: pass the model's own tokenizer"
    for read in (model.encode, model.tokenize):
        with pytest.raises(UsageError, match=message):
            read("Kyoto")
