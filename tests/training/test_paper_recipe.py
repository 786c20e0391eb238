"""Fine-tuning in chat form with the recipe of Huang et al. 2025, beside losses written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from multidoc import OTHER, QUESTION, chat_model
from plain import generated

from hopscope.documents.question_set import QuestionSet
from hopscope.documents.templates import TEMPLATES
from hopscope.errors import UsageError
from hopscope.experiments.documents.prefix_training import answers_under, compare_masks
from hopscope.experiments.registry import REGISTERED
from hopscope.masks.named import mask_of
from hopscope.models.language_model import LanguageModel
from hopscope.training.batches import answer_loss, batch_of, drawn_layouts, end_token
from hopscope.training.fit import IGNORED
from hopscope.training.mask_training import train
from hopscope.training.settings import PAPER_FINETUNING, TrainingSettings
from hopscope.training.small_models import with_updates

QUESTIONS = QuestionSet((QUESTION, OTHER), "made")
MASKS = ("causal", "prefix_bidirectional")
SHORT = replace(PAPER_FINETUNING, bfloat16=False, learning_rate=1e-2, epochs=2)
CHAT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\nAnswer the question using only the provided search results "
    "(some of which might be irrelevant). \n\n"
    "Document [0](Title: Imagine) The performer is Lennon.\n"
    "Document [1](Title: Lennon) His spouse is Yoko Ono.\n\n"
    "Question: Who is the spouse of the performer of Imagine?\n.<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return chat_model()


def batch_for(model: LanguageModel, mask: str, **changed: Any) -> Any:
    how = {"step": 0, "batch_size": 1, "orders": ("original",), "hop_share": 0.0, "n_names": 0}
    layouts = drawn_layouts(model, QUESTIONS[1:], **how, template="paper_tuned", seed=0, **changed)
    return layouts[0], batch_of(model, layouts, mask_of(mask), end_token(model, chat=True))


def test_the_answer_is_the_assistants_turn(model: LanguageModel) -> None:
    layout, batch = batch_for(model, "causal")
    assert layout.text == f"{CHAT}Yoko Ono"
    targets = [int(each) for each in batch.targets[0] if each != IGNORED]
    end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.decode(targets) == "Yoko Ono"
    assert targets[-1] == end == end_token(model, chat=True)
    assert end_token(model) == model.tokenizer.eos_token_id


@pytest.mark.parametrize("mask", MASKS)
def test_the_loss_is_that_of_the_turn_under_the_mask(model: LanguageModel, mask: str) -> None:
    prompt, answer = (
        model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (CHAT, "Yoko Ono<|im_end|>")
    )
    ids, n = torch.tensor([[*prompt, *answer]]), len(prompt)
    seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    if mask == "prefix_bidirectional":
        seen[:n, :n] = True
    added = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    logits = model.hf(input_ids=ids, attention_mask=added).logits[0, n - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, n:])
    torch.testing.assert_close(answer_loss(model, batch_for(model, mask)[1]), expected)


def test_the_rate_falls_in_a_line_over_the_passes() -> None:
    settings = PAPER_FINETUNING.for_questions(200)
    assert settings.steps == 1000
    for step in (0, 1, 250, 999):
        assert settings.rate(step) == pytest.approx(5e-5 * (1 - step / 1000))
    assert replace(settings, batch_size=64, epochs=1).for_questions(200).steps == 4
    assert TrainingSettings().for_questions(7) == TrainingSettings()


def test_what_was_added_is_recorded_only_where_it_is_set() -> None:
    added = set(TrainingSettings.added_settings)
    assert not set(TrainingSettings().as_record()) & added
    assert TrainingSettings().as_record()["orders"] == ()
    assert set(PAPER_FINETUNING.as_record()) >= added
    own = replace(PAPER_FINETUNING, template=TEMPLATES["paper_tuned"]).as_record()
    assert own["template"] == TEMPLATES["paper_tuned"].as_record()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lora_dropout": 1.0}, "lora_dropout must be 0 or more and below 1"),
        ({"epochs": 0}, "epochs must be more than 0"),
        ({"decay": "steps"}, "unknown decay 'steps'"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"turns": 2}, "takes one question with its answer: set turns=1"),
    ],
)
def test_a_bad_setting_is_told(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(PAPER_FINETUNING, **wrong)


def test_the_updates_are_theirs(model: LanguageModel) -> None:
    pytest.importorskip("peft")
    hf = chat_model().hf
    config = with_updates(hf, PAPER_FINETUNING, 0, model.device).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    updated = {name.split(".")[-4] for name, each in hf.named_parameters() if "lora_A" in name}
    assert updated == {f"{each}_proj" for each in ("q", "k", "v", "o", "gate", "up", "down")}


def test_arms_in_chat_form_are_trained_and_asked(model: LanguageModel) -> None:
    pytest.importorskip("peft")
    trained = train(QUESTIONS, MASKS[1], model=model, settings=SHORT, progress=False)
    again = train(QUESTIONS, MASKS[1], model=model, settings=SHORT, progress=False)
    other = train(QUESTIONS, MASKS[0], model=model, settings=SHORT, progress=False)
    assert trained.fingerprint == again.fingerprint
    assert len({model.fingerprint, trained.fingerprint, other.fingerprint}) == 3
    before, after = (answer_loss(each, batch_for(each, MASKS[1])[1]) for each in (model, trained))
    assert after < before
    form = replace(TEMPLATES["paper_tuned"], max_new_tokens=4)
    found = answers_under(model, QUESTIONS[1:], "causal", ("original",), form, progress=False)
    row = torch.tensor([model.tokenizer(CHAT, add_special_tokens=False)["input_ids"]])
    (said,) = generated(model.hf, row, torch.ones_like(row), 4, model.end_tokens)
    text = model.tokenizer.decode(said, skip_special_tokens=True)
    assert list(found["generated"]) == [text.strip().split("\n")[-1]]


def test_the_registered_recipe_runs(model: LanguageModel) -> None:
    pytest.importorskip("peft")
    given = REGISTERED["prefix_training"].parity
    assert given == {"settings": PAPER_FINETUNING}
    form = replace(TEMPLATES["paper_tuned"], max_new_tokens=2)
    settings = replace(given["settings"], bfloat16=False, epochs=1, template=form)
    result = compare_masks(
        seeds=[0],
        questions=QUESTIONS,
        held_out=1,
        orders=["original"],
        model=model,
        settings=settings,
        progress=False,
    )
    assert set(result.frame["mask"]) == {*MASKS, "base"}
    assert result.run["settings"]["training"]["epochs"] == 1
