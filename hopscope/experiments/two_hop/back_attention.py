"""Back attention: does it repair answers to let a low layer attend to a higher one's states?

Back-patching copies one state of a higher layer into a lower one. Yu et al. 2025 train what does it
in general: a small attention, on a frozen model, from a low layer to the states of a higher one, of
later tokens, too. Beside it stand modules of the same size and training that are not offered them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hopscope.engine.finite import check_states
from hopscope.engine.gradients import check_gradients
from hopscope.errors import UsageError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_numbered
from hopscope.experiments.arguments import Above, AtLeast, ListOf
from hopscope.experiments.two_hop.repairs import halves, repair_gains, repair_rates
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.prompting.query_prompts import QueryPrompts, question, with_first_tokens
from hopscope.prompting.tokenized import TokenizedPrompt, by_shape
from hopscope.queries.answers import normalise
from hopscope.queries.query_set import QuerySet
from hopscope.results.headline import Headline
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import provenance
from hopscope.results.wording import points, row_where, verdict, with_interval
from hopscope.training.back_attention import AlikePrompts, BackAttention, next_logits
from hopscope.training.fit import fit
from hopscope.training.settings import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AT_ONCE = 64
"""Prompts in a batch whose answers are read."""


class Arm(NamedTuple):
    """What a module may attend to.

    Attributes:
        higher: the states of the higher layer, or those of its own.
        later: those of later tokens, too.
        told: in words.
    """

    higher: bool
    later: bool
    told: str


ARMS: Mapping[str, Arm] = {
    "back": Arm(True, True, "back attention"),
    "higher": Arm(True, False, "the same without later tokens"),
    "later": Arm(False, True, "the same without the higher layer"),
    "own": Arm(False, False, "as many parameters without either"),
}


@dataclass(frozen=True, repr=False)
class BackAttending(Result):
    """What the answers are with a trained module of each arm.

    `frame` has one row a query and arm: `query, arm, before, hit, answer_logprob, said`: whether
    the likeliest next token tells the answer in the frozen model and with the module, the
    log-probability of such tokens (nats) with it, and the likeliest token. The arms, all of the
    same size and training:

    - `back`: the module attends to the higher layer's states of all tokens of the question.
    - `higher`: not to those of later tokens. `later`: to its own layer's states of all tokens.
    - `own`: to its own layer's states of no later token, as any attention does: the control.

    `details` has one row a query: prompt, bridge, answer, the frozen model's likeliest token, and
    the half that the query is in; it is scored by what was trained on the other half.
    """

    kind = "back_attention"
    rules = FIRST_TOKENS
    columns: ClassVar = {
        "query": "str",
        "arm": "str",
        "before": "bool",
        "hit": "bool",
        "answer_logprob": "float32",
        "said": "str",
    }

    def rates(self, seed: int = 0) -> pd.DataFrame:
        """What each arm repairs of the wrong answers, and breaks of the right ones.

        Args:
            seed: as every summary takes one; nothing is drawn here.

        Returns:
            Columns `arm, what, n, rate, low, high`: `repaired` and `broken`, with Wilson 95 %
            intervals.
        """
        return repair_rates(self.frame, "arm", seed)

    def net(self, seed: int = 0) -> pd.DataFrame:
        """How many more answers are right, query by query: over the frozen model, and over arms.

        Args:
            seed: as every summary takes one; nothing is drawn here.

        Returns:
            Columns `arm, base`, and those of `hopscope.statistics.paired`, with exact intervals;
            the base `never` is the frozen model.
        """
        there = [name for name in ARMS if name in set(self.frame["arm"])]
        pairs = [(name, "never") for name in there]
        if "back" in there:
            pairs += [("back", name) for name in there if name != "back"]
        return repair_gains(self.frame, "arm", pairs, seed)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"rates": self.rates(), "net": self.net()}

    def findings(self) -> list[str]:
        rates, net = self.rates(), self.net()
        n, sentences = self.n_queries, []
        for name in dict.fromkeys(self.frame["arm"]):
            gain = row_where(net, arm=name, base="never")
            assert gain is not None
            shares = [
                f"{verb} {with_interval(row['rate'], row['low'], row['high'])} of the {row['n']} "
                f"{which} answers"
                for what, verb, which in (
                    ("repaired", "repairs", "wrong"),
                    ("broken", "breaks", "right"),
                )
                if (row := row_where(rates, arm=name, what=what)) is not None
            ]
            told = ARMS[name].told
            sentences.append(
                f"{told[0].upper()}{told[1:]} {' and '.join(shares)} of {n} held-out queries: "
                f"{points(gain['difference'], gain['low'], gain['high'])}."
            )
        control = row_where(net, arm="back", base="own")
        if control is not None:
            difference = points(control["difference"], control["low"], control["high"])
            sentences.append(
                f"Over {ARMS['own'].told} it is {difference}: {verdict(control, ARMS['own'].told)}."
            )
        return sentences

    def headline(self) -> Headline | None:
        """How many more answers are right with back attention than with the control."""
        gain = row_where(self.net(), arm="back", base="own")
        if gain is None:
            return None
        sentence = (
            "queries that are right with a trained back attention: "
            f"{points(gain['difference'], gain['low'], gain['high'])} against {ARMS['own'].told}"
        )
        return Headline(f"{sentence}.", ARMS["own"].told, gain["n"], gain["p"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what each arm repairs and breaks."""
        from hopscope.experiments.two_hop import plots

        title = self.run.get("model", {}).get("name", "")
        return plots.repair_bars(self.rates(), "arm", plots.ARM_LABELS, ax, title)


