"""Trains the worlds that come with hopscope: python -m hopscope.worlds.build_shipped [FOLDER].

FOLDER, by default the cache, holds the training runs; interrupted runs are continued. The shipped
weights are float16, half as large, and the recorded accuracy is measured with them.
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
    "three-hop-looped": (0,),
    "graph-search": (0,),
    "in-context": (0,),
    "reachability": (0,),
    "reachability-pause": (0,),
    "reachability-ahead": (0,),
}


def ship(world: World, folder: Path) -> None:
    """Write a world into a folder, with weights in float16."""
    nn.Module.to(world.model.hf, dtype=torch.float16)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(world.model, folder)
    nn.Module.to(world.model.hf, dtype=torch.float32)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(folder / "config.json", {**config, "dtype": "float32"})  # the dtype for loading
    measured = accuracy(world.model, world.task)
    write_json(folder / ABOUT, {**world.record, "accuracy": measured})


def main(trainings: Path) -> None:
    """Train the worlds that are not trained yet, and write all to `hopscope/data/worlds`."""
    torch.set_num_threads(1)
    for name, seeds in SHIPPED.items():
        for seed in seeds:
            part = Path(name) / f"seed-{seed}"
            world = train_world(name, seed, trainings / part, device="cpu")
            ship(world, Path(__file__).parents[1] / "data" / "worlds" / part)
            print(read_world(Path(__file__).parents[1] / "data" / "worlds" / part))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else cache_dir() / "worlds")
