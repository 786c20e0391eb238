"""Provides `hopscope worlds`: list the worlds, train one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hopscope.commands.options import example, folder_option
from hopscope.commands.printing import AsJson, show, table_text
from hopscope.errors import MAX_SEED

worlds_app = typer.Typer(
    no_args_is_help=True, help="Small models that are trained here, whose two hops are known."
)


@worlds_app.command("list", epilog=example("worlds list"))
def worlds_list(as_json: AsJson = False) -> None:
    """List the worlds, with the seeds already trained."""
    from hopscope.worlds.catalogue import WORLDS
    from hopscope.worlds.folders import available_seeds

    worlds = [
        {"name": name, "seeds": available_seeds(name), "description": recipe.description}
        for name, recipe in WORLDS.items()
    ]
    show({"worlds": worlds}, as_json, lambda: table_text(worlds))


@worlds_app.command("train", epilog=example("worlds train two-hop-looped --seed 3"))
def worlds_train(
    name: Annotated[str, typer.Argument(help="A name of `hopscope worlds list`.")],
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of facts, weights and batches.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder; an interrupted run is continued. By default in the cache.",
            callback=folder_option,
        ),
    ] = None,
    snapshots: Annotated[
        int | None, typer.Option(min=1, help="Save the weights every n steps.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU if any.")] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; one is fastest for models this small.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Train the model of a world."""
    import torch

    from hopscope.worlds.catalogue import recipe_of
    from hopscope.worlds.folders import cached_folder
    from hopscope.worlds.train import train_world

    torch.set_num_threads(threads)
    steps = recipe_of(name).schedule.steps
    folder = cached_folder(name, seed) if out is None else out
    kept = range(0, steps + 1, snapshots) if snapshots else ()
    world = train_world(name, seed, folder, snapshots=kept, device=device)
    found = {
        "world": name,
        "seed": seed,
        "folder": str(folder),
        "steps": steps,
        "seconds": world.record["seconds"],
        "accuracy": dict(world.accuracy),
    }
    show(found, as_json, lambda: f"{world}\ntrained in {found['seconds']:.0f} s: {folder}")
