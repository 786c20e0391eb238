"""The first tokens of names, for tokenizers that write spaces in different ways."""

from __future__ import annotations

import unicodedata
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from transformers import PreTrainedTokenizerFast

from hopscope.errors import UsageError
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.token_model import TokenModel

CORPUS = [
    "The capital of the country of the Louvre is Paris",
    "It is in Tokyo, said Thomas Mann in 1984",
    "the Eiffel Tower Zürich São Paulo Łódź 東京 Москва",
    *("法国的首都是", "巴黎", "東京"),
] * 4


def trained(
    model: Any, trainer: Any, decoder: Any, normalizer: Any = None, pre_tokenizer: Any = None
) -> Any:
    """A tokenizer of these parts, trained on a few words."""
    tokenizer = Tokenizer(model)
    if decoder is not None:
        tokenizer.decoder = decoder
    corpus = CORPUS
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    else:  # words are merged, and not what lies across them
        corpus = [f" {word}" for line in CORPUS for word in line.split()]
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.train_from_iterator(corpus, trainer)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def bpe(**parts: Any) -> Any:
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return trained(BPE(byte_fallback=True, unk_token="<unk>"), trainer, decoder, **parts)


def byte_level(*first: Any, **settings: Any) -> Any:
    decoder = decoders.ByteLevel()
    last = pre_tokenizers.ByteLevel(**settings)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return trained(BPE(), trainer, decoder, pre_tokenizer=pre_tokenizers.Sequence([*first, last]))


def llama_3() -> Any:
    """Up to three digits are one token, and the space before them another."""
    digits = pre_tokenizers.Split(Regex(r"\d{1,3}| ?[^\s\d]+|\s"), "isolated")
    return byte_level(digits, add_prefix_space=False, use_regex=False)


def words(model: Any, trainer: Any, pre_tokenizer: Any, decoder: Any) -> Any:
    return trained(model, trainer, decoder, pre_tokenizer=pre_tokenizer)


