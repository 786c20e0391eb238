"""Small models that are trained here, on two-hop tasks whose answers and circuits are known."""

from hopscope.worlds.catalogue import WORLDS as WORLDS
from hopscope.worlds.catalogue import Recipe as Recipe
from hopscope.worlds.train import train_world as train_world
from hopscope.worlds.world import World as World
from hopscope.worlds.world import load_world as load_world
