"""Tests of prompts.py: what is asked, and where its entities stand among the tokens."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from hopscope.errors import QueryError
from hopscope.queries.prompts import Prompt, token_position, token_span
from hopscope.queries.two_hop_query import FORMS, TwoHopQuery, relation_only

LOUVRE = TwoHopQuery(
    id="7",
    e1_label="the Louvre",
    e2_label="France",
    e3_label="Paris",
    r1_template="The country of {}",
    r2_template="The capital of {}",
    e3_aliases=("City of Light", "", None, "Paris"),  # type: ignore[arg-type]
)


def query(**changes: str) -> TwoHopQuery:
    return dataclasses.replace(LOUVRE, **changes)  # type: ignore[arg-type]


def test_the_five_prompts() -> None:
    assert LOUVRE.two_hop() == "The capital of the country of the Louvre is"
    assert LOUVRE.first_hop() == "The country of the Louvre is"
    assert LOUVRE.second_hop() == "The capital of France is"
    assert LOUVRE.entity_shortcut() == "The capital of the Louvre is"
    assert LOUVRE.relation_shortcut() == "The capital of the country is"


def test_the_relation_shortcut_of_the_papers_code() -> None:
    """Without " is", and without the last four characters, whatever they are."""
    assert LOUVRE.relation_shortcut_cut() == "The capital of the country"
    where = query(r1_template="the country where {} is located", r2_template="the capital of {}")
    assert where.relation_shortcut_cut() == "the capital of the country where  is loc"
    for each in (LOUVRE, where, query(r1_template="the work by {}", r2_template="{}'s mother")):
        first = each.r1_template[0].lower() + each.r1_template[1:]
        first = each.r1_template if each.r2_template.startswith("{}") else first
        assert each.relation_shortcut_cut() == each.r2_template.format(first.format(""))[:-4]


WORDS = [
    ("the capital of {}", "capital"),
    ("the name of the author of {}", "author"),
    ("mother of {}", "mother"),
    ("the country where {} is located", None),  # that is e1
    ("the place where {} was born last", "was"),
    ("{}'s mother", None),
    ("mother of  {}", "of"),  # of two spaces the second one begins a word
]


@pytest.mark.parametrize(("template", "word"), WORDS)
@pytest.mark.parametrize("label", ["X", "the Louvre in Paris"])
def test_the_third_word_from_the_end_of_a_template(
    template: str, word: str | None, label: str
) -> None:
    """That is what the paper's code blocks for a relation."""
    words = template.split(" ")
    assert (words[-3:-2] or ["{}"]) == [word or "{}"]
    made = query(r1_template=template, r2_template=template, e1_label=label)
    text, spans = made.compose("two_hop")
    for name, (start, end) in (
        ("r1_word", spans["r1e1"]),
        ("r2_word", (0, len(text))),
    ):
        if word is None:
            assert name not in spans
            continue
        a, b = spans[name]
        assert text[a:b] == word
        argument = label if name == "r1_word" else text[slice(*spans["r1e1"])]
        whole = text[start:end].removesuffix(" is")
        before = template.format(argument).removesuffix(whole)
        behind = " ".join(words[-2:]).replace("{}", argument)
        assert before == ""
        assert text[b : start + len(whole)] == f" {behind}"


def test_a_lower_case_template_is_left_as_it_is() -> None:
    plain = query(r1_template="the country of {}", r2_template="the capital of {}")
    assert plain.two_hop() == "the capital of the country of the Louvre is"
    assert plain.first_hop() == "the country of the Louvre is"


def test_every_article_is_lowered_and_nothing_else() -> None:
    for template, inner in [("A part of {}", "a part"), ("An area of {}", "an area")]:
        assert query(r1_template=template).two_hop().startswith(f"The capital of {inner} of")
    assert query(r1_template="Thebes in {}").two_hop().startswith("The capital of Thebes in")


def test_only_the_template_is_lowered_never_the_entity() -> None:
    possessive = query(r1_template="{}'s country", e1_label="The Louvre")
    assert possessive.two_hop() == "The capital of The Louvre's country is"
    assert possessive.relation_shortcut() == "The capital of the country is"


def test_a_phrase_at_the_start_of_a_sentence_keeps_its_capital() -> None:
    sentence = query(r2_template="{} was born in the city of", r2_ending="")
    assert sentence.two_hop() == "The country of the Louvre was born in the city of"
    assert sentence.relation_shortcut() == "The country was born in the city of"


