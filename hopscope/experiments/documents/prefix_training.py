"""Provides compare_masks(): models trained under different masks, each asked under all of them.

The claim that it tests (Huang et al. 2025, Masking in Multi-hop QA, section 3.3): a prefix that is
seen both ways helps a decoder with documents once it is trained with it, and most where a causal
mask hides the first hop's document from the second's.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Unpack

import pandas as pd
from scipy import stats

from hopscope.display.front_end import ProgressBar
from hopscope.documents.question_set import MultiDocQuestion, QuestionSet
from hopscope.documents.templates import Template
from hopscope.documents.world_docs import NAMES, with_names, world_docs
from hopscope.engine.read_out import Version
from hopscope.errors import UsageError, as_list
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis
from hopscope.experiments.arguments import AtLeast, InstanceOf, Masks, Orders, WholeNumbers
from hopscope.masks.algebra import Mask
from hopscope.masks.named import mask_of
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.prompting.document_prompts import METRICS, DocumentPrompts
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import provenance
from hopscope.results.runs import run_parts
from hopscope.statistics import DIFFERENCE, SHARE, holm, t_interval, t_intervals
from hopscope.training.mask_training import train
from hopscope.training.settings import PAPER_FINETUNING, TrainingSettings
from hopscope.training.small_models import small_model

logger = logging.getLogger(__name__)

ORDERS = ("original", "forward", "backward")
PRETRAINING = TrainingSettings(
    steps=4000,
    hold=0.8,
    learning_rate=2e-3,
    orders=("forward",),
    late_hop_share=0.15,
    turns=1,
    template="bare",
    second_hops=False,
    n_heads=1,
    d_mlp=64,
)
"""With which a small model learns to read bare pairs of names, the first hop always before the
second, in twelve minutes on a core. One head is enough; with four, and a wider MLP, two hops
come later. A second turn about the other chain would be answered by elimination."""
FINETUNING = replace(
    PRETRAINING,
    steps=1500,
    hold=0.5,
    warmup_steps=50,
    learning_rate=3e-3,
    orders=(),
    hop_share=0.3,
    late_hop_share=None,
)
"""Four to six minutes of LoRA, in which all orders are seen."""
MAX_NEW_TOKENS = 8
BASE = "base"
"""The mask and the control of what is read by the model that the arms go on from."""
QUESTIONS_AT_ONCE = 16


@dataclass(frozen=True, repr=False)
class PrefixTraining(Result):
    """Models trained under several masks, and what each answers under each of them.

    `frame` has one row a (mask, read_under, seed, order, query): the mask that the model was
    trained under, the one that it was read under (`control` is `none` if they are the same, else
    `other_mask`: the mask it was not trained for), the seed of the training, the order of the
    documents, `generated` and whether that is `correct`: the answer and nothing else, up to case
    and punctuation, or what the template's metric says. Where the arms of a seed go on from one
    model, pretrained here or given, its own answers are there, too, with `mask` and `control`
    `base`. `details` has one row a query.
    Held-out questions differ from seed to seed, but are the same for all arms of one seed.
    """

    kind: ClassVar[str] = "prefix_training"

    def by_seed(self) -> pd.DataFrame:
        """The accuracy of each model.

        Returns:
            Columns mask, read_under, control, order, seed, accuracy, n (questions).
        """
        keys = ["mask", "read_under", "control", "order", "seed"]
        correct = self.frame.groupby(keys, sort=False)["correct"]
        return correct.agg(accuracy="mean", n="size").reset_index()

    def summary(self) -> pd.DataFrame:
        """The mean accuracy over seeds, with its 95 % t interval over seeds.

        The interval tells how the mean of newly trained models would vary, with their held-out
        questions; it is not one over questions. Of one seed it is NaN. It is cut to [0, 1].

        Returns:
            Columns mask, read_under, control, order, n_seeds, n_queries (a seed), accuracy, low,
            high.
        """
        keys = ["mask", "read_under", "control", "order"]
        table = t_intervals(self.by_seed(), keys, "accuracy", SHARE)
        table["n"] //= table["n_seeds"]
        return table.rename(columns={"n": "n_queries"})

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(), "paired": self.paired()}

    def paired(self) -> pd.DataFrame:
        """How much better each further arm is than the first, paired by seed.

        Each arm is read under its own mask. Both arms of a seed begin with the same weights, see
        the same prompts and answer the same held-out questions.

        Returns:
            Columns mask, minus, order, n_seeds, difference (of accuracies), low, high (95 % t
            interval over seeds), p (two-sided paired t-test), and p_holm, corrected for the rows.
        """
        own = self.by_seed().query("control == 'none'")
        base, *others = dict.fromkeys(own["mask"])
        table = own.set_index(["order", "seed", "mask"])["accuracy"].unstack()
        rows = []
        for mask in others:
            for order in dict.fromkeys(own["order"]):
                differences = (table[mask] - table[base]).loc[order].dropna().to_numpy()
                mean, low, high = t_interval(differences, DIFFERENCE)
                spread = len(differences) > 1 and differences.std() > 1e-9
                p = float(stats.ttest_1samp(differences, 0).pvalue) if spread else float("nan")
                row = {"mask": mask, "minus": base, "order": order, "n_seeds": len(differences)}
                rows.append({**row, "difference": mean, "low": low, "high": high, "p": p})
        return pd.DataFrame(rows).assign(p_holm=holm([row["p"] for row in rows]))


def split(questions: QuestionSet, held_out: int, seed: int) -> tuple[QuestionSet, QuestionSet]:
    """Questions to train on and held-out ones, by seed.

    Ids up to a `#` say what is asked; those that share it stay on one side, and the held-out side
    has the first of each.

    Raises:
        UsageError: if nothing would be left on a side.
    """
    facts = sorted({_fact(each) for each in questions})
    if not 0 < held_out < len(facts):
        raise UsageError(
            f"cannot hold out {held_out} questions of {questions.name}, which asks {len(facts)} "
            f"different ones; take 1 to {len(facts) - 1}"
        )
    chosen = set(random.Random(f"{seed} held out").sample(facts, held_out))
    rest = tuple(each for each in questions if _fact(each) not in chosen)
    one = {_fact(each): each for each in reversed(questions) if _fact(each) in chosen}
    held = sorted(one.values(), key=lambda each: each.id)
    return (
        QuestionSet(rest, f"{questions.name} (training)"),
        QuestionSet(tuple(held), f"{questions.name} (held out)"),
    )


def _fact(question: MultiDocQuestion) -> str:
    return question.id.partition("#")[0]


def many_world_docs(
    distractors: Sequence[int] = (2,), draws: int = 6, *, terse: bool = False
) -> QuestionSet:
    """`world-docs` several times over, with names, distractors and orders drawn anew each time.

    `split` holds out questions with the first number of distractors. With two of them the prompt
    has another chain of the same relations, so that naming some fitting name is not enough.

    Args:
        distractors: numbers of documents beside the gold ones, each of which every draw has.
        draws: how many times; their seeds are 0, 1, ...
        terse: documents and questions in as few words as can be; see `world_docs`.

    Raises:
        QueryError: for a number of distractors that the facts cannot give.
    """
    drawn = [
        replace(each, id=f"{each.id}#{seed}-{n}")
        for n in distractors
        for seed in range(draws)
        for each in world_docs(distractors=n, seed=seed, terse=terse)
    ]
    return QuestionSet(tuple(drawn), "world-docs")


@analysis(
    None,
    title="Training with a mask",
    question="Does training with a bidirectional prefix help where a causal mask hides the chain?",
    source="Masking in Multi-hop QA, section 3.3",
    control="the causal arm of the same seed; each model under the other mask",
    asks="models",
    order=140,
    keywords=("progress", "out"),
    accepts={
        "masks": Masks(optional=False),
        "seeds": WholeNumbers(),
        "questions": InstanceOf(QuestionSet, optional=True),
        "held_out": AtLeast(1),
        "orders": Orders(),
        "model": InstanceOf(str | LanguageModel, optional=True),
        "settings": InstanceOf(TrainingSettings, optional=True),
        "pretraining": InstanceOf(TrainingSettings, optional=True),
    },
    parity={"settings": PAPER_FINETUNING},
)
def compare_masks(
    masks: Sequence[str | Mask] = ("causal", "prefix_bidirectional"),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    questions: QuestionSet | None = None,
    held_out: int = 300,
    orders: Sequence[str] = ORDERS,
    model: LanguageModel | str | None = None,
    settings: TrainingSettings | None = None,
    pretraining: TrainingSettings | None = None,
    **run: Unpack[RunKeywords],
) -> PrefixTraining:
    """Train a model under each mask with each seed, and ask held-out questions under all masks.

    With `pretraining`, the arms of a seed go on by LoRA from one small model that was trained under
    a causal mask; with `model`, from that.

    Args:
        masks: the arms; the first is what the others are compared with.
        seeds: of the split, the weights, the prompts and their orders; the same for all arms.
        questions: what is trained on and held out. `many_world_docs()` by default, the terse ones
            if no model is given.
        held_out: how many questions of a seed are not trained on.
        orders: of the documents when held-out questions are asked.
        model: a pretrained model that is trained by LoRA; None makes a small one from nothing.
        settings: of the training of the arms, such as `PAPER_FINETUNING`, the recipe of Huang et
            al. for chat models. `TrainingSettings()` by default; if no model is
            given, `FINETUNING` after `PRETRAINING`: models that have read in one order learn to
            read in all.
        pretraining: of a training under a causal mask that comes before.

    Raises:
        UsageError: for repeated masks or seeds, or none, a split that cannot be, `pretraining` with
            a model, or with other prompts than `settings` has.
        ResultError: if `out` holds another run.

    Example:
        >>> result = compare_masks(out="runs/prefix_training")  # doctest: +SKIP
        >>> result.paired()                                     # doctest: +SKIP
    """
    options = RunOptions(**run)
    out, progress = options.out, options.progress
    settings, pretraining = _defaults(settings, pretraining, model)
    arms = [mask_of(each) for each in as_list(masks, str | Mask)]
    seeds, orders = as_list(seeds, int), as_list(orders)
    _check_arms(arms, seeds)
    _check_pretraining(pretraining, settings, model)
    questions = many_world_docs(terse=model is None) if questions is None else questions
    splits = _splits(questions, held_out, seeds, settings.n_names)
    held_out_questions = QuestionSet(
        tuple(_of_seed(each, seed) for seed in seeds for each in splits[seed][1]),
        f"{questions.name} (held out)",
    )
    start = None if model is None else load_model(model)
    shown = start or small_model(splits[seeds[0]][0], pretraining or settings, seeds[0])
    recorded = {
        "masks": [arm.name for arm in arms],
        "seeds": list(seeds),
        "held_out": held_out,
        "orders": list(orders),
        "trained_on": questions.fingerprint,
        "from_scratch": start is None,
        "training": settings.as_record(),
        "pretraining": None if pretraining is None else pretraining.as_record(),
    }
    record = provenance(shown, held_out_questions, PrefixTraining.kind, recorded)

    def compute(number: int) -> Tables:
        seed, base = seeds[number], start
        trained_on, held = splits[seed]
        models = None if out is None else Path(out) / "models"
        if pretraining is not None:
            place = None if models is None else models / f"base.seed-{seed}"
            base = train(trained_on, settings=pretraining, seed=seed, out=place, progress=progress)
        trained = _trained(arms, trained_on, base, settings, seed, models, progress)
        named = {arm.name: each for arm, each in zip(arms, trained, strict=True)}
        if base is not None:
            named[BASE] = base
        return _answers_table(arms, named, held, orders, settings.template, seed, progress)

    tables = run_parts(
        len(seeds), compute, record, out=out, description="seeds", unit="seed", progress=progress
    )
    return PrefixTraining.of(tables, record)


def _defaults(
    settings: TrainingSettings | None,
    pretraining: TrainingSettings | None,
    model: LanguageModel | str | None,
) -> tuple[TrainingSettings, TrainingSettings | None]:
    """The settings of the arms and of what comes before, where they are not given."""
    if model is None and settings is None:
        return FINETUNING, pretraining or PRETRAINING
    return settings or TrainingSettings(), pretraining


def _check_arms(arms: Sequence[Mask], seeds: Sequence[int]) -> None:
    for name, given in (("masks", [arm.name for arm in arms]), ("seeds", list(seeds))):
        if not given or len(set(given)) < len(given):
            raise UsageError(f"{name} must be one or more, each once, not {given}")


def _splits(
    questions: QuestionSet, held_out: int, seeds: Sequence[int], n_names: int
) -> dict[int, tuple[QuestionSet, QuestionSet]]:
    """For each seed the questions to train on and the held-out ones, with names in use."""
    return {
        seed: (trained, _with_names_in_use(held, n_names, seed))
        for seed in seeds
        for trained, held in [split(questions, held_out, seed)]
    }


def _check_pretraining(
    pretraining: TrainingSettings | None,
    settings: TrainingSettings,
    model: LanguageModel | str | None,
) -> None:
    if pretraining is None:
        return
    if model is not None:
        raise UsageError("pretraining makes a model from nothing, so give either it or a model")
    for name in ("template", "n_names"):
        before, after = getattr(pretraining, name), getattr(settings, name)
        if before != after:
            raise UsageError(f"pretraining has {name} {before!r}, but settings have {after!r}")


def _with_names_in_use(questions: QuestionSet, n_names: int, seed: int) -> QuestionSet:
    """Questions with names that the training uses."""
    if not n_names:
        return questions
    names = NAMES[:n_names]
    drawn = [with_names(each, names, random.Random(f"{seed} {each.id}")) for each in questions]
    return replace(questions, questions=tuple(drawn), pool=())


def _of_seed(question: MultiDocQuestion, seed: int) -> MultiDocQuestion:
    """A held-out question with the seed in its id, since other seeds may hold it out, too."""
    return replace(question, id=f"{question.id}/seed-{seed}")


def _trained(
    arms: Sequence[Mask],
    questions: QuestionSet,
    start: LanguageModel | None,
    settings: TrainingSettings,
    seed: int,
    models: Path | None,
    progress: bool,
) -> list[LanguageModel]:
    """The models of one seed, one an arm; their folders are numbered as the arms."""
    return [
        train(
            questions,
            arm,
            model=start,
            settings=settings,
            seed=seed,
            out=None if models is None else models / f"arm-{number}.seed-{seed}",
            progress=progress,
        )
        for number, arm in enumerate(arms)
    ]


def _answers_table(
    arms: Sequence[Mask],
    trained: Mapping[str, LanguageModel],
    held: QuestionSet,
    orders: Sequence[str],
    template: str | Template,
    seed: int,
    progress: bool,
) -> Tables:
    """The tables of one seed, of models by what they were trained under."""
    questions = [_of_seed(each, seed) for each in held]
    frames = []
    for name, model in trained.items():
        for mask in arms:
            found = answers_under(model, questions, mask, orders, template, progress)
            control = BASE if name == BASE else "none" if mask.name == name else "other_mask"
            found = found.assign(mask=name, read_under=mask.name)
            frames.append(found.assign(control=control, seed=seed))
    columns = ["mask", "read_under", "control", "seed", "order", "query", "generated", "correct"]
    details = pd.DataFrame(
        {
            "query": [each.id for each in questions],
            "seed": seed,
            "question": [each.question for each in questions],
            "answer": [each.answer for each in questions],
            "documents": [" ".join(d.text for d in each.documents) for each in questions],
        }
    )
    return {"frame": pd.concat(frames, ignore_index=True)[columns], "details": details}


def answers_under(
    model: LanguageModel,
    questions: Sequence[MultiDocQuestion],
    mask: str | Mask = "causal",
    orders: Sequence[str] = ORDERS,
    template: str | Template = "plain",
    progress: bool = True,
) -> pd.DataFrame:
    """What a model answers to prompts as `train` shows them, greedily.

    Args:
        model: the model.
        questions: what is asked.
        mask: under which the prompts are read.
        orders: of the documents.
        template: that the model was trained with.
        progress: show a progress bar.

    Returns:
        Columns order, query (its id), generated (the answer in it), correct.
    """
    mask, asked = mask_of(mask), QuestionSet(tuple(questions))
    prompts = DocumentPrompts(model, asked, template)
    if not prompts.form.chat:
        prompts = replace(prompts, max_new_tokens=MAX_NEW_TOKENS)
    is_right = METRICS[prompts.form.metric or "exact_match"]
    rows: list[Mapping[str, Any]] = []
    starts = range(0, len(questions), QUESTIONS_AT_ONCE)
    for start in ProgressBar(starts, desc=f"ask under {mask.name}", disable=not progress):
        some = questions[start : start + QUESTIONS_AT_ONCE]
        ordered = [(order, each) for each in some for order in orders]
        versions = [
            Version(prompts.layout(prompts.fitted_question(each), order), mask)
            for order, each in ordered
        ]
        tokens = prompts.read(versions).outputs.tokens
        for (order, each), generated in zip(ordered, tokens, strict=True):
            text = prompts.answer(generated)
            right = is_right(text, each.names)
            rows.append({"order": order, "query": each.id, "generated": text, "correct": right})
    return pd.DataFrame(rows)
