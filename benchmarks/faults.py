"""Kills and interrupts at random moments: nothing is lost, nothing is left, no byte is another.

    python -m benchmarks.faults kills --times 100
    python -m benchmarks.faults workers --times 100
    python -m benchmarks.faults interrupts --times 1000

Kills are SIGKILL, to commands that are forked from this process, on tiny models: a study,
back-patching, orders of documents and the training of a world, each run on by the next child until
it is done, and then compared with a run that was never stopped; of back-patching and orders two
workers share a folder, too, in turn. Of `workers`, two at once compute the parts of one run of
back-patching (`hopscope runs work`), one of them is killed, and another takes its place, until the
run is done. Interrupts are SIGINT, to analyses in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import hopscope as hs
from hopscope import cli
from hopscope.errors import ResultError
from hopscope.experiments.catalogue import import_all
from hopscope.study import presets
from hopscope.worlds import catalogue

MODEL = ("--model", "tiny-random-llama", "--device", "cpu")
N = 12
"""Queries of a run."""
COMMANDS: Mapping[str, Sequence[str]] = {
    "study": ("study", *MODEL, "--need", "2", "--queries", "{queries}"),
    "back-patch": (
        *("back-patch", *MODEL, "--subset", "all", "--queries", "{queries}"),
        *("--max-new-tokens", "4"),
    ),
    "permute": (
        "permute",
        *MODEL,
        "--limit",
        str(N),
        "--distractors",
        "1",
        "--max-new-tokens",
        "3",
    ),
    "worlds train": ("worlds", "train", "faults"),
}
SHARED = ("back-patch", "permute")
"""Those that two workers share, each with a shard of its own."""
OF_PARTS = ("*.parquet", "machine-*")
"""What a run folder has of its parts."""
TIMES = ("time", "seconds")
"""What a record says of when a run was, by name."""


def forked(run: Callable[[], object]) -> int:
    """Start a child that runs something silently; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        run()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def command(*arguments: str) -> None:
    """Run the command with these arguments."""
    torch.set_num_threads(1)
    sys.argv = ["hopscope", *arguments]
    cli.main()


def contents(folder: Path) -> dict[str, object]:
    """Every file of a folder that stays there; of a record all but when it was made."""
    found: dict[str, object] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = str(path.relative_to(folder))
        with suppress(FileNotFoundError):  # another worker is at work
            content: object = path.read_bytes()
            if path.name in ("run.json", "world.json"):
                record = json.loads(path.read_text("utf-8"))
                content = {key: each for key, each in record.items() if key not in TIMES}
            found[name] = content
    return found


@dataclass
class Tally:
    """What was counted of one command.

    Attributes:
        kills: how often it was killed.
        runs: how many runs were finished.
        lost: finished parts that a later look did not find, or found with other bytes.
        differing: files of finished runs that are not those of the run that was never stopped.
        left: files that lie beside these.
        failed: calls that ended by themselves with an error.
    """

    kills: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def arguments_of(name: str, place: Path, queries: Path, shard: str | None = None) -> list[str]:
    """The arguments of a command that writes into a place."""
    given = [each.format(queries=queries) for each in COMMANDS[name]]
    return [*given, "--out", str(place), *(["--shard", shard] if shard else [])]


def kill_at_random(
    name: str,
    shards: Sequence[str | None],
    times: int,
    folder: Path,
    draw: random.Random,
    most_seconds: float,
) -> Tally:
    """Kill one command, or several workers of it in turn, until there were so many kills.

    When the time is over, the run that goes on is finished without a kill.
    """
    queries, whole_place = folder / "queries.csv", folder / f"{name}.whole"
    started = time.perf_counter()
    assert ended(forked(partial(command, *arguments_of(name, whole_place, queries)))) == 0, name
    seconds, whole, tally = time.perf_counter() - started, contents(whole_place), Tally()
    until = time.perf_counter() + most_seconds
    while tally.kills < times and time.perf_counter() < until:
        place = folder / f"{name}.run"
        waiting: list[str | None] = list(shards)
        kept: dict[str, object] = {}
        while waiting:
            shard = waiting.pop(0)
            arguments = arguments_of(name, place, queries, shard)
            child = forked(partial(command, *arguments))
            if tally.kills < times and time.perf_counter() < until:
                time.sleep(draw.uniform(0, seconds / len(shards)))
                os.kill(child, signal.SIGKILL)
            code = ended(child)
            if code == -signal.SIGKILL:
                tally.kills += 1
                waiting.append(shard)
            elif code:
                tally.failed.append(f"{' '.join(arguments)}: {code}")
            there = finished(place, whole)
            tally.lost += [each for each in kept if there.get(each) != kept[each]]
            kept = there
        compare(contents(place), whole, folder, tally)
        shutil.rmtree(place)
        for each in folder.glob(f"{name}.run*"):
            tally.left.append(each.name)
            shutil.rmtree(each, ignore_errors=True)
    return tally


