"""Two-hop queries in chat templates: their text, positions, ends of turns, and thinking."""

from __future__ import annotations

from datetime import datetime, tzinfo
from pathlib import Path

import pytest
import torch
from transformers.utils import chat_template_utils

import hopscope as hs
from hopscope.errors import HopscopeError, QueryError, UsageError
from hopscope.models.chat import CHAT_SLOT, chat_frame, end_of_turn, without_thoughts
from hopscope.models.language_model import LanguageModel
from hopscope.models.tiny import BOS, EOS, build_tiny
from hopscope.prompting.document_prompts import DocumentPrompts
from hopscope.prompting.generation import (
    answer_span,
    answer_text,
    stop_at_line_end,
    stop_when_answered,
)
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
R1 = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}<|start|>{{ m.role }}"
    "{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + (
    CHATML
)
SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
)
ENDS = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama 3": (LLAMA_3, "<|eot_id|>"),
    "qwen 3": (QWEN_3, "<|im_end|>"),
    "r1": (R1, "<|im_end|>"),
    "gpt-oss": (GPT_OSS, "<|return|>"),
}


def query(id: str, e1: str, e2: str, e3: str) -> TwoHopQuery:
    return TwoHopQuery(id, e1, e2, e3, "The country of {}", "The capital of {}")


QUERIES = QuerySet(
    (
        query("1", "the Eiffel Tower", "France", "Paris"),
        query("2", "Kyoto", "Japan", "Tokyo"),
        query("3", "the Colosseum", "Italy", "Rome"),
    )
)


def chatting(template: str | None, name: str = "tiny-random-mistral") -> LanguageModel:
    """A model whose tokenizer has the special tokens of the templates; it adds a <bos> to texts."""
    hf, tokenizer = build_tiny(name)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.add_tokens(["<think>", "</think>"])  # not special, as those of Qwen 3
    hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.bos_token = BOS
    tokenizer.chat_template = template
    return LanguageModel(hf, tokenizer, "chat")


def test_each_demonstration_is_a_turn_and_the_answer_has_begun() -> None:
    chat = QUERIES.with_few_shot(1).with_chat(chatting(CHATML), "Go on: {}", "It is", "Be brief.")
    assert chat.by_id("1") is QUERIES[0]
    prompt = chat.prompts()[0]
    shown = prompt.before.split("\n")[3].removeprefix("Go on: ").removesuffix("<|im_end|>")
    answer = {each.two_hop(): each.e3_label for each in QUERIES}[shown]
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nGo on: {shown}<|im_end|>\n"
        f"<|im_start|>assistant\nIt is {answer}<|im_end|>\n"
        "<|im_start|>user\nGo on: The capital of the country of the Eiffel Tower is<|im_end|>\n"
        "<|im_start|>assistant\nIt is"
    )
    assert prompt.question == "The capital of the country of the Eiffel Tower is"
    assert repr(chat).endswith("few_shot=1, chat)")


@pytest.mark.parametrize("prefill", ["Answer:", ""])
@pytest.mark.parametrize("kind", ENDS)
def test_positions_are_found_in_every_template(kind: str, prefill: str) -> None:
    model = chatting(ENDS[kind][0])
    chat = QUERIES.with_few_shot(1).with_chat(model, prefill=prefill)
    prompt = TokenizedPrompt.of(model, chat.prompts()[0])
    text = [prompt.prompt.text[slice(*each)] for each in prompt.offsets]
    assert "".join(text) == prompt.prompt.text, "nothing is added"
    assert prompt.ids[0] != model.tokenizer.bos_token_id or prompt.prompt.text.startswith(BOS)
    parts = ["".join(text[at] for at in prompt.tokens(name)) for name in ("e1", "r1", "r2")]
    assert parts[:2] == [" the Eiffel Tower", " the country of"]
    assert parts[2].strip() == "The capital of is", "and nothing of the turns"
    assert prompt.position("t1") == prompt.tokens("e1")[-1]
    assert prompt.position("t2") == len(prompt.ids) - 1
    assert "".join(text[: prompt.n_shared]).endswith("Complete the sentence with a name:")


