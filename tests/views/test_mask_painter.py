"""Painting a mask: what is painted is what the model is asked under."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from traitlets import TraitError

from hopscope.documents.world_docs import world_docs
from hopscope.engine.masked.read import read
from hopscope.engine.read_out import ReadOut, Version
from hopscope.errors import QueryError, UsageError
from hopscope.masks.named import causal, document_block, knock_out, painted, switched
from hopscope.models.language_model import LanguageModel
from hopscope.views.mask_painter import MaskPainter, paint_mask


@pytest.fixture
def painter(llama: LanguageModel) -> MaskPainter:
    return paint_mask(llama, world_docs(distractors=1))


def send(painter: MaskPainter, **message: object) -> None:
    painter._handle_custom_msg(message, [])


def test_the_mask_begins_as_it_is_named_and_changes_as_it_is_painted(painter: MaskPainter) -> None:
    n, first = len(painter.tokens), painter._first
    assert first > 0  # demonstrations stand in front and are not shown
    assert len(painter.prompt) == first + n
    assert painter.mask.name == "causal"
    rows = list(painter.seen)
    assert rows[3] == "1111" + "0" * (n - 4)
    rows[3] = "0101" + "0" * (n - 4)
    painter.seen = rows
    assert painter.changed == 2
    seen = painter.mask.keep(painter.prompt)[0]
    expected = causal().keep(painter.prompt)[0].clone()
    expected[first + 3, [first, first + 2]] = False
    assert torch.equal(seen, expected)
    assert painter.mask.name == "painted on causal"


def test_it_answers_under_what_is_painted(painter: MaskPainter, llama: LanguageModel) -> None:
    n = len(painter.tokens)
    painter.ask()
    painter.seen = [*painter.seen[:-1], "0" * (n - 1) + "1"]
    answer = painter.ask()
    assert painter.answers[0] == answer
    assert [each["mask"] for each in painter.answers] == [
        f"painted on causal ({n - 1} changed)",
        "causal",
    ]
    first = llama.first_tokens(painter.prompt.question.names)
    for given, mask in zip(painter.answers, (painter.mask, causal()), strict=True):
        outputs = read(llama, [Version(painter.prompt, mask)], ReadOut(first)).outputs
        assert given["probability"] == pytest.approx(float(outputs.logprob[0].exp()), rel=1e-4)
    assert painter.answers[0]["probability"] != pytest.approx(painter.answers[1]["probability"])


def test_an_answer_renews_the_picture_in_the_outputs(
    painter: MaskPainter, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: list[int] = []
    monkeypatch.setattr(painter, "renew_outputs", lambda: renewed.append(len(painter.answers)))
    send(painter, type="ask")
    assert renewed == [1]


def test_what_is_painted_holds_in_its_layers_alone(
    painter: MaskPainter, llama: LanguageModel
) -> None:
    n, last = len(painter.tokens), llama.n_layers - 1
    assert painter.layers == [0, last]
    painter.seen = [*painter.seen[:-1], "0" * (n - 1) + "1"]
    everywhere = painter.ask()["probability"]
    painter.layers = [1, last]
    assert painter.mask.name.startswith("switched(painted on causal, layers 1,")
    cut = painted(painter.mask.keep(painter.prompt, 1)[0])
    assert torch.equal(painter.mask.keep(painter.prompt, 0), causal().keep(painter.prompt))
    assert not torch.equal(cut.keep(painter.prompt), causal().keep(painter.prompt))
    answer = painter.ask()
    first = llama.first_tokens(painter.prompt.question.names)
    plain = switched(cut, layers=range(1, last + 1))
    outputs = read(llama, [Version(painter.prompt, plain)], ReadOut(first)).outputs
    assert answer["probability"] == pytest.approx(float(outputs.logprob[0].exp()), rel=1e-4)
    assert answer["probability"] != pytest.approx(everywhere)
    assert shown_places(painter) == [(1, 0)], "the picture is of a layer where it is painted"
    for wrong in ([1], [2, 1], [0, last + 1], [-1, 0]):
        with pytest.raises(TraitError, match="the first and the last of 0 to"):
            painter.layers = wrong


def test_what_is_painted_holds_in_its_heads_alone(
    painter: MaskPainter, llama: LanguageModel
) -> None:
    n, n_heads = len(painter.tokens), llama.n_heads
    painter.seen = [*painter.seen[:-1], "0" * (n - 1) + "1"]
    cut, everywhere = painter.mask, painter.ask()["probability"]
    painter.heads = [n_heads - 1, 1, 1]
    assert painter.heads == [1, n_heads - 1]
    keep = painter.mask.keep(painter.prompt, n_heads=n_heads)
    for head in range(n_heads):
        mask = cut if head in painter.heads else causal()
        assert torch.equal(keep[head], mask.keep(painter.prompt)[0])
    answer = painter.ask()
    first = llama.first_tokens(painter.prompt.question.names)
    plain = switched(cut, heads=painter.heads)
    outputs = read(llama, [Version(painter.prompt, plain)], ReadOut(first)).outputs
    assert answer["probability"] == pytest.approx(float(outputs.logprob[0].exp()), rel=1e-4)
    assert answer["probability"] != pytest.approx(everywhere)
    painter.layers = [1, 2]
    assert painter.mask.name.startswith("switched(painted on causal, layers 1,2, heads 1,")
    assert shown_places(painter) == [(1, 1)], "the picture is of a head where it is painted"
    for wrong in ([n_heads], [-1]):
        with pytest.raises(TraitError, match="heads must be of 0 to"):
            painter.heads = wrong
    painter.begin("causal")
    assert painter.heads == []


def shown_places(painter: MaskPainter) -> list[tuple[int, int]]:
    """The layer and head that the picture of a painter shows."""
    shown = []

    def show(*_: object, layer: int, head: int) -> None:
        shown.append((layer, head))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(painter.mask), "show", show)
        painter.picture()
    return shown


def test_the_front_end_asks_and_begins_anew(painter: MaskPainter) -> None:
    send(painter, type="ask")
    assert painter.asked == len(painter.answers) == 1
    painter.seen = ["1" * len(painter.tokens)] * len(painter.tokens)
    painter.layers = [1, 1]
    send(painter, type="begin", name="document_block")
    assert painter.changed == 0
    assert painter.layers == [0, painter.n_layers - 1]
    assert torch.equal(painter.mask.keep(painter.prompt), document_block().keep(painter.prompt))


def test_an_error_is_told_in_place_of_an_answer(
    painter: MaskPainter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise UsageError("the mask is not good")

    monkeypatch.setattr("hopscope.engine.masked.reader.read", broken)
    send(painter, type="ask")
    assert painter.answers[0]["says"] == "the mask is not good"
    assert painter.answers[0]["correct"] is None, "it is no wrong answer"
    assert painter.asked == 1


def test_parts_cover_the_tokens_that_are_shown(painter: MaskPainter) -> None:
    assert painter.parts[0]["start"] == 0
    assert painter.parts[-1]["stop"] == len(painter.tokens)
    names = [part["name"] for part in painter.parts]
    assert sorted(names[:-1])[-2:] == ["hop 1", "hop 2"]
    assert names[-1] == "question"


def test_one_question_can_be_painted_on_but_not_none(llama: LanguageModel) -> None:
    questions = world_docs(distractors=1)
    alone = paint_mask(llama, questions[0], document_block())
    assert (alone._first, alone.mask.name) == (0, "document_block")
    assert alone.presets[0] == "document_block"
    with pytest.raises(QueryError, match="empty question set"):
        paint_mask(llama, questions[:0])


def test_masks_of_ones_own_can_be_begun_with_again(llama: LanguageModel) -> None:
    own = causal() & document_block()
    made = paint_mask(llama, world_docs(distractors=1), own)
    send(made, type="begin", name="causal")
    send(made, type="begin", name=own.name)
    assert made.mask is own
    with pytest.raises(UsageError, match="differs by layer or head"):
        paint_mask(llama, world_docs(distractors=1), knock_out("question", "gold 1", layers=[1]))


def test_a_painted_mask_is_for_its_prompt_alone(painter: MaskPainter) -> None:
    mask = painted(torch.ones(3, 3, dtype=torch.bool), "mine")
    with pytest.raises(UsageError, match="'mine' was painted on 3 tokens, but the prompt has"):
        mask.keep(painter.prompt)


def test_prompt_and_expected_answer_are_shown(painter: MaskPainter) -> None:
    assert painter.expected == painter.prompt.question.answer != ""
    assert painter.before + "".join(painter.tokens) == painter.prompt.text


def test_a_painted_mask_is_written_as_a_file(painter: MaskPainter, tmp_path: Path) -> None:
    painter.ask()
    painter.heads = [1]
    text = painter.to_html(tmp_path / "mask.html").read_text("utf-8")
    assert "://" not in text
    state = json.loads(text.partition('data-hopscope="mask">')[2].partition("</script>")[0])
    assert state["seen"] == painter.seen
    assert state["answers"] == painter.answers
    assert state["name"] == painter.mask.name
    assert "_esm" not in state


def test_a_place_without_widgets_shows_the_mask(painter: MaskPainter) -> None:
    data, _ = painter._repr_mimebundle_()
    assert data["image/png"]