@pytest.mark.parametrize("label", ["{}", "{0} {x}", "the country of {}", "a % b \\1"])
def test_a_label_is_never_read_as_a_template(label: str) -> None:
    odd = query(e1_label=label)
    assert odd.two_hop() == f"The capital of the country of {label} is"
    start, end = odd.compose("two_hop")[1]["e1"]
    assert odd.two_hop()[start:end] == label


@pytest.mark.parametrize(
    ("template", "phrase"),
    [
        ("the capital of {}", "the capital"),
        ("The capital of the {}", "The capital"),
        ("the country of citizenship of {}", "the country of citizenship"),
        ("the work that features {}", "the work"),
        ("the company that produced {}", "the company"),
        ("the company which produced the film {}", "the company"),
        ("the country where {} is located", "the country"),
        ("the country in which {} is located", "the country"),
        ("the city where the head office of {} is", "the city"),
        ("The country containing {}", "The country"),
        ("The museum holding {}", "The museum"),
        ("the city founded by {}", "the city"),
        ("the book written by {}", "the book"),
        ("the author of the novel {}", "the author"),
        ("the singer of '{}'", "the singer"),
        ("the singer of ‘{}’", "the singer"),
        ("{}'s mother", "The mother"),
        ("{}’s mother", "The mother"),
        ("the mother of {}'s wife", "the mother of the wife"),
        ("The US state of birth of {}", "The US state of birth"),
        ("{} capital", "capital"),
        ("of {}", "of"),
    ],
)
def test_relation_only(template: str, phrase: str) -> None:
    assert relation_only(template) == phrase


def test_names_are_the_label_and_the_usable_aliases() -> None:
    assert LOUVRE.names("e3") == ("Paris", "City of Light")
    assert LOUVRE.names("e1") == ("the Louvre",)
    with pytest.raises(QueryError, match=r"'e4'.*e1, e2, e3"):
        LOUVRE.names("e4")  # type: ignore[arg-type]


def test_a_query_is_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LOUVRE.e1 = "other"  # type: ignore[misc]
    assert len({LOUVRE, query(), query(id="8")}) == 2


@pytest.mark.parametrize("template", ["the capital", "{} of {}", "", "{}", " {} "])
@pytest.mark.parametrize("name", ["r1_template", "r2_template"])
def test_a_template_without_one_slot_is_refused(name: str, template: str) -> None:
    with pytest.raises(QueryError, match=rf"query '7': {name} .* exactly one \{{\}}"):
        query(**{name: template})


@pytest.mark.parametrize("name", ["e1_label", "e2_label", "e3_label"])
def test_an_empty_label_is_refused(name: str) -> None:
    with pytest.raises(QueryError, match=f"query '7': {name} is empty"):
        query(**{name: " "})


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(QueryError, match=r"'three_hop'.*two_hop, first_hop"):
        LOUVRE.compose("three_hop")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", ["", "The capital of the country of the Louvre is Paris\n"])
def test_spans_name_what_stands_there(form: str, before: str) -> None:
    prompt = Prompt.of(LOUVRE, form, before)  # type: ignore[arg-type]
    texts = {name: prompt.text[start:end] for name, (start, end) in prompt.spans.items()}
    assert prompt.few_shot == len(before)
    assert texts["t2"] == prompt.text[len(before) :] == getattr(LOUVRE, form)()
    expected = {"e1": "the Louvre", "e2": "France"}
    article = "the" if form == "two_hop" else "The"
    expected |= {"r1_word": "country", "r2_word": "capital"}
    expected["r1e1"] = expected["t1"] = f"{article} country of the Louvre"
    kept = {
        "two_hop": ("e1", "r1e1", "t1", "r1_word", "r2_word"),
        "first_hop": ("e1", "r1e1", "t1", "r1_word"),
        "second_hop": ("e2",),
        "entity_shortcut": ("e1",),
        "relation_shortcut": (),
    }[form]
    assert {name: text for name, text in texts.items() if name != "t2"} == {
        name: expected[name] for name in kept
    }