def unigram() -> Any:
    """As T5's."""
    pieces = {f"▁{word.strip(',')}": -5.0 for line in CORPUS for word in line.split()}
    letters = {letter: -20.0 for line in CORPUS for letter in f"▁{line}"}
    vocabulary = {"<unk>": 0.0, **letters, **pieces}
    tokenizer = Tokenizer(Unigram([*vocabulary.items()], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_piece() -> Any:
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["<unk>"], show_progress=False
    )
    model = WordPiece(unk_token="<unk>")
    return words(model, trainer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece())


def word_level() -> Any:
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    model = WordLevel(unk_token="<unk>")
    return words(model, trainer, pre_tokenizers.Whitespace(), None)


PREPENDED = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
SPACES = {
    "prepended": lambda: bpe(normalizer=PREPENDED),
    "replaced": lambda: bpe(normalizer=normalizers.Replace(" ", "▁")),
    "metaspace always": lambda: bpe(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always")
    ),
    "metaspace first": lambda: bpe(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")),
    "metaspace never": lambda: bpe(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never")),
    "byte level": lambda: byte_level(add_prefix_space=False),
    "byte level with a space": lambda: byte_level(add_prefix_space=True),
    "single digits": lambda: byte_level(
        pre_tokenizers.Digits(individual_digits=True), add_prefix_space=False
    ),
    "three digits": llama_3,
    "unigram": unigram,
    "word pieces": word_piece,
    "words": word_level,
}
BYTES = ("byte level", "three digits")


@cache
def spaced(kind: str) -> TokenModel:
    """A model of which only the tokenizer is asked."""
    made: Any = TokenModel.__new__(TokenModel)
    made.tokenizer, made.name = SPACES[kind](), kind
    made.config = SimpleNamespace(vocab_size=len(made.tokenizer))
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("prompt", ["The capital of the Louvre is", "Tokyo is in", "It"])
def test_a_first_token_is_that_of_the_name_behind_a_prompt(kind: str, prompt: str) -> None:
    model = spaced(kind)
    names = ["Paris", "Tokyo", "Thomas Mann", "the Louvre"]
    ids = model.tokenizer(prompt)["input_ids"]
    after = [model.tokenizer(f"{prompt} {name}")["input_ids"][len(ids)] for name in names]
    assert model.first_tokens(names) == tuple(after)
    assert model.first_tokens(names, after=prompt) == tuple(after)
    assert len(set(after)) == 4, "each tells its name"
    assert all(model.decode([token]).strip() for token in after)
    assert model.answer_tokens(names) == tuple(after[:3])


@pytest.mark.parametrize("kind", ["three digits", "words", "word pieces"])
def test_a_number_is_told_by_its_digits(kind: str) -> None:
    """Where the space before it is a token, the prompt must end with it."""
    model = spaced(kind)
    lone_space = kind == "three digits"
    assert bool(model.first_tokens(["1984"], after="It is in", required=False)) != lone_space
    (token,) = model.first_tokens(["1984"], after="It is in ")
    ids = [model.tokenizer(f"It is in {end}")["input_ids"] for end in ("", "1984")]
    assert [*ids[0], token] == ids[1][: len(ids[0]) + 1]
    assert model.decode([token]).startswith("198")


@pytest.mark.parametrize("kind", SPACES)
def test_a_space_that_is_there_is_not_written_again(kind: str) -> None:
    """Even where the tokenizer would join it with the name."""
    model = spaced(kind)
    (token,) = model.first_tokens(["Paris"], after="It is ")
    text = model.tokenizer.convert_ids_to_tokens(token)
    assert "Paris".startswith(text.strip("▁"))
    before = model.tokenizer("It is ")["input_ids"]
    if model.tokenizer.convert_ids_to_tokens(before)[-1] in ("▁", "Ġ"):
        assert "Paris".startswith(text), "the prompt has the space"


@pytest.mark.parametrize("kind", BYTES)
def test_a_script_without_spaces(kind: str) -> None:
    model = spaced(kind)
    prompt, names = "法国的首都是", ("巴黎", "東京")
    ids = model.tokenizer(prompt)["input_ids"]
    found = model.first_tokens(names, after=prompt)
    assert len(found) == 2
    for name, token in zip(names, found, strict=True):
        assert name.startswith(model.decode([token]).strip())
        assert "\ufffd" not in model.decode([token])
        joined = model.tokenizer(prompt + name)["input_ids"]
        if joined[: len(ids)] == ids:
            assert joined[len(ids)] == token
    assert model.first_tokens(["柏林"], after=prompt, required=False) == (), "bytes of many letters"


@pytest.mark.parametrize("kind", BYTES)
def test_a_name_is_read_as_it_is_composed(kind: str) -> None:
    model = spaced(kind)
    for name in ("São Paulo", "Zürich"):
        apart = unicodedata.normalize("NFD", name)
        assert model.first_tokens([apart], after="It is") == model.first_tokens([name])


@pytest.mark.parametrize("kind", SPACES)
def test_an_answer_is_told_from_another_entity(kind: str) -> None:
    model = spaced(kind)
    paris, tokyo = model.first_tokens(["Paris", "Tokyo"])
    assert model.answer_tokens(["Tokyo", "Paris"], beside=["Paris in 1984"]) == (tokyo,)
    assert model.answer_tokens(["Paris"], beside=["Paris", "Tokyo"]) == (paris,), "the same name"
    assert model.answer_tokens(["Paris", "Tokyo"], False, beside=["Paris is"]) == ()
    with pytest.raises(UsageError, match="cannot identify 'Paris' or 'Tokyo' by its first token"):
        model.answer_tokens(["Paris", "Tokyo"], beside=["Paris is"])


def test_an_encoder_decoder_begins_its_answer_anew() -> None:
    tokenizer = SPACES["byte level"]()
    made: Any = EncoderDecoder.__new__(EncoderDecoder)
    made.tokenizer, made.name = tokenizer, "t5"
    made.config = SimpleNamespace(vocab_size=len(tokenizer))
    alone = tokenizer("Paris")["input_ids"][0]
    assert made.answer_tokens(["Paris"], after="The capital of France is") == (alone,)


@pytest.mark.parametrize("kind", SPACES)
def test_variants_are_with_a_space_and_without(kind: str) -> None:
    model = spaced(kind)
    found = model.first_tokens(["the Louvre"], variants=True)
    assert found[0] == model.first_tokens(["Louvre"])[0]
    words = [model.tokenizer.convert_ids_to_tokens(token).strip("▁Ġ") for token in found]
    assert words[0] == "Louvre"
    assert all(words), "no space alone"


@pytest.mark.parametrize("kind", SPACES)
def test_variants_may_keep_their_articles(kind: str) -> None:
    model = spaced(kind)
    kept = model.first_tokens(["the Louvre"], variants=True, articles=True)
    words = {model.tokenizer.convert_ids_to_tokens(token).strip("▁Ġ") for token in kept}
    assert all(word and "the".startswith(word) for word in words)
    assert not set(kept) & set(model.first_tokens(["the Louvre"], variants=True))


@pytest.mark.parametrize("kind", ["prepended", "single digits"])
def test_names_that_no_first_token_tells_are_refused(kind: str) -> None:
    """Where a space stands by itself, as in front of single digits, it is the first of many."""
    model = spaced(kind)
    name = {"prepended": "Ωmega", "single digits": "1984"}[kind]
    n_before = len(model.tokenizer("Paris")["input_ids"])
    after = model.tokenizer(f"Paris {name}")["input_ids"][n_before]
    assert model.tokenizer.convert_ids_to_tokens(after) in ("▁", "Ġ")
    assert model.first_tokens([name, "Paris"]) == model.first_tokens(["Paris"])
    assert model.first_tokens([name], required=False) == ()
    found = model.first_tokens([name], variants=True, required=False)
    assert bool(found) == (kind == "prepended"), "a digit alone is the first of many years"
    with pytest.raises(UsageError, match=f"cannot identify '{name}' by its first token"):
        model.first_tokens([name])
    with pytest.raises(UsageError, match="leave the query out"):
        model.answer_tokens([name, f"the {name}"][:1])


def test_words_that_a_tokenizer_does_not_know_are_refused() -> None:
    vocabulary = {"<unk>": 0, "Paris": 1}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model: Any = TokenModel.__new__(TokenModel)
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    model.name = "words"
    model.config = SimpleNamespace(vocab_size=len(model.tokenizer))
    assert model.first_tokens(["Paris", "Rome"]) == (1,)
    with pytest.raises(UsageError, match="cannot identify 'Rome'"):
        model.first_tokens(["Rome"])