@pytest.mark.parametrize("kind", ENDS)
def test_the_answer_comes_next(kind: str) -> None:
    """The prefill is the last of the text, and a thought before it is closed."""
    model = chatting(ENDS[kind][0])
    prompt = QUERIES.with_chat(model).prompts()[0]
    assert prompt.text.endswith("Answer:")
    bare = QUERIES.with_chat(model, prefill="").prompts()[0].text
    assert bare.count("<think>") == bare.count("</think>")
    assert (kind == "gpt-oss") == bare.endswith("assistant<|channel|>final<|message|>")
    assert (kind == "gpt-oss") == ("<|channel|>final<|message|>Answer:" in prompt.text)
    first = model.answer_tokens(["Paris"], after=prompt.end)
    ids = model.tokenizer(prompt.text + " Paris", add_special_tokens=False)["input_ids"]
    assert first == (ids[len(TokenizedPrompt.of(model, prompt).ids)],)


@pytest.mark.parametrize("kind", ENDS)
def test_the_templates_own_end_of_turn_ends_a_generation(kind: str) -> None:
    template, end = ENDS[kind]
    model = chatting(template)
    token = model.tokenizer.convert_tokens_to_ids(end)
    assert model.end_tokens == {token, model.tokenizer.convert_tokens_to_ids(EOS)}
    assert chatting(None).end_tokens == {model.tokenizer.convert_tokens_to_ids(EOS)}
    assert end_of_turn(chatting("{{ raise_exception('never') }}").tokenizer) == frozenset()


def test_a_template_that_is_set_later_ends_generations() -> None:
    model = chatting(None)
    end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in model.end_tokens
    model.tokenizer.chat_template = CHATML
    assert end in model.end_tokens


