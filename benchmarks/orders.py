"""Orders of documents by hopscope, beside one full prefill for each order.

    python benchmarks/orders.py                                  # world-docs, 40 distractors
    python benchmarks/orders.py --questions musique.jsonl --json # one JSON object

Two cases. `forward_gaps`: the orders forward_0 .. forward_5 under a causal mask, which share the
distractors that they begin with. `block_shuffles`: 20 shuffles under a document-block mask, which
share every document. The plain way is transformers' own forward over each whole prompt: without a
mask where it is causal (its fastest way), with a boolean 4-D mask where it is not; the logits of
the last token only. Both sides take turns in one process; seconds are medians over questions.

`bound` is the number of tokens that all prompts have, over the number that no exact way can avoid.
`agree` says whether the log-probabilities of the next token are the same (1e-3).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hopscope as hs
from benchmarks.subjects import load_average, machine, timed
from hopscope.documents.orders import that_allow
from hopscope.documents.question_set import MultiDocQuestion, QuestionSet
from hopscope.engine.masked.read import read, unavoidable_tokens
from hopscope.engine.read_out import ReadOut, Version
from hopscope.masks.named import causal, document_block
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.document_prompts import DocumentPrompts, FittedQuestion

TOLERANCE = 1e-3
TOP = 5
GAPS = [f"forward_{gap}" for gap in range(6)]
SHUFFLES = [f"shuffle_{k}" for k in range(20)]
CASES = {"forward_gaps": (GAPS, causal()), "block_shuffles": (SHUFFLES, document_block())}


@torch.inference_mode()
def plain(model: LanguageModel, version: Version) -> Tensor:
    """Next-token log-probabilities of one prompt by transformers alone, shape (vocabulary,)."""
    layout = version.layout
    inputs: dict[str, Any] = {"input_ids": torch.tensor([layout.ids], device=model.device)}
    if version.mask.name != "causal":
        inputs["attention_mask"] = version.mask.keep(layout)[None].to(model.device)
        inputs["position_ids"] = torch.tensor([layout.positions], device=model.device)
    logits = model.hf(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
    return torch.log_softmax(logits.float(), dim=-1)


def _plain_all(model: LanguageModel, versions: Sequence[Version]) -> list[Tensor]:
    return [plain(model, version) for version in versions]


def race(model: LanguageModel, questions: QuestionSet, case: str) -> dict[str, Any]:
    """One case, question by question."""
    orders, mask = CASES[case]
    ours, theirs, bounds, agree = [], [], [], True
    prompts = DocumentPrompts(model, questions, "answer_only", label="none")
    for question in questions:
        versions = _versions(prompts, question, orders, mask)
        run = partial(read, model, versions, ReadOut(top_k=TOP))
        found, seconds = timed(run, model.device)
        ours.append(seconds)
        logprobs, seconds = timed(partial(_plain_all, model, versions), model.device)
        theirs.append(seconds)
        bounds.append(sum(len(v.layout) for v in versions) / unavoidable_tokens(model, versions))
        for index, expected in enumerate(logprobs):
            at = found.outputs.top_tokens[index].to(expected.device)
            difference = expected[at].cpu() - found.outputs.top_logprobs[index]
            agree &= bool(difference.abs().max() < TOLERANCE)
    return {
        "case": case,
        "ratio": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        "bound": statistics.median(bounds),
        "orders": len(orders),
        "seconds": statistics.median(ours),
        "plain_seconds": statistics.median(theirs),
        "questions": len(questions),
        "agree": agree,
    }


def _versions(
    prompts: DocumentPrompts, question: MultiDocQuestion, orders: Sequence[str], mask: hs.Mask
) -> list[Version]:
    fitted = FittedQuestion(question, (), ())
    return [Version(prompts.layout(fitted, order), mask) for order in orders]


def main(
    model: Annotated[str, typer.Option(help="What hopscope.load_model takes.")] = "smollm2-135m",
    questions: Annotated[str, typer.Option(help="As `hopscope permute` takes.")] = "world-docs",
    distractors: Annotated[int, typer.Option(help="In the bundled sets.")] = 40,
    limit: Annotated[int, typer.Option(help="How many questions.")] = 3,
    only: Annotated[str | None, typer.Option(help="Names of cases, with commas.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    dtype: Annotated[str | None, typer.Option()] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch; its default if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time both cases beside the plain way."""
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = hs.load_model(model, device=device, dtype=dtype)
    asked = hs.load_questions(questions, distractors=distractors).with_few_shot(0)
    chosen = that_allow(asked, GAPS).sample(limit)
    before = load_average()
    warm = _versions(DocumentPrompts(loaded, chosen), chosen[0], ["original"], causal())
    read(loaded, warm, ReadOut(top_k=1))
    rows = [race(loaded, chosen, name) for name in (only.split(",") if only else CASES)]
    if as_json:
        print(json.dumps({"rows": rows, "machine": machine(loaded), "load_average": before}))
    else:
        for row in rows:
            print(
                f"{row['case']:<16}{row['ratio']:>7.2f}x  (bound {row['bound']:.2f})  "
                f"{row['seconds']:>7.1f} s  plain {row['plain_seconds']:>7.1f} s  "
                f"{'agree' if row['agree'] else 'DIFFER'}"
            )
    raise typer.Exit(0 if all(row["agree"] for row in rows) else 1)


if __name__ == "__main__":
    typer.run(main)
