"""Training under a mask: batches, loss, checkpoints, and models that learn what they are shown."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection

from hopscope.documents.lay_out import lay_out
from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.documents.world_docs import NAMES, world_docs
from hopscope.errors import ModelError, QueryError, ResultError, UsageError
from hopscope.experiments.documents import prefix_training, training_plots
from hopscope.experiments.documents.prefix_training import (
    FINETUNING,
    PRETRAINING,
    PrefixTraining,
    answers_under,
    compare_masks,
    many_world_docs,
    split,
)
from hopscope.masks.named import MASKS, causal, knock_out, mask_of, prefix_bidirectional
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.statistics import t_interval
from hopscope.training import mask_training as training
from hopscope.training.batches import (
    answer_logits,
    answer_loss,
    answers_of,
    batch_of,
    drawn_layouts,
    encoder,
)
from hopscope.training.fit import IGNORED
from hopscope.training.mask_training import train
from hopscope.training.settings import TrainingSettings
from hopscope.training.small_models import small_model, word_tokenizer

TINY = TrainingSettings(
    steps=6, batch_size=4, warmup_steps=2, checkpoint_every=3, n_layers=2, d_model=16, n_heads=2
)
FIRST = "which-name-stands-first"


@pytest.fixture(scope="module")
def questions() -> QuestionSet:
    return world_docs(distractors=1).sample(40)


@pytest.fixture(scope="module")
def small(questions: QuestionSet) -> LanguageModel:
    return small_model(questions, TINY)


def first_names(n: int, n_names: int = 4) -> QuestionSet:
    """Questions whose answer is in the first hop's document, and that say no more than that."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(n):
        one, other = rng.choice(NAMES[:n_names], 2, replace=False)
        documents = (Document("a", f"{one}."), Document("b", f"{other}."))
        hops = (Hop("Who?", str(one), 0), Hop("Who?", str(one), 1))
        made.append(MultiDocQuestion(str(number), "Who?", str(one), documents, hops))
    return QuestionSet(tuple(made), FIRST)


def answered(model: LanguageModel, questions: QuestionSet, n: int) -> list:
    encode = encoder(model)
    orders = ("forward", "backward", "original")
    return [
        lay_out(encode, each, orders[i % 3], template="plain", answer=each.answer)
        for i, each in enumerate(questions[:n])
    ]


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return dict(model.hf.state_dict())