CORPUS = [
    "The capital of the country of the Louvre is Paris",
    "the mother of the performer of Águas de Março is",
    "Zürich São Paulo Łódź 東京 Москва naïve coöperate",
] * 4
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(trim_offsets: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """As Llama 2's: no pre-tokenizer, "▁" for a space, bytes for what the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.ByteFallback()
    trainer = trainers.BpeTrainer(
        special_tokens=BYTES, vocab_size=256 + 60, limit_alphabet=30, show_progress=False
    )
    words = [f"▁{word}" for line in CORPUS for word in line.split()]
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


TOKENIZERS = {
    "byte_level": lambda: byte_level(trim_offsets=False),
    "byte_level_trimmed": lambda: byte_level(trim_offsets=True),
    "unigram": unigram,
    "sentencepiece_bpe": sentencepiece_bpe,
    "wordpiece": wordpiece,
}


@cache
def tokenizer_named(name: str) -> Tokenizer:
    return TOKENIZERS[name]()


def tokens_up_to(tokenizer: Tokenizer, text: str, end: int) -> int:
    """How many tokens the text before ``end`` takes by itself, with a special one before it."""
    encoding = tokenizer.encode(text[:end])
    trailing = list(encoding.special_tokens_mask)[::-1].index(0)
    return len(encoding.ids) - trailing


LETTERS = st.sampled_from("abcdefgzAZéüãłŁóÁßđ東京Москва19'.-")
WORDS = st.text(LETTERS, min_size=1, max_size=8)
ENTITIES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
LABELS = st.one_of(ENTITIES, ENTITIES.map(lambda label: f" {label}"))
DEMONSTRATIONS = st.sampled_from(["", "The capital of the country of the Prado is Madrid\n"])


@settings(max_examples=60, deadline=None)
@given(label=LABELS, before=DEMONSTRATIONS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_positions_are_where_the_text_up_to_the_span_ends(
    name: str, label: str, before: str
) -> None:
    tokenizer = tokenizer_named(name)
    prompt = Prompt.of(query(e1_label=label), "two_hop", before)
    offsets = tokenizer.encode(prompt.text).offsets
    for span in ("t1", "e1", "r1e1", "t2"):
        count = tokens_up_to(tokenizer, prompt.text, prompt.spans[span][1])
        assert token_position(prompt, span, offsets) == count - 1, span


@settings(max_examples=60, deadline=None)
@given(label=ENTITIES, before=DEMONSTRATIONS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_entity_starts_after_what_stands_before_it(name: str, label: str, before: str) -> None:
    tokenizer = tokenizer_named(name)
    prompt = Prompt.of(query(e1_label=label), "two_hop", before)
    first, after = token_span(prompt, "e1", tokenizer.encode(prompt.text).offsets)
    preceding = tokens_up_to(tokenizer, prompt.text, prompt.spans["e1"][0] - 1)
    lone_space = tokenizer.encode(prompt.text).tokens[preceding] in ("▁", "Ġ")
    assert first == preceding or (lone_space and first == preceding + 1)
    assert after == token_position(prompt, "e1", tokenizer.encode(prompt.text).offsets) + 1


def test_an_accented_letter_of_two_tokens_ends_at_the_second() -> None:
    prompt = Prompt.of(query(e1_label="Brasílí"))
    tokenizer = tokenizer_named("byte_level")
    encoding = tokenizer.encode(prompt.text)
    position = token_position(prompt, "e1", encoding.offsets)
    assert encoding.offsets[position] == encoding.offsets[position - 1]
    assert encoding.tokens[position + 1] == "Ġis"


def test_spaces_at_the_ends_of_an_entity_belong_to_no_position() -> None:
    prompt = Prompt.of(query(e1_label=" Rome "))
    start, end = prompt.spans["e1"]
    letters = (start + 1, end - 1)
    offsets = [(0, start), (start, start + 1), letters, (end - 1, end), (end, end + 3)]
    assert token_span(prompt, "e1", offsets) == (2, 3)


def test_repeated_substrings_do_not_mislead() -> None:
    prompt = Prompt.of(query(e1_label="the country"), "two_hop", "The country is the country\n")
    start, end = prompt.spans["e1"]
    assert prompt.text[:start].endswith("The capital of the country of ")
    assert prompt.text[end:] == " is"


def test_no_token_in_a_span_is_an_error_that_names_it() -> None:
    prompt = Prompt.of(LOUVRE)
    with pytest.raises(QueryError, match=r"query '7'.*'e1' \('the Louvre'\).*The capital of"):
        token_position(prompt, "e1", [(0, 0), (0, 3), (3, 11), (0, 0)])
    with pytest.raises(QueryError, match="no span 'e9'; it has e1, r1_word, r1e1, r2_word, t1, t2"):
        token_span(prompt, "e9", [(0, 3)])