def test_chats_are_read_as_plainly() -> None:
    """Rows over the shared turns generate what the model does by itself."""
    model = chatting(CHATML)
    chat = QUERIES.with_few_shot(1).with_chat(model)
    graded = hs.grade(model, chat, max_new_tokens=4, one_line=False, progress=False)
    for form in ("two_hop", "first_hop"):
        rows = graded.frame[graded.frame["form"] == form].set_index("query")
        for prompt in chat.prompts(form):  # type: ignore[arg-type]
            ids = torch.tensor([TokenizedPrompt.of(model, prompt).ids])
            for _ in range(4):
                if int(ids[0, -1]) in model.end_tokens:
                    break
                ids = torch.cat([ids, model.forward(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
            said = ids[0, len(TokenizedPrompt.of(model, prompt).ids) :].tolist()
            assert rows.loc[prompt.query_id, "generation"] == model.decode(said)
            assert rows.loc[prompt.query_id, "prompt"] == prompt.question
    settings = graded.run["queries"]["chat"]
    assert settings["prefill"] == "Answer:"
    assert len(settings["template"]) == 64


def test_chat_and_plain_runs_are_not_mixed(tmp_path: Path) -> None:
    model = chatting(CHATML)
    plain = hs.grade(model, QUERIES, out=tmp_path / "run", progress=False, max_new_tokens=1)
    assert "chat" not in plain.run["queries"]
    chats = [QUERIES.with_chat(model), QUERIES.with_chat(model, prefill="It is")]
    chats.append(QUERIES.with_chat(chatting(LLAMA_3)))
    assert len({each.fingerprint for each in (QUERIES, *chats)}) == 4
    with pytest.raises(HopscopeError, match="queries"):
        hs.grade(model, chats[0], out=tmp_path / "run", progress=False, max_new_tokens=1)


NOW = "{{ strftime_now('%d %b %Y') }}"


def test_a_template_tells_the_same_date_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Llama 3, SmolLM3 and gpt-oss ask for would be another prompt tomorrow."""
    model = chatting(f'{NOW} {{{{ strftime_now( "%Y") }}}} {CHATML}')
    today = QUERIES.with_chat(model)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Tomorrow:
            return cls(2027, 1, 1)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    tomorrow = QUERIES.with_chat(model)
    assert tomorrow.prompts() == today.prompts()
    assert today.prompts()[0].text.startswith("26 Jul 2024 2024 <|im_start|>user")
    assert tomorrow.fingerprint == today.fingerprint
    assert today.fingerprint != QUERIES.with_chat(chatting(CHATML)).fingerprint
    with pytest.raises(UsageError, match="today's date, in a form that cannot be read"):
        QUERIES.with_chat(chatting("{% set f = '%Y' %}{{ strftime_now(f) }}" + CHATML))


def test_a_set_with_the_chat_of_another_model_is_refused() -> None:
    model = chatting(CHATML)
    chat = QUERIES.with_chat(model)
    other = chatting("{{ bos_token }}" + CHATML)
    other.tokenizer.bos_token = "<|im_start|>"
    for asked in (chatting(LLAMA_3), chatting(None), other):
        for analysis in (hs.grade, hs.knockout, hs.project):
            with pytest.raises(
                UsageError, match=r"of another model.* call with_chat\(model\) anew"
            ):
                analysis(asked, chat, progress=False)
    special = other.tokenizer.chat_template
    model.tokenizer.chat_template = special
    with pytest.raises(UsageError, match="with the model that is asked"):
        hs.grade(model, chat, progress=False, max_new_tokens=1)
    assert chat.prompts()[0].text.startswith("<|im_start|>user"), "what was asked for is kept"
    with pytest.raises(UsageError, match="with the model that is asked"):
        hs.grade(other, QUERIES.with_chat(model), progress=False, max_new_tokens=1)
    hs.grade(model, QUERIES.with_chat(model), progress=False, max_new_tokens=1)


def test_analyses_take_chats() -> None:
    model = chatting(CHATML)
    chat = QUERIES.with_few_shot(1).with_chat(model)
    edges = ["t2->t1", "t2->r2", "t2->few_shot"]
    knocked = hs.knockout(model, chat, edges=edges, max_new_tokens=1, progress=False)
    assert set(knocked.frame["edge"]) == set(edges)
    patched = hs.activation_patch(model, chat, sites=["resid_post"], progress=False)
    partner = patched.details.iloc[0]
    assert partner["partner_prompt"].startswith("The capital of the country of ")
    assert partner["partner_prompt"].endswith(" is"), "the turns are not part of the question"


THOUGHTS = [
    ("Paris", "Paris"),
    (" Paris\n", " Paris\n"),
    ("</think>Rome<think>Paris", "Rome"),
    ("<think>\nFrance, so Rome?\n</think>\n\nParis", "Paris"),
    ("France, so Rome?\n</think>\n\nParis", "Paris"),
    ("<think>\nFrance, so Rome?", ""),
    ("[THINK]Rome[/THINK]Paris", "Paris"),
    ("<seed:think>Rome</seed:think>Paris", "Paris"),
    ("<|channel|>analysis<|message|>Rome?assistant<|channel|>final<|message|>Paris", "Paris"),
    ("<|channel|>analysis<|message|>Rome?", ""),
]


@pytest.mark.parametrize(("text", "said"), THOUGHTS)
def test_thoughts_are_cut(text: str, said: str) -> None:
    assert without_thoughts(text) == said
    assert answer_text(text, one_line=True) == said.strip()


@pytest.mark.parametrize("one_line", [True, False])
@pytest.mark.parametrize(("text", "said"), [*THOUGHTS, ("</think>\n\nParis\nRome", "Paris\nRome")])
def test_the_tokens_of_an_answer_are_those_of_its_text(
    text: str, said: str, one_line: bool
) -> None:
    model = chatting(CHATML)
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    span = answer_span(model, tokens, one_line)
    expected = answer_text(text, one_line)
    assert model.decode(tokens[span.start : span.stop]).strip() == expected.strip()
    assert bool(span) == bool(said)


@pytest.mark.parametrize(("text", "said"), THOUGHTS[3:])
def test_a_thought_ends_no_generation(text: str, said: str) -> None:
    model = chatting(CHATML)
    tokens: tuple[int, ...] = tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert without_thoughts(model.decode(tokens)) == said, "special markers are kept"
    stop = stop_when_answered(model, ["Rome"], "substring", one_line=True)
    assert stop(tokens) == (said == "Rome")
    ended = (*tokens, *model.tokenizer("\n", add_special_tokens=False)["input_ids"])
    assert stop_at_line_end(model)(ended) == bool(said)


def test_documents_are_answered_without_thinking_first() -> None:
    """The channel of gpt-oss that answers is chosen, and a thought that a template opens closed."""
    docs = hs.load_questions("world-docs", distractors=1).sample(1)
    for kind, end in (("gpt-oss", "assistant<|channel|>final<|message|>"), ("r1", "</think>\n\n")):
        assert DocumentPrompts(chatting(ENDS[kind][0]), docs, "chat").frame[1].endswith(end)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UsageError, match="no chat template: ask without one"):
        QUERIES.with_chat(chatting(None))
    with pytest.raises(UsageError, match=r"does not take these turns: no system\. Leave out"):
        QUERIES.with_chat(chatting(NO_SYSTEM), system="Be brief.")
    with pytest.raises(UsageError, match="leaves the user's turn out"):
        chat_frame(chatting("nothing").tokenizer, [{"role": "user", "content": CHAT_SLOT}])
    with pytest.raises(QueryError, match=r"exactly one \{\} where the prompt goes"):
        QUERIES.with_chat(chatting(CHATML), instruction="Go on")