def assert_same_weights(a: LanguageModel, b: LanguageModel) -> None:
    assert weights(a).keys() == weights(b).keys()
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a run die at the beginning of a step."""

    def drawn(*args, **kwargs):
        if kwargs["step"] == step:
            raise KeyboardInterrupt
        return drawn_layouts(*args, **kwargs)

    monkeypatch.setattr(training, "drawn_layouts", drawn)


# Tokenizer and model


def test_every_word_and_name_is_one_token_and_offsets_cover_it(small, questions):
    text = f"{questions[0].documents[0].text}\nQuestion: {questions[0].question}\nAnswer: Zoe"
    encoded = small.encode(text)
    pieces = [text[a:b] for a, b in encoded.offsets]
    assert "".join(pieces) == "".join(text.split())
    assert pieces[-1] == "Zoe"
    assert small.tokenizer.unk_token_id not in encoded.ids
    assert small.tokenizer.unk_token_id in small.encode("Xylophone").ids


def test_a_layout_finds_its_parts_in_words(small, questions):
    layout = answered(small, questions, 1)[0]
    texts = [small.decode([layout.ids[t] for t in layout.document(d)]) for d in range(3)]
    words = [" ".join(d.text.replace(".", " .").split()) for d in questions[0].documents]
    assert texts == words
    assert small.decode([layout.ids[t] for t in layout.tokens("answer")]) == questions[0].answer


def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone(questions):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (small_model(questions, TINY, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert_same_weights(one, same)
    assert one.fingerprint != other.fingerprint
    assert len(word_tokenizer(questions)) == one.vocab_size


# Batches and loss


@pytest.mark.parametrize("name", MASKS)
def test_a_padded_batch_gives_the_logits_of_single_rows(small, questions, name):
    layouts = answered(small, questions, 6)
    assert len(set(map(len, layouts))) > 1
    whole = batch_of(small, layouts, mask_of(name))
    together = answer_logits(small, whole)
    for row, layout in enumerate(layouts):
        single = batch_of(small, [layout], mask_of(name))
        alone = answer_logits(small, single)[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt2", "gpt-neox"])
def test_batches_are_right_in_other_families(family, questions):
    model = load_model(f"tiny-random-{family}", device="cpu")
    layouts = answered(model, questions, 3)
    masks = causal() & knock_out("question", "gold 1", layers=[1], heads=[0])
    together = answer_logits(model, batch_of(model, layouts, masks))
    alone = answer_logits(model, batch_of(model, layouts[:1], masks))[0]
    torch.testing.assert_close(together[0, -len(alone) :], alone, atol=1e-3, rtol=1e-3)
    plain = model.hf(input_ids=torch.tensor([layouts[1].ids])).logits[0, -1]
    ours = answer_logits(model, batch_of(model, layouts, causal()))[1, -1]
    torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-3)
    model.hf.config.return_dict = False
    assert torch.equal(answer_logits(model, batch_of(model, layouts, masks)), together)


def test_the_loss_is_that_of_the_answers_and_their_ends(small, questions):
    layouts = answered(small, questions, 5)
    losses = []
    for layout in layouts:
        ids = [*layout.ids, small.tokenizer.eos_token_id]
        logprobs = small.hf(input_ids=torch.tensor([layout.ids])).logits[0].log_softmax(-1)
        start = layout.tokens("answer")[0]
        losses += [-logprobs[place - 1, ids[place]] for place in range(start, len(ids))]
    found = answer_loss(small, batch_of(small, layouts, causal()))
    torch.testing.assert_close(found, torch.stack(losses).mean())


@pytest.mark.parametrize("name", MASKS)
def test_no_mask_shows_the_prompt_its_answer(small, questions, name):
    asked = questions[0]
    one, other = (
        lay_out(encoder(small), asked, template="plain", answer=answer)
        for answer in ("Zoe", "Zach")
    )
    logits = [answer_logits(small, batch_of(small, [each], mask_of(name))) for each in (one, other)]
    torch.testing.assert_close(logits[0][0, 0], logits[1][0, 0])
    assert not torch.allclose(logits[0][0, 1], logits[1][0, 1])


def test_targets_are_ignored_outside_the_answer(small, questions):
    layouts = answered(small, questions, 3)
    batch = batch_of(small, layouts, causal())
    assert ((batch.targets != IGNORED).sum(dim=1) == 2).all()
    assert batch.n_kept == 2
    assert (batch.targets[:, -1] == small.tokenizer.eos_token_id).all()


def test_turns_ask_of_other_chains_and_every_answer_has_a_loss(small):
    questions = world_docs(distractors=2).sample(60)
    how = {"step": 0, "batch_size": 60, "orders": (), "hop_share": 0.5, "n_names": 20, "seed": 0}
    layouts = drawn_layouts(small, questions, turns=2, **how)
    kinds = set()
    for layout in layouts:
        lines = layout.text.splitlines()
        asked = [line.removeprefix("Question: ") for line in lines if line.startswith("Question:")]
        told = [line.removeprefix("Answer: ") for line in lines if line.startswith("Answer:")]
        ranges = answers_of(layout)
        assert [small.decode([layout.ids[t] for t in each]) for each in ranges] == told
        whole, first, second = layout.question.extra["others"][0]
        if len(told) == 2:
            assert (asked[1], told[1]) in (whole, first, second)
            kinds.add((whole, first, second).index((asked[1], told[1])))
        batch = batch_of(small, [layout], causal())
        for each in ranges:
            ids = [*layout.ids[each.start : each.stop], small.tokenizer.eos_token_id]
            assert batch.targets[0, each.start - 1 : each.stop].tolist() == ids
        assert (batch.targets != IGNORED).sum() == sum(len(each) + 1 for each in ranges)
    assert kinds == {0, 1, 2}
    alone = drawn_layouts(small, questions, turns=1, **how)
    assert all(len(answers_of(each)) == 1 for each in alone)
    for one, other in zip(alone, layouts, strict=True):
        assert other.text.startswith(one.text)


def test_second_hops_are_not_asked_alone_if_so_wished(small):
    questions = world_docs(distractors=2).sample(60)
    how = {"step": 0, "batch_size": 60, "orders": (), "hop_share": 0.5, "n_names": 20, "seed": 0}
    for wished in (True, False):
        layouts = drawn_layouts(small, questions, turns=2, second_hops=wished, **how)
        seconds = {
            text
            for each in layouts
            for text in (each.question.hops[1].question, each.question.extra["others"][0][2][0])
            if f"Question: {text}\n" in each.text
        }
        assert bool(seconds) == wished


def test_answers_of_several_tokens_are_found_in_any_tokenizer(questions):
    model = load_model("tiny-random-llama", device="cpu")
    turns = [("Which city is not New York?", "Los Angeles")]
    how = {"template": "plain", "answer": "New York", "turns": turns}
    layout = lay_out(encoder(model), questions[0], **how)
    assert layout.text.endswith(
        "Answer: New York\nQuestion: Which city is not New York?\nAnswer: Los Angeles"
    )
    said = [model.decode([layout.ids[t] for t in each]).strip() for each in answers_of(layout)]
    assert said == ["New York", "Los Angeles"]


def test_turns_need_an_answer_before_them(questions, small):
    with pytest.raises(UsageError, match="turns stand behind an answer"):
        lay_out(encoder(small), questions[0], template="plain", turns=[("Who?", "Ann")])


def test_terse_documents_are_pairs_of_names_and_questions_say_how_many_hops():
    questions = world_docs(distractors=2, terse=True).sample(40)
    model = small_model(questions, TINY)
    full = world_docs(distractors=2).sample(40)
    for terse, said in zip(questions, full, strict=True):
        assert (terse.id, terse.answer, terse.gold) == (said.id, said.answer, said.gold)
        first, second = (terse.documents[hop.document].text.split() for hop in terse.hops)
        assert terse.question == f"two {first[0]}"
        assert (first[1], second[1]) == (second[0], terse.answer)
        assert [hop.question for hop in terse.hops] == [f"one {first[0]}", f"one {second[0]}"]
    how = {"batch_size": 40, "orders": (), "hop_share": 0.5, "n_names": 20, "seed": 0}
    layouts = drawn_layouts(model, questions, step=0, turns=2, template="bare", **how)
    for layout in layouts:
        assert len(layout) == 14
        lines = [line.split() for line in layout.text.splitlines()]
        told = [layout.text[start:end] for start, end in layout.answers]
        assert [line[-1] for line in lines if len(line) == 3] == told
        leads = dict(line for line in lines if len(line) == 2)
        for hops, name, answer in (line for line in lines if len(line) == 3):
            assert answer == (leads[name] if hops == "one" else leads[leads[name]])


def test_prompts_draw_their_names_anew_from_those_in_use(small, questions):
    def drawn(step):
        how = {"batch_size": 40, "hop_share": 0.0, "n_names": 9, "seed": 1}
        layouts = drawn_layouts(small, questions, step=step, orders=("original",), **how)
        return {each.question.id: each for each in layouts}

    first, second = drawn(0), drawn(1)
    assert drawn(0) == first
    used = {word for each in first.values() for word in small.decode(each.ids).split()}
    assert used & set(NAMES) == set(NAMES[:9])
    assert sum(first[key].text != second[key].text for key in first) > 30


def test_batches_see_every_question_once_a_pass_in_new_orders(small, questions):
    def drawn(step, **changed):
        same = {"batch_size": 20, "orders": (), "hop_share": 0.0, "n_names": 0, "seed": 1}
        how = {**same, **changed}
        return drawn_layouts(small, questions, step=step, **how)

    first_pass, second = [*drawn(0), *drawn(1)], [*drawn(2), *drawn(3)]
    assert {each.question.id for each in first_pass} == {each.id for each in questions}
    orders = [{each.question.id: each.order for each in seen} for seen in (first_pass, second)]
    assert sum(orders[0][key] != orders[1][key] for key in orders[0]) > 20
    assert drawn(2) == drawn(2)
    hops = drawn(0, hop_share=1.0, orders=("forward",))
    for each in hops:
        asked = {(hop.question, hop.answer) for hop in each.question.hops}
        assert (each.question.question, each.question.answer) in asked


# Training


@pytest.mark.parametrize("mask", ["causal", "prefix_bidirectional"])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    questions, tmp_path, monkeypatch, mask
):
    whole = train(questions, mask, settings=TINY, seed=1, progress=False)
    with monkeypatch.context() as patch:
        killed_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(questions, mask, settings=TINY, seed=1, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with monkeypatch.context() as patch:
        killed_at(patch, 2)  # a step that is done must not be taken again
        resumed = train(
            questions, mask, settings=TINY, seed=1, out=tmp_path / "run", progress=False
        )
    assert_same_weights(whole, resumed)
    assert_same_weights(whole, load_model(tmp_path / "run", device="cpu"))
    start = small_model(questions, TINY, seed=1)
    assert whole.fingerprint != start.fingerprint


def test_a_finished_run_is_loaded_and_another_one_is_refused(questions, tmp_path, monkeypatch):
    done = train(questions, settings=TINY, out=tmp_path / "run", progress=False)
    killed_at(monkeypatch, 0)
    again = train(questions, settings=TINY, out=tmp_path / "run", progress=False)
    assert_same_weights(done, again)
    assert again.tokenizer.get_vocab() == done.tokenizer.get_vocab()
    with pytest.raises(ResultError, match="seed is 0, not 1"):
        train(questions, settings=TINY, seed=1, out=tmp_path / "run", progress=False)
    with pytest.raises(ResultError, match="mask"):
        train(questions, "document_block", settings=TINY, out=tmp_path / "run", progress=False)


def test_foreign_folders_and_damaged_files_are_refused(questions, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ResultError, match="choose another place"):
        train(questions, settings=TINY, out=tmp_path / "mine", progress=False)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(questions, settings=TINY, out=run, progress=False)
    (run / "checkpoint.safetensors").write_bytes(b"half of it")
    with pytest.raises(ResultError, match="damaged"):
        train(questions, settings=TINY, out=run, progress=False)
    (run / "training.json").write_text("{")
    with pytest.raises(ResultError, match="damaged"):
        train(questions, settings=TINY, out=run, progress=False)


def test_a_model_learns_the_order_that_it_is_shown():
    """Nothing but the order tells the answer: what is learned forward must fail backward."""
    questions = first_names(64)
    settings = replace(TINY, steps=150, batch_size=32, learning_rate=1e-2, orders=("forward",))
    settings = replace(settings, hop_share=0.0, n_names=0, d_model=32, warmup_steps=10)
    model = train(questions, settings=settings, progress=False)
    found = answers_under(model, questions, "causal", ("forward", "backward"), progress=False)
    accuracy = found.groupby("order")["correct"].mean()
    assert accuracy["forward"] > 0.95
    assert accuracy["backward"] < 0.05


# LoRA


def test_updates_are_merged_and_the_given_model_stays(questions, tmp_path):
    pytest.importorskip("peft")
    given = load_model("tiny-random-llama", device="cpu")
    before = given.fingerprint
    trained = train(
        questions, "prefix_bidirectional", model=given, settings=TINY, out=tmp_path, progress=False
    )
    assert given.fingerprint == before
    assert trained.fingerprint != before
    assert weights(trained).keys() == weights(given).keys()
    loaded = load_model(tmp_path, device="cpu")
    assert_same_weights(trained, loaded)
    changed = {
        n for n, each in weights(given).items() if not torch.equal(each, weights(trained)[n])
    }
    assert changed
    assert all("_proj" in name for name in changed)


def test_updates_resume_too(questions, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    how = {"model": "tiny-random-gpt2", "settings": TINY, "progress": False}  # it has dropout
    whole = train(questions, **how)
    with monkeypatch.context() as patch:
        killed_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(questions, out=tmp_path, **how)
    assert_same_weights(whole, train(questions, out=tmp_path, **how))


def test_a_missing_peft_is_named(questions, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install hopscope\[train\]"):
        train(questions, model="tiny-random-llama", settings=TINY, progress=False)


# Bad input


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"turns": 0},
        {"n_names": 999},
        {"learning_rate": -1.0},
        {"hop_share": 1.5},
        {"late_hop_share": -0.1},
        {"late": -1},
        {"d_mlp": 0},
        {"d_model": 30, "n_heads": 4},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        replace(TINY, **wrong)


def test_bad_arguments_are_refused(questions, small):
    with pytest.raises(QueryError, match="empty"):
        train(questions[:0], settings=TINY, progress=False)
    with pytest.raises(UsageError, match="unknown mask"):
        train(questions, "casual", settings=TINY, progress=False)
    with pytest.raises(UsageError, match="no answer"):
        batch_of(small, [lay_out(encoder(small), questions[0], template="plain")], causal())
    with pytest.raises(UsageError, match="each once"):
        compare_masks(seeds=(0, 0), questions=questions)
    with pytest.raises(UsageError, match="cannot hold out"):
        split(questions, len(questions), seed=0)


# Over the steps


def test_fewer_single_hops_are_asked_late(monkeypatch, questions):
    shares = []
    real = drawn_layouts

    def noting(*args, hop_share, **kwargs):
        shares.append(hop_share)
        return real(*args, hop_share=hop_share, **kwargs)

    monkeypatch.setattr("hopscope.training.mask_training.drawn_layouts", noting)
    settings = replace(TINY, hop_share=0.75, late_hop_share=0.0, late=4)
    train(questions, settings=settings, progress=False)
    assert shares == [0.75] * 4 + [0.0] * 2
    shares.clear()
    train(questions, settings=replace(settings, late_hop_share=None), progress=False)
    assert shares == [0.75] * 6


# Comparison


def test_held_out_questions_are_not_trained_on(monkeypatch):
    drawn = {seed: world_docs(distractors=1, seed=seed)[:100] for seed in range(2)}
    monkeypatch.setattr(prefix_training, "world_docs", lambda distractors, seed, terse: drawn[seed])
    questions = many_world_docs(distractors=(1,), draws=2)
    train_on, held = split(questions, 50, seed=0)
    facts = {each.id.partition("#")[0] for each in train_on}
    assert len(held) == 50
    assert len(train_on) == len(questions) - 100
    assert not facts & {each.id.partition("#")[0] for each in held}
    assert split(questions, 50, seed=1)[1].fingerprint != held.fingerprint


def test_arms_are_compared_on_the_same_questions_and_kept(questions, tmp_path):
    how = {"questions": questions, "held_out": 5, "settings": TINY, "progress": False}
    result = compare_masks(seeds=(0, 1), out=tmp_path / "run", **how)
    assert len(result.frame) == 2 * 2 * 2 * 3 * 5
    cells = result.frame.groupby(["mask", "read_under", "order"])["query"].apply(frozenset)
    assert cells.nunique() == 1
    assert set(result.summary()["n_queries"]) == {5}
    assert set(result.paired()["order"]) == {"original", "forward", "backward"}
    loaded = PrefixTraining.load(tmp_path / "run")
    pd.testing.assert_frame_equal(loaded.frame, result.frame)
    again = compare_masks(seeds=(0, 1), out=tmp_path / "run", **how)
    pd.testing.assert_frame_equal(again.frame, result.frame)
    assert (tmp_path / "run" / "models" / "arm-1.seed-1" / "config.json").is_file()


def test_arms_go_on_from_one_model(questions, tmp_path):
    how = {"questions": questions, "held_out": 5, "settings": TINY, "progress": False}
    pretraining = replace(TINY, steps=3)
    result = compare_masks(seeds=(0,), pretraining=pretraining, out=tmp_path / "run", **how)
    begun, _, other = (
        load_model(tmp_path / "run" / "models" / f"{name}.seed-0")
        for name in ("base", "arm-0", "arm-1")
    )
    trained, _ = split(questions, 5, 0)
    plain = train(trained, settings=pretraining, progress=False)
    assert begun.fingerprint == plain.fingerprint
    alone = train(trained, "prefix_bidirectional", model=plain, settings=TINY, progress=False)
    assert other.fingerprint == alone.fingerprint
    base = result.frame.query("control == 'base'")
    assert set(base["mask"]) == {"base"}
    assert set(base["read_under"]) == {"causal", "prefix_bidirectional"}
    assert len(base) == 2 * 3 * 5
    assert set(result.paired()["mask"]) == {"prefix_bidirectional"}
    with pytest.raises(UsageError, match="either it or a model"):
        compare_masks(pretraining=pretraining, model=plain, **how)
    with pytest.raises(UsageError, match="pretraining has template 'bare'"):
        compare_masks(pretraining=replace(pretraining, template="bare"), **how)


def test_by_default_models_that_read_forward_learn_to_read_in_all_orders(monkeypatch):
    asked = []

    def noting(questions, mask="causal", *, model=None, settings, **_):
        asked.append((mask_of(mask).name, model is None, settings))
        return small_model(questions, settings)

    monkeypatch.setattr(prefix_training, "train", noting)
    result = compare_masks(seeds=(0,), held_out=2, progress=False)
    masks = ("causal", "prefix_bidirectional")
    assert asked[0] == ("causal", True, PRETRAINING)
    assert asked[1:] == [(mask, False, FINETUNING) for mask in masks]
    assert all(len(each.split()) == 8 for each in result.details["documents"])


def made_result() -> PrefixTraining:
    """Two arms with known accuracies: 0.5, 0.6, 0.7 and 0.1 more, half of that if misread."""
    rows = []
    for mask in ("causal", "prefix_bidirectional"):
        for read_under in ("causal", "prefix_bidirectional"):
            for seed in range(3):
                right = 50 + 10 * seed + 10 * (mask != "causal")
                right = right if mask == read_under else right // 2
                for query in range(100):
                    control = "none" if mask == read_under else "other_mask"
                    about = {"mask": mask, "read_under": read_under, "control": control}
                    asked = {"seed": seed, "order": "forward", "query": f"{query}/seed-{seed}"}
                    rows.append({**about, **asked, "generated": "", "correct": query < right})
    frame = pd.DataFrame(rows)
    details = pd.DataFrame({"query": frame["query"].unique()})
    run = {"model": {"name": "m"}, "queries": {"name": "q", "n": 300}}
    return PrefixTraining(frame, details, run)


def test_intervals_are_students_over_seeds():
    mean, low, high = t_interval(np.array([0.5, 0.6, 0.7]))
    half = 4.302653 * 0.1 / 3**0.5
    assert (mean, low, high) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    assert np.isnan(t_interval(np.array([0.5]))[1])
    summary = made_result().summary().set_index(["mask", "read_under"])
    own = summary.loc[("causal", "causal")]
    assert (own["accuracy"], own["low"]) == pytest.approx((0.6, 0.6 - half))
    paired = made_result().paired().iloc[0]
    assert (paired["mask"], paired["minus"]) == ("prefix_bidirectional", "causal")
    assert paired["difference"] == pytest.approx(0.1)


def test_the_figure_shows_every_arm(tmp_path: Path):
    result = made_result()
    ax = training_plots.mask_arms(result.summary(), result.by_seed())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(labels) == 3
    assert prefix_bidirectional().name.replace("_", " ") in " ".join(labels)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["forward"]


def test_the_gain_of_an_arm_is_drawn_with_a_dot_a_seed():
    result = made_result()
    ax = training_plots.mask_gains(result.paired(), result.by_seed())
    (bar,) = ax.containers
    assert bar.lines[0].get_ydata().tolist() == pytest.approx([0.1])
    dots = [each for each in ax.get_lines() if each.get_marker() == "o"]
    by_seed = result.by_seed().query("control == 'none'").pivot(index="seed", columns="mask")
    accuracy = by_seed["accuracy"]
    differences = accuracy["prefix_bidirectional"] - accuracy["causal"]
    assert dots[0].get_ydata().tolist() == pytest.approx(differences.tolist())
    (label,) = (text.get_text() for text in ax.get_legend().get_texts())
    assert label == "prefix bidirectional minus causal"


def test_the_base_model_is_a_line_across_the_bars():
    result = made_result()
    base = result.frame.query("mask == 'causal'")
    base = base.assign(mask="base", control="base")
    frame = pd.concat([result.frame, base])
    both = PrefixTraining(frame, result.details, result.run)
    ax = training_plots.mask_arms(both.summary(), both.by_seed())
    alone = training_plots.mask_arms(result.summary(), result.by_seed())
    assert len(ax.containers) == len(alone.containers)
    levels = sorted(
        float(line[0, 1])
        for each in ax.collections
        if isinstance(each, LineCollection) and each.get_zorder() == 4
        for line in each.get_segments()
    )
    assert levels == pytest.approx([0.3, 0.3, 0.6, 0.6])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "before fine-tuning" in labels
    assert both.paired().equals(result.paired())
