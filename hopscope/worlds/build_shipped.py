"""Trains the worlds that come with hopscope: python hopscope/data/build_worlds.py [FOLDER].

FOLDER keeps the trainings (a stopped one goes on); by default the cache. What is shipped has
weights in float16, half as large, and the accuracy that was measured with these.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from hopscope.files import write_json
from hopscope.models.zoo import cache_dir
from hopscope.training.small_models import save_model
from hopscope.worlds.folders import ABOUT
from hopscope.worlds.train import accuracy, train_world
from hopscope.worlds.world import World, read_world

SHIPPED = {
    "two-hop-looped": (0, 1, 2),
    "two-hop-memoriser": (0, 1, 2),
    "graph-search": (0,),
    "in-context": (0,),
    "reachability": (0,),
    "reachability-pause": (0,),
}


def ship(world: World, folder: Path) -> None:
    """Write a world with weights in float16."""
    nn.Module.to(world.model.hf, dtype=torch.float16)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(world.model, folder)
    nn.Module.to(world.model.hf, dtype=torch.float32)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(folder / "config.json", {**config, "dtype": "float32"})  # what it is loaded as
    measured = accuracy(world.model, world.task)
    write_json(folder / ABOUT, {**world.record, "accuracy": measured})


def main(trainings: Path) -> None:
    """Train what is not trained yet, and write what is shipped beside this file."""
    torch.set_num_threads(1)
    for name, seeds in SHIPPED.items():
        for seed in seeds:
            part = Path(name) / f"seed-{seed}"
            world = train_world(name, seed, trainings / part, device="cpu")
            ship(world, Path(__file__).parents[1] / "data" / "worlds" / part)
            print(read_world(Path(__file__).parents[1] / "data" / "worlds" / part))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else cache_dir() / "worlds")
