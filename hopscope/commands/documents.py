"""Provides the commands that ask a model questions over documents."""

from __future__ import annotations

from typing import Annotated

import typer

from hopscope.commands.options import Documents, listed, taking
from hopscope.commands.printing import show_tables

documents_app = typer.Typer()


@documents_app.command("permute")
@taking(Documents)
def permute_command(
    options: Documents,
    *,
    orders: Annotated[
        str,
        typer.Option(
            help="Of original, forward, backward, forward_G, backward_G, rm_first, gold, "
            "shuffle_K; with commas."
        ),
    ] = "original,forward,backward",
    permuting: Annotated[
        str, typer.Option(help="Of text, positions, mask, positions+mask; with commas.")
    ] = "text",
    metric: Annotated[
        str, typer.Option(help="contained, matched, exact_match or f1.")
    ] = "contained",
) -> None:
    """Permute documents and change the mask: how do multi-hop answers change?"""
    from hopscope.experiments.documents.permutation import permute_documents
    from hopscope.prompting.document_prompts import check_metric

    check_metric(metric)
    wanted = listed(orders)
    result = permute_documents(
        *options.load(wanted),
        wanted,
        permuting=listed(permuting),  # type: ignore[arg-type]  # it checks them
        **options.settings(),
    )
    accuracy = result.accuracy(metric, options.seed)
    compared = result.compare(None, metric, options.seed)
    show_tables(result, {"rows": accuracy, "compare": compared}, options.as_json)


@documents_app.command("attention")
@taking(Documents)
def attention_command(
    options: Documents,
    *,
    orders: Annotated[str, typer.Option(help="As for permute; with commas.")] = "original",
    read: Annotated[
        str, typer.Option(help="Whose attention: answer, or last (token of the prompt).")
    ] = "answer",
    metric: Annotated[str, typer.Option(help="contained, matched or exact_match.")] = "contained",
) -> None:
    """Read how much the answer looks at each document: does a right one look harder?"""
    from hopscope.experiments.documents.attention import attention_to_documents
    from hopscope.prompting.document_prompts import VERDICTS, check_metric

    check_metric(metric, VERDICTS)
    wanted = listed(orders)
    result = attention_to_documents(*options.load(wanted), wanted, read=read, **options.settings())
    tables = {"rows": result.compare(metric), "peaks": result.peaks(metric)}
    show_tables(result, tables, options.as_json)
