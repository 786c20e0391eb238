"""Haystacks: whether distractors that a retriever found mislead more than as many random tokens.

After HaystackCraft ("Haystack Engineering", 2025), with what takes the model apart: the attention
to distractors by their rank, and what blocking the attention to the nearest one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hopscope.documents.corpus import Corpus
from hopscope.documents.haystack import Budget, HaystackMaker, haystack_makers
from hopscope.documents.layout import Label, Layout
from hopscope.documents.orders import Order, arrange, order_name
from hopscope.documents.question_set import MultiDocQuestion, QuestionSet
from hopscope.documents.retrieval import RETRIEVERS, Ranking, Retriever, retriever_of
from hopscope.documents.templates import Template
from hopscope.engine.read_out import Version
from hopscope.errors import QueryError, UsageError, as_list
from hopscope.experiments.analysis import (
    WITHOUT_MEMORY,
    RunKeywords,
    RunOptions,
    analysis,
    limited,
    run_in_parts,
)
from hopscope.experiments.arguments import AtLeast, InstanceOf, OneOf, OneTemplate, Orders
from hopscope.experiments.documents.attention import read_masses
from hopscope.experiments.randomness import generator_for
from hopscope.masks.named import document_block, knock_out, mask_of
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.token_model import FIRST_TOKENS, TokenModel
from hopscope.prompting.document_prompts import (
    METRICS,
    DocumentModel,
    DocumentPrompts,
    FittedQuestion,
    question_details,
    scored_by,
    scores,
)
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import (
    row_where,
    rows_where,
    value_with_interval,
    verdict,
    with_interval,
)
from hopscope.statistics import holm, intervals, paired, paired_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_PART = 2
GOLD = "gold alone"
"""What stands for a retriever where the prompt has the gold documents only."""
ANY = "any"
"""The order of a prompt whose mask and position ids know none."""
BLOCK = "document_block"
ALIGNED = "forward_0"
"""The order in which the gold documents of all haystacks stand at one place: at the end."""
DEFAULT_ORDERS = ("retrieved", ALIGNED, "shuffle_0")
CONDITION = ["retriever", "order", "mask"]
CUTS = ("hardest", "other")
LOGPROB = "answer_logprob"
MEASURES = (*METRICS, LOGPROB)
EFFECTS = ("answer_change", "changed")
DEFAULT_RETRIEVERS = ("bm25", "ppr", "random")
"""Without `dense`, which reads the whole corpus with the model and takes longer than all else."""
STUDIED_SET = "world-docs-shared"


@dataclass(frozen=True)
class Retrievers:
    """Retrievers by name, as objects or as functions, each once.

    Attributes:
        known: the names.
    """

    known: Sequence[str] = RETRIEVERS

    def checked(self, name: str, value: Any, model: TokenModel | None) -> list[Any]:
        """See `hopscope.experiments.arguments.Constraint`."""
        given = [value] if callable(value) or isinstance(value, Retriever) else as_list(value)
        if not given:
            raise UsageError(f"give a list of retrievers with any of {', '.join(self.known)}")
        for each in given:
            if each != "dense":  # whether there is a model is told later
                retriever_of(each)
        return list(dict.fromkeys(given))


@dataclass(frozen=True, repr=False)
class Haystacks(Result):
    """What a model answers, and where it looks, when distractors are found by several retrievers.

    `details` has one row a question, `retriever`, `order`, `mask` and `cut`: what was answered, its
    scores, `answer_logprob` (nats) of the answer's first token, `prompt_tokens` and
    `distractor_tokens`. The retriever `gold alone` has no distractor. The mask `document_block`
    stands with all documents at the same position ids and without numbers: it knows no order. `cut`
    is `none`; `hardest`, without the attention from the question to the nearest distractor; or
    `other`, the same of another one, the next in length.

    `frame` has one row more for each document of such a prompt: its `rank` among the distractors
    from 1, or 0 for a gold one; `hop`, its number in the chain, or 0; `slot`, its displayed place;
    `tokens`; `role` (`gold`, `hardest`, `other`, `rest`); and `ic`, the attention of the answer's
    tokens to it, heads averaged and blocks summed.
    """

    kind = "haystack"
    rules = FIRST_TOKENS
    columns: ClassVar = {
        **dict.fromkeys(("query", *CONDITION, "cut"), "str"),
        **dict.fromkeys(("document", "rank", "hop", "slot", "tokens"), "int64"),
        "role": "str",
        "ic": "float32",
    }

    def accuracy(self, measure: str | None = None, seed: int = 0) -> pd.DataFrame:
        """The mean of a measure for each retriever, order and mask.

        Args:
            measure: `contained`, `matched`, `exact_match`, `f1` (the largest over the aliases),
                `paper`, or `answer_logprob`; if None what suits the run's template.
            seed: of the bootstrap.

        Returns:
            Columns `retriever, order, mask, n, accuracy, low, high, tokens`: Wilson intervals of
            shares, bootstrap intervals of other numbers; `tokens` is the mean length of a prompt.
        """
        told, measure = self._answers(measure)
        table = intervals(told, CONDITION, measure, "accuracy", seed)
        tokens = told.groupby(CONDITION, sort=False)["prompt_tokens"].mean().rename("tokens")
        return table.merge(tokens.reset_index(), on=CONDITION)

    def compare(
        self, base: str | None = None, measure: str | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """Each retriever, and gold documents alone, against another on the same questions.

        Args:
            base: the retriever that the others are compared with; `random` if None, or the first.
            measure: as for `accuracy`.
            seed: of the bootstrap.

        Returns:
            Columns `retriever, order, mask, base, n, difference, low, high, better, worse, p,
            p_holm`: `p` of the exact sign test (McNemar's for shares), and corrected for the rows
            of the table.

        Raises:
            UsageError: if there is no such retriever.
        """
        told, measure = self._answers(measure)
        base = self.in_run("retriever", base or self._usual_base, told)
        alone = told[told["retriever"] == GOLD].set_index("query")
        found = told[told["retriever"] != GOLD]
        rows: list[dict[str, Any]] = []
        for (order, mask), group in found.groupby(CONDITION[1:], sort=False):
            wide = group.pivot(index="query", columns="retriever", values=measure)
            if (alone["mask"] == mask).all():
                wide[GOLD] = alone[measure]
            for name in wide.columns.drop(base, errors="ignore") if base in wide else ():
                both = wide[[base, name]].dropna()
                gain = paired(both[base].to_numpy(), both[name].to_numpy(), seed)
                keys = {"retriever": name, "order": order, "mask": mask, "base": base}
                rows.append({**keys, **gain})
        columns = [*CONDITION, "base", "n", "difference", "low", "high", "better", "worse", "p"]
        table = pd.DataFrame(rows, columns=columns)
        return table.assign(p_holm=holm(table["p"].to_numpy(dtype=float)))

    def attention_by_rank(self, seed: int = 0) -> pd.DataFrame:
        """How much the answer attends to a distractor, by its rank.

        Returns:
            Columns `retriever, order, mask, rank, n, ic, low, high`; rank 0 is the mean of the gold
            documents. Where the order is `retrieved`, rank and place are one: only in shuffled
            orders is the rank all that differs.
        """
        means = self._whole.groupby(["query", *CONDITION, "rank"], sort=False)["ic"].mean()
        table = means.reset_index().sort_values("rank", kind="stable")
        return intervals(table, [*CONDITION, "rank"], "ic", "ic", seed)

    def attention_taken(self, seed: int = 0) -> pd.DataFrame:
        """How much more the answer attends to the nearest distractor than to another, paired.

        Returns:
            Columns `retriever, order, mask, n, difference, low, high`: in units of IC; the other
            distractor is the next in length.
        """
        rows = self._whole[self._whole["role"].isin(CUTS)]
        wide = rows.pivot(index=["query", *CONDITION], columns="role", values="ic")
        wide = wide.reindex(columns=list(CUTS)).reset_index()
        return paired_intervals(wide, CONDITION, "other", "hardest", seed)

    def cuts(self, measure: str = "answer_change", seed: int = 0) -> pd.DataFrame:
        """What it does to block the question's attention to one distractor.

        Args:
            measure: `answer_change`, of the log-probability of the answer's first token, nats; or
                `changed`, whether another answer is given.
            seed: of the bootstrap.

        Returns:
            Columns `retriever, order, cut, n, effect, low, high`.
        """
        by = ["retriever", "order", "cut"]
        return intervals(self._effects(measure), by, measure, "effect", seed)

    def cut_gains(self, measure: str = "answer_change", seed: int = 0) -> pd.DataFrame:
        """How much more it does to block the nearest distractor than another one, paired.

        Args:
            measure: as for `cuts`.
            seed: of the bootstrap.

        Returns:
            Columns `retriever, order, n, difference, low, high`.
        """
        keys = ["query", "retriever", "order"]
        wide = self._effects(measure).pivot(index=keys, columns="cut", values=measure)
        wide = wide.reindex(columns=list(CUTS)).reset_index()
        return paired_intervals(wide, keys[1:], "other", "hardest", seed)

    def gold_places(self, seed: int = 0) -> pd.DataFrame:
        """Where each retriever puts the gold documents of each hop.

        Returns:
            Columns `retriever, hop, n, place, low, high`: 0 is the first place, 1 the last.
        """
        there = self._whole[(self._whole["order"] == "retrieved") & (self._whole["hop"] > 0)]
        sizes = self._whole.groupby(["query", *CONDITION])["document"].transform("size")
        table = there.assign(place=there["slot"] / (sizes[there.index] - 1).clip(lower=1))
        return intervals(table.sort_values("hop"), ["retriever", "hop"], "place", "place", seed)

    @property
    def _whole(self) -> pd.DataFrame:
        """The documents of prompts of which nothing is cut."""
        return self.frame[self.frame["cut"] == "none"]

    @property
    def _usual_base(self) -> str | None:
        return "random" if (self.details["retriever"] == "random").any() else None

    def _answers(self, measure: str | None) -> tuple[pd.DataFrame, str]:
        """The details of prompts of which nothing is cut, and the name of the measure."""
        if measure == LOGPROB:
            told = self.details
        else:
            told, measure = scored_by(self, measure, self.details, MEASURES)
        return told[told["cut"] == "none"], measure

    def _effects(self, measure: str) -> pd.DataFrame:
        """What each cut changes: columns `query, retriever, order, cut` and `EFFECTS`."""
        OneOf(EFFECTS).checked("measure", measure, None)
        keys = ["query", "retriever", "order"]
        said = [*keys, "mask", "cut", "generation", LOGPROB]
        cut = self.details.loc[self.details["cut"] != "none", said]
        whole = self.details.loc[self.details["cut"] == "none", said].drop(columns="cut")
        both = cut.merge(whole, on=[*keys, "mask"], suffixes=("", "_whole"))
        return both.assign(
            answer_change=both[LOGPROB] - both[f"{LOGPROB}_whole"],
            changed=both["generation"] != both["generation_whole"],
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        return {
            "accuracy": self.accuracy(),
            "compare": self.compare(),
            "compare_logprob": self.compare(measure=LOGPROB),
            "gold_places": self.gold_places(),
            "attention_by_rank": self.attention_by_rank(),
            "attention_taken": self.attention_taken(),
            "cuts": self.cuts(),
            "cut_gains": self.cut_gains(),
        }

    def printed(self, seed: int = 0, measure: str | None = None) -> dict[str, pd.DataFrame]:
        """Answers by retriever, each against random distractors, and what the nearest one does.

        Args:
            seed: of the bootstrap.
            measure: `contained`, `matched`, `exact_match`, `f1`, `paper` or `answer_logprob`; if
                None what suits the template.
        """
        return {
            "rows": self.accuracy(measure, seed),
            "compare": self.compare(None, measure, seed),
            "attention_taken": self.attention_taken(seed),
            "cut_gains": self.cut_gains(seed=seed),
        }

    def findings(self) -> list[str]:
        accuracy, first = self.accuracy(), self._usual_order
        tokens = self.run["settings"]["tokens"]
        parts = [
            f"{_share(row)} among those of {row['retriever']}"
            for row in rows_where(accuracy, order=first)
        ]
        sentences = [
            f"with the gold documents alone it answers {_share(row)}, beside {tokens} tokens of "
            f"distractors in the order {first} {', '.join(parts)}."
            for row in rows_where(accuracy, retriever=GOLD)
        ]
        for row in rows_where(self.compare(measure=LOGPROB), order=first):
            if row["retriever"] != GOLD:
                sentences.append(
                    f"against {row['base']} distractors, those of {row['retriever']} change the "
                    f"log-probability of the answer by {_difference(row)} nats: "
                    f"{verdict(row, row['base'] + ' distractors')}."
                )
        shuffled = next((name for name in self._orders if name.startswith("shuffle")), first)
        gains = self.cut_gains()
        for row in rows_where(self.attention_taken(), order=shuffled):
            sentence = (
                f"in the order {shuffled}, the answer attends to the nearest distractor of "
                f"{row['retriever']} by {_difference(row)} IC more than to another of its length"
            )
            gain = row_where(gains, retriever=row["retriever"], order=shuffled)
            if gain is not None:
                sentence += (
                    "; blocking it changes the log-probability of the answer by "
                    f"{_difference(gain)} nats more than blocking the other: "
                    f"{verdict(gain, 'the other')}"
                )
            sentences.append(f"{sentence}.")
        return sentences

    @property
    def _orders(self) -> list[str]:
        return list(self.run["settings"]["orders"])

    @property
    def _usual_order(self) -> str:
        """The order in which retrievers are compared: one in which gold documents stand alike."""
        return ALIGNED if ALIGNED in self._orders else self._orders[0]

    def plot(self, ax: Axes | None = None, measure: str | None = None) -> Axes:
        """Draw the answers by order, a colour for each retriever; gold documents alone in grey."""
        from hopscope.experiments.documents import plots

        return plots.retriever_points(self.accuracy(measure), ax, measure=measure or "")


def _share(row: Mapping[str, Any]) -> str:
    return with_interval(row["accuracy"], row["low"], row["high"])


def _difference(row: Mapping[str, Any]) -> str:
    return value_with_interval(row["difference"], row["low"], row["high"], "+")


@analysis(
    "haystack",
    title="Haystacks",
    question="Do distractors that a retriever found mislead more than as many random tokens?",
    source="Haystack Engineering, 2025",
    control="as many tokens of random distractors, gold documents alone, and a mask that knows no "
    "order",
    asks="documents",
    usual_questions=STUDIED_SET,
    subsets=("documents",),
    order=140,
    keywords=WITHOUT_MEMORY,
    accepts={
        "retrievers": Retrievers(),
        "orders": Orders(),
        "tokens": AtLeast(1),
        "measure": OneOf(MEASURES, optional=True),
        "corpus": InstanceOf(Corpus | str | Path, optional=True),
        "template": OneTemplate(),
        "label": OneOf(get_args(Label)),
        "max_new_tokens": AtLeast(1, optional=True),
    },
    in_study=lambda _: {"tokens": 96},
    chosen=lambda questions, scale: limited(questions, scale.most, scale.seed),
)
def compare_retrievers(
    model: DocumentModel,
    questions: QuestionSet,
    retrievers: Sequence[str | Retriever | Ranking] = DEFAULT_RETRIEVERS,
    orders: Sequence[Order] = DEFAULT_ORDERS,
    *,
    tokens: int = 256,
    corpus: Corpus | str | Path | None = None,
    template: str | Template | None = None,
    label: Label = "position",
    max_new_tokens: int | None = None,
    **run: Unpack[RunKeywords],
) -> Haystacks:
    """Ask questions among distractors of several retrievers, at equal numbers of tokens.

    All prompts of a question are read together, with the same demonstrations: the haystack of each
    retriever in several orders; the same without the attention from the question to the nearest
    distractor, or to another; under a mask that knows no order; and the gold documents alone.

    Args:
        model: a decoder-only model, or a T5-like encoder-decoder, whose attention is blocked in the
            encoder and which is not asked under the mask that knows no order.
        questions: the questions.
        retrievers: `bm25`, `dense` (mean states of the model), `ppr`, `random`; or in Python what
            `hs.haystack` takes.
        orders: names, such as `retrieved`, `retrieved_reversed` and `shuffle_0`, in which a
            retriever also moves the gold documents, or `forward_0`, where they come last for all.
        tokens: tokens of all distractors of a question.
        corpus: where distractors are looked for: a file or hub id; the documents of the set if
            None.
        template: `answer_only`, `cot`, `plain` or `chat`, or a `Template`; what suits the questions
            if None.
        label: the number in front of a document: its displayed `position`, `fixed`, or `none`.
        max_new_tokens: tokens of an answer; the template's own number if None.

    Returns:
        A `Haystacks`: `accuracy()`, `compare()`, `attention_by_rank()`, `attention_taken()`,
        `cuts()`, `cut_gains()`.

    Raises:
        QueryError: as `hs.haystack`, and for a haystack that does not fit the context.
        UsageError: for a bad argument.
        ModelError: if the family's attention cannot be read.

    Example:
        >>> questions = load_questions("world-docs-shared").sample(40)       # doctest: +SKIP
        >>> compare_retrievers(model, questions, tokens=128).compare()       # doctest: +SKIP
    """
    options = RunOptions(**run)
    bare = [each.without(each.distractors) for each in questions]  # nothing of these is dropped
    prompts = DocumentPrompts.of(
        model,
        replace(questions, questions=tuple(bare)),
        template,
        label,
        max_new_tokens,
        options.seed,
    )
    budget = Budget(None, tokens, model, prompts.form)
    makers = haystack_makers(questions, retrievers, budget, corpus=corpus, seed=options.seed)
    for question, maker, order in product(questions, makers, orders):
        arrange(maker.of(question), order, options.seed)  # a bad one is told before anything runs
    settings = {
        **prompts.settings,
        "retrievers": {each.retriever.name: repr(each.retriever) for each in makers},
        "orders": [order_name(order) for order in orders],
        "tokens": tokens,
        "corpus": {"name": makers[0].corpus.name, "sha256": makers[0].corpus.fingerprint},
    }
    asker = _Asker(prompts, makers, orders)
    return run_in_parts(
        Haystacks, model, questions, settings, asker.tables, options, per_part=PER_PART
    )


@dataclass(frozen=True)
class _Prompt:
    """One prompt over a haystack.

    Attributes:
        names: its retriever, order, mask and cut.
        roles: what the documents are, by index.
        version: its tokens and mask.
    """

    names: Mapping[str, str]
    roles: Mapping[int, str]
    version: Version

    @property
    def layout(self) -> Layout:
        return self.version.layout


@dataclass(frozen=True)
class _Asker:
    """Asks some questions among the distractors of all retrievers."""

    prompts: DocumentPrompts
    makers: Sequence[HaystackMaker]
    orders: Sequence[Order]

    @cached_property
    def unnumbered(self) -> DocumentPrompts:
        """The same prompts without the numbers of documents, which would tell their order."""
        return replace(self.prompts, label="none")

    def tables(self, questions: QuestionSet) -> Tables:
        """Frame and details of some questions."""
        return Haystacks.gathered(self._asked(question) for question in questions)

    def _asked(self, question: MultiDocQuestion) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Frame and details of one question."""
        prompts = self._prompts_of(question)
        answer_tokens = self.prompts.answer_tokens(prompts[-1].layout)
        versions = [each.version for each in prompts]
        readings = self.prompts.read(versions, attention=True, answer_tokens=answer_tokens)
        assert readings.masses is not None
        frames, details = [], []
        for index, each in enumerate(prompts):
            tokens = readings.outputs.tokens[index]
            mass, _ = read_masses(self.prompts, readings.masses[index], tokens, "answer")
            names = {"query": question.id, **each.names}
            frames.append(_attended(each, mass).assign(**names))
            logprob = float(readings.outputs.logprob[index])
            details.append({**self._detail(each, tokens), **names, LOGPROB: logprob})
        return Haystacks.joined(frames), details

    def _detail(self, prompt: _Prompt, tokens: Sequence[int]) -> dict[str, Any]:
        text, question = self.prompts.answer(tokens), prompt.layout.question
        return {
            **question_details(FittedQuestion(question, (), ())),
            "prompt_tokens": len(prompt.layout),
            "distractor_tokens": len(prompt.layout.tokens("distractors")),
            "generation": text,
            **scores(text, question.names),
        }

    def _prompts_of(self, question: MultiDocQuestion) -> list[_Prompt]:
        """All prompts of a question; the last one has the gold documents alone."""
        haystacks = {maker.retriever.name: maker.of(question) for maker in self.makers}
        shown = self.prompts.questions.demonstrations(_together(question, haystacks.values()))
        prompts = [
            prompt
            for name, each in haystacks.items()
            for prompt in self._over(FittedQuestion(each, (), shown), name)
        ]
        alone = FittedQuestion(question.without(question.distractors), (), shown)
        order = "gold" if question.ordered else "original"
        roles = dict.fromkeys(range(len(question.gold)), "gold")
        return [*prompts, self._prompt(alone, roles, GOLD, order)]

    def _over(self, fitted: FittedQuestion, retriever: str) -> Iterator[_Prompt]:
        """The prompts over the haystack of one retriever."""
        roles = self._roles(fitted.question, retriever)
        cuts = ("none", *(role for role in CUTS if role in roles.values()))
        for order, cut in product(self.orders, cuts):
            yield self._prompt(fitted, roles, retriever, order, cut)
        if not isinstance(self.prompts.model, EncoderDecoder):  # its distances tell the order
            layout = self.unnumbered.layout(fitted, "original").with_shared_positions()
            names = {"retriever": retriever, "order": ANY, "mask": BLOCK, "cut": "none"}
            yield _Prompt(names, roles, Version(layout, document_block()))

    def _prompt(
        self,
        fitted: FittedQuestion,
        roles: Mapping[int, str],
        retriever: str,
        order: Order,
        cut: str = "none",
    ) -> _Prompt:
        """A prompt under the model's usual mask.

        Raises:
            QueryError: if it does not fit: nothing may be dropped from a haystack.
        """
        layout = self.prompts.layout(fitted, order)
        limit, room = self.prompts.model.max_context, self.prompts.room
        if limit is not None and len(layout) + room > limit:
            raise QueryError(
                f"question {fitted.question.id!r}: its haystack makes a prompt of {len(layout)} "
                f"tokens, and {room} are to be generated, but {self.prompts.model.name} reads "
                f"{limit}; take fewer tokens="
            )
        usual = mask = mask_of(self.prompts.reader.usual_mask)
        for index in (index for index, role in roles.items() if role == cut):
            mask = usual & knock_out("question", f"document {index}")
        named = {"order": order_name(order), "mask": usual.name, "cut": cut}
        return _Prompt({"retriever": retriever, **named}, roles, Version(layout, mask))

    def _roles(self, question: MultiDocQuestion, retriever: str) -> dict[int, str]:
        """What each document of a haystack is: gold, the nearest distractor, its control, a rest.

        The control is, of the other distractors, the one whose text is next in length.
        """
        roles = dict.fromkeys(range(len(question.documents)), "rest")
        roles |= dict.fromkeys(question.gold, "gold")
        if question.distractors:
            hardest, *others = question.distractors
            roles[hardest] = "hardest"
            drawn = generator_for(self.prompts.seed, question.id, retriever)
            mixed = [others[each] for each in torch.randperm(len(others), generator=drawn).tolist()]
            wanted = len(question.documents[hardest].text)
            nearest = sorted(mixed, key=lambda i: abs(len(question.documents[i].text) - wanted))
            roles |= dict.fromkeys(nearest[:1], "other")
        return roles


def _together(
    question: MultiDocQuestion, haystacks: Iterable[MultiDocQuestion]
) -> MultiDocQuestion:
    """A question over all documents of its haystacks, so that all share their demonstrations."""
    gold = [question.documents[index] for index in question.gold]
    documents = list(dict.fromkeys([*gold, *(d for each in haystacks for d in each.documents)]))
    hops = [
        replace(hop, document=documents.index(question.documents[hop.document]))
        for hop in question.hops
    ]
    numbers = tuple(range(len(documents)))
    return replace(question, documents=tuple(documents), hops=tuple(hops), numbers=numbers)


def _attended(prompt: _Prompt, mass: Tensor) -> pd.DataFrame:
    """The attention to each document of a prompt.

    Args:
        prompt: the prompt.
        mass: shape (layer, head, segment).
    """
    layout, question = prompt.layout, prompt.layout.question
    here = mass[:, :, 1 : 1 + len(layout.order)].mean(dim=1).sum(dim=0)
    ranks = {each: rank for rank, each in enumerate(question.distractors, start=1)}
    hops = {each: hop for hop, each in enumerate(question.gold, start=1)}
    return pd.DataFrame(
        {
            "document": layout.order,
            "rank": [ranks.get(each, 0) for each in layout.order],
            "hop": [hops.get(each, 0) for each in layout.order],
            "slot": range(len(layout.order)),
            "tokens": [len(layout.document(each)) for each in layout.order],
            "role": [prompt.roles[each] for each in layout.order],
            "ic": here.numpy().astype(np.float32),
        }
    )