def compare(
    found: Mapping[str, object], whole: Mapping[str, object], folder: Path, tally: Tally
) -> None:
    """Count what a finished run has that the run without a stop has not, and the other way."""
    tally.runs += 1
    tally.differing += [each for each in whole if found.get(each) != whole[each]]
    tally.left += [each for each in found if each not in whole]
    tally.left += [each.name for each in folder.iterdir() if each.name.startswith(".")]


def kill_one_of_two(times: int, folder: Path, draw: random.Random, most_seconds: float) -> Tally:
    """Kill one of two workers of a run at random moments, until there were so many kills.

    Each that is killed is followed by another. When the time is over, the run that goes on is
    finished without a kill.
    """
    name, whole_place, place = "back-patch", folder / "whole", folder / "run"
    arguments = arguments_of(name, whole_place, folder / "queries.csv")
    assert ended(forked(partial(command, *arguments))) == 0
    whole, tally = contents(whole_place), Tally()
    work = partial(command, "runs", "work", str(place), "--device", "cpu", "--threads", "1")
    begun = partial(shutil.copytree, whole_place, place, ignore=shutil.ignore_patterns(*OF_PARTS))
    begun()
    started = time.perf_counter()
    assert ended(forked(work)) == 0
    seconds = time.perf_counter() - started
    shutil.rmtree(place)
    until = time.perf_counter() + most_seconds
    while tally.kills < times and time.perf_counter() < until:
        begun()
        workers, kept = [forked(work), forked(work)], dict[str, object]()
        while workers:
            if tally.kills < times and time.perf_counter() < until:
                time.sleep(draw.uniform(0, seconds))
                workers.insert(0, workers.pop(draw.randrange(len(workers))))
                os.kill(workers[0], signal.SIGKILL)
            code = ended(workers.pop(0))
            if code == -signal.SIGKILL:
                tally.kills += 1
                workers.append(forked(work))
            elif code:
                tally.failed.append(f"{work.args}: {code}")
            there = finished(place, whole)
            tally.lost += [each for each in kept if there.get(each) != kept[each]]
            kept = there
        compare(contents(place), whole, folder, tally)
        shutil.rmtree(place)
    return tally