@analysis(
    "back-attention",
    title="Back attention",
    question="Does a trained attention to a higher layer's states repair answers?",
    source="Back Attention, Yu et al. 2025",
    control="as many parameters, trained alike, that see neither a higher layer nor later tokens",
    usual_subset="both",
    order=18,
    keywords=("seed", "progress", "out"),
    estimated=False,
    accepts={
        "arms": ListOf(tuple(ARMS)),
        "source_layer": AtLeast(1, optional=True),
        "target_layer": AtLeast(0, optional=True),
        "rank": AtLeast(1),
        "steps": AtLeast(1),
        "batch_size": AtLeast(1),
        "learning_rate": Above(0),
    },
)
def back_attention(
    model: LanguageModel,
    queries: QuerySet,
    arms: Sequence[str] = ("back", "own"),
    source_layer: int | None = None,
    target_layer: int | None = None,
    rank: int = 16,
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    **run: Unpack[RunKeywords],
) -> BackAttending:
    """Train a small attention to a higher layer's states on a frozen model, beside controls.

    Each arm is trained on one half of the queries to make the tokens that begin the answer likely,
    and scored on the other half, and the other way round; the queries of one source entity are in
    the same half. What it reads and changes are the tokens of the question, not of the
    demonstrations before it. An answer is right if the likeliest next token tells it.

    Args:
        model: the model, which is not changed.
        queries: right and wrong ones, such as `graded.subset("both")`.
        arms: any of `back`, `higher` (no later tokens), `later` (its own layer), `own` (neither).
        source_layer: the block whose output is attended to; that three quarters up if None.
        target_layer: the block to whose output the module adds; that one quarter up if None.
        rank: width of the module's head.
        steps: of the training of each arm and half.
        batch_size: queries in a step.
        learning_rate: its peak.

    Raises:
        UsageError: for an unknown arm, or if the source layer is not above the target layer.
        QueryError: for fewer than four source entities.
        ModelError: if the model has no gradients.

    Example:
        >>> back_attention(world.model, world.queries("first_hop_ood")).net()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    check_gradients(model)
    source = 3 * model.n_layers // 4 if source_layer is None else source_layer
    target = model.n_layers // 4 if target_layer is None else target_layer
    if not 0 <= target < source < model.n_layers:
        raise UsageError(
            f"source_layer {source} must be above target_layer {target}, and both among the "
            f"{model.n_layers} of {model.name}, from 0"
        )
    prompts = QueryPrompts.of(model, queries, room=1)
    queries = with_first_tokens(model, queries, prompts.answer_tokens)
    settings = {
        "arms": arms,
        "source_layer": source,
        "target_layer": target,
        "rank": rank,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": options.seed,
    }
    record = provenance(model, queries, BackAttending.kind, settings, rules=BackAttending.rules)
    trainer = cache(lambda: _Trainer(model, queries, prompts, settings, options.progress))

    def compute(half: int) -> Tables:
        return trainer().tables(half)

    return run_numbered(BackAttending, 2, compute, record, options, unit="fold")


class _Group(NamedTuple):
    """Queries whose prompts are alike, by their places in the set."""

    places: list[int]
    prompts: AlikePrompts


class _Trainer:
    """Trains the modules of all arms on one half of the queries, and scores them on the other."""

    def __init__(
        self,
        model: LanguageModel,
        queries: QuerySet,
        prompts: QueryPrompts,
        settings: Mapping[str, Any],
        progress: bool,
    ) -> None:
        self.model, self.queries, self.settings = model, queries, settings
        self.progress = progress
        self.tokenized = [prompts.prompt(query) for query in queries]
        self.answers = [list(prompts.answer_tokens(query)) for query in queries]
        self.groups = [self._alike(prompts, places) for places in by_shape(self.tokenized)]
        self.clean, self.before, _ = self._read(range(len(queries)), None, ARMS["own"])
        entities = [normalise(query.labels[0]) for query in queries]
        self.half = halves(self.before, entities, settings["seed"])

    def _alike(self, prompts: QueryPrompts, places: list[int]) -> _Group:
        """Some prompts of one shape, with the states of the higher layer."""
        found = [self._own_tokens(prompts, self.tokenized[place]) for place in places]
        ids = torch.tensor([tokens for tokens, _ in found], device=self.model.device)
        prefix = prompts.store.get(self.tokenized[places[0]].shared)
        return _Group(places, AlikePrompts(prefix, ids, torch.stack([s for _, s in found])))

    def _own_tokens(self, prompts: QueryPrompts, prompt: TokenizedPrompt) -> tuple[Any, Tensor]:
        """A prompt's tokens behind what is shared, with the higher layer's states."""
        clean = prompts.clean(prompt)
        return prompt.ids[clean.first :], clean.resid_post[:, self.settings["source_layer"]]

    def tables(self, half: int) -> Tables:
        """Frame and details of the queries in one half, by what is trained on the other."""
        scored = np.flatnonzero(self.half == half).tolist()
        frames = []
        for name in self.settings["arms"]:
            module = self._trained(name, np.flatnonzero(self.half != half).tolist(), half)
            said, hit, logprob = self._read(scored, module, ARMS[name])
            frames.append(
                pd.DataFrame(
                    {
                        "query": [self.queries[place].id for place in scored],
                        "arm": name,
                        "before": self.before[scored],
                        "hit": hit[scored],
                        "answer_logprob": logprob[scored].astype(np.float32),
                        "said": [said[place] for place in scored],
                    }
                )
            )
        details = [
            {
                "query": self.queries[place].id,
                "prompt": question(self.tokenized[place]),
                "bridge": self.queries[place].label("e2"),
                "answer": self.queries[place].label("e3"),
                "clean_token": self.clean[place],
                "half": half,
            }
            for place in scored
        ]
        return {"frame": BackAttending.joined(frames), "details": pd.DataFrame(details)}

    def _trained(self, name: str, places: Sequence[int], half: int) -> BackAttention:
        """The module of an arm, trained on some of the queries."""
        arm, settings, model = ARMS[name], self.settings, self.model
        module = BackAttention(
            model.d_model, settings["rank"], later=arm.later, seed=settings["seed"]
        ).to(model.device)
        rows = self._rows(places)

        def loss_of(step: int) -> Tensor:
            draw = random.Random(f"{settings['seed']} {half} {step}")
            group = draw.choices(rows, [len(chosen) for _, chosen in rows])[0]
            chosen = draw.sample(group[1], min(settings["batch_size"], len(group[1])))
            logits = self._logits(group[0].prompts[chosen], module, arm)
            return -self._answer_logprobs(logits, [group[0].places[row] for row in chosen]).mean()

        schedule = Schedule(
            steps=settings["steps"],
            batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            warmup_steps=min(20, settings["steps"] // 4),
        )
        bar = f"train {name}"
        given = {"seed": settings["seed"], "description": bar, "progress": self.progress}
        fit(module, loss_of, schedule, **given)
        return module.eval()

    def _rows(self, places: Sequence[int]) -> list[tuple[_Group, list[int]]]:
        """The groups that have some of the queries, each with their rows in it."""
        wanted = set(places)
        found = [
            (group, [row for row, place in enumerate(group.places) if place in wanted])
            for group in self.groups
        ]
        return [(group, rows) for group, rows in found if rows]

    def _logits(self, prompts: AlikePrompts, module: BackAttention | None, arm: Arm) -> Tensor:
        layer = self.settings["target_layer"]
        return next_logits(self.model, prompts, module, layer, higher=arm.higher)

    def _answer_logprobs(self, logits: Tensor, places: Sequence[int]) -> Tensor:
        """The log-probability of the tokens that begin each answer, of all of them together."""
        logprobs = logits.float().log_softmax(dim=-1)
        each = [
            row[self.answers[at]].logsumexp(dim=0) for row, at in zip(logprobs, places, strict=True)
        ]
        return torch.stack(each)

    @torch.no_grad()
    def _read(
        self, places: Sequence[int], module: BackAttention | None, arm: Arm
    ) -> tuple[dict[int, str], np.ndarray, np.ndarray]:
        """What is said, whether it is right, and the answer's log-probability, by place."""
        said: dict[int, str] = {}
        hit, logprob = np.zeros(len(self.queries), dtype=bool), np.zeros(len(self.queries))
        for group, rows in self._rows(places):
            for start in range(0, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                at = [group.places[row] for row in some]
                logits = self._logits(group.prompts[some], module, arm)
                check_states(
                    self.model, logits, [self.tokenized[each].ids for each in at], "logits"
                )
                logprob[at] = self._answer_logprobs(logits, at).cpu().numpy()
                for place, token in zip(at, logits.argmax(dim=-1).tolist(), strict=True):
                    said[place] = self.model.decode([token])
                    hit[place] = token in self.answers[place]
        return said, hit, logprob