def ended(child: int) -> int:
    """Wait for a child; its code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finished(place: Path, whole: Mapping[str, object]) -> dict[str, object]:
    """The finished parts, results and pages that are there; the others are being written."""
    if not place.exists():
        return {}
    there = contents(place)
    return {each: there[each] for each in there if there[each] == whole.get(each)}


def answered() -> hs.QuerySet:
    """Queries whose names are what the random model says, so that half are composed right."""
    torch.set_num_threads(1)
    model = hs.load_model(MODEL[1], device="cpu")
    queries = hs.load_queries("world", few_shot=0).sample(N)
    frame = hs.grade(model, queries, progress=False).frame
    said = {(row.query, row.form): str(row.generation).strip() for row in frame.itertuples()}
    return hs.QuerySet(
        tuple(
            replace(
                query,
                e2_aliases=(said[query.id, "first_hop"],),
                e3_aliases=(said[query.id, "two_hop" if number % 2 else "second_hop"],),
            )
            for number, query in enumerate(queries)
        ),
        "answered",
    )


def kills(times: int, seed: int, seconds: float) -> None:
    """Kill every command so often in all, and print what was counted."""
    folder, draw = Path(tempfile.mkdtemp(prefix="faults-")), random.Random(seed)
    answered().to_csv(folder / "queries.csv")
    recipe = catalogue.WORLDS["two-hop-looped"]
    schedule = replace(recipe.schedule, steps=60, warmup_steps=5, batch_size=16, checkpoint_every=5)
    worlds = {**catalogue.WORLDS, "faults": replace(recipe, schedule=schedule)}
    catalogue.WORLDS = worlds
    small = presets.Preset(limit=4, most=2, layer_step=2, questions=2, shuffles=2, probed=4)
    presets.PRESETS["quick"] = small
    import_all()
    jobs: list[tuple[str, tuple[str | None, ...]]] = [(name, (None,)) for name in COMMANDS]
    jobs += [(name, ("1/2", "2/2")) for name in SHARED]
    for index, (name, shards) in enumerate(jobs):
        share = times // len(jobs) + (index < times % len(jobs))
        tally = kill_at_random(name, shards, share, folder, draw, seconds / len(jobs))
        print(f"{name}, {len(shards)} worker(s): {tally}", flush=True)
    shutil.rmtree(folder)


def workers(times: int, seed: int, seconds: float) -> None:
    """Kill one of two workers so often, and print what was counted."""
    folder, draw = Path(tempfile.mkdtemp(prefix="faults-")), random.Random(seed)
    answered().to_csv(folder / "queries.csv")
    import_all()
    print(f"two workers at once: {kill_one_of_two(times, folder, draw, seconds)}", flush=True)
    shutil.rmtree(folder)


def hooks_of(model: hs.LanguageModel) -> int:
    """How many hooks a model has."""
    modules = model.hf.modules()
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules)


def interrupts(times: int, seed: int, seconds: float) -> None:
    """Interrupt analyses so often, and print what was counted."""
    draw = random.Random(seed)
    torch.set_num_threads(1)
    model = hs.load_model("tiny-random-llama", device="cpu")
    queries = hs.load_queries("world", few_shot=1).sample(6)
    questions = hs.load_questions("world-docs", distractors=1)[:4]
    few: dict[str, Any] = {"max_new_tokens": 1, "progress": False}
    quick: dict[str, Any] = {"sites": ["resid_post"], "positions": "t2", "progress": False}
    calls: dict[str, Callable[[], hs.Result]] = {
        "back_patch": lambda: hs.back_patch(model, queries, "t2", cells=[(2, 1), (3, 1)], **few),
        "knockout": lambda: hs.knockout(model, queries, "t2->t1", layers=[1, 2], **few),
        "attribution": lambda: hs.attribution_patch(model, queries, exact=0, **quick),
        "trace": lambda: hs.trace(model, queries, draws=1, **quick),
        "permute": lambda: hs.permute_documents(model, questions, ["forward", "backward"], **few),
        "attention": lambda: hs.attention_to_documents(model, questions, **few),
    }
    ids = torch.tensor([model.encode("The capital of the country of Kyoto is").ids])
    wholes, took = dict[str, hs.Result](), dict[str, float]()
    for name, call in calls.items():
        call()  # what is looked up once is there
        started = time.perf_counter()
        wholes[name] = call()
        took[name] = time.perf_counter() - started
    with torch.no_grad():
        logits = model.hf(ids).logits
    attention, handler = model.config._attn_implementation, signal.getsignal(signal.SIGINT)
    counted: Counter[str] = Counter()
    until = time.perf_counter() + seconds
    while counted["interrupts"] < times and time.perf_counter() < until:
        name = draw.choice(list(calls))
        wait = draw.uniform(0, took[name])
        timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT))
        result = None
        try:
            timer.start()
            result = calls[name]()
            timer.join()
            counted["came too late"] += 1
        except KeyboardInterrupt:
            counted["interrupts"] += 1
        except BaseException as error:
            counted[f"{name} ended with {type(error).__name__}: {error}"] += 1
        timer.join()
        counted["hooks left"] += hooks_of(model) > 0
        counted["attention changed"] += model.config._attn_implementation != attention
        counted["training"] += any(each.training for each in model.hf.modules())
        counted["gradients off"] += not torch.is_grad_enabled()
        counted["SIGINT not given back"] += signal.getsignal(signal.SIGINT) is not handler
        with torch.no_grad():
            counted["logits changed"] += not torch.equal(model.hf(ids).logits, logits)
        if result is not None:
            counted["results changed"] += not result.frame.equals(wholes[name].frame)
            continue
        try:
            done = hs.partial()
        except ResultError:
            counted["nothing was finished"] += 1
            continue
        counted["partial results"] += 1
        whole = wholes[name].frame
        same = type(done) is type(wholes[name]) and starts_with(whole, done.frame)
        counted["partial results that are wrong"] += not same
    for what, n in sorted(counted.items()):
        print(f"{n:6} {what}", flush=True)


def starts_with(whole: pd.DataFrame, part: pd.DataFrame) -> bool:
    """Whether a table is the beginning of another."""
    return bool(len(part)) and part.equals(whole.head(len(part)))


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kills", "workers", "interrupts"))
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most")
    given = parser.parse_args()
    run = {"kills": kills, "workers": workers, "interrupts": interrupts}[given.what]
    run(given.times, given.seed, given.seconds)


if __name__ == "__main__":
    main()
