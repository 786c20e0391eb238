"""Small models that are trained here, on two-hop tasks whose answers and circuits are known."""

from hopscope.worlds.catalogue import WORLDS as WORLDS
from hopscope.worlds.catalogue import Recipe as Recipe
from hopscope.worlds.circuit_reading import Circuit as Circuit
from hopscope.worlds.circuit_reading import circuit as circuit
from hopscope.worlds.coverage_reading import Coverage as Coverage
from hopscope.worlds.coverage_reading import coverage as coverage
from hopscope.worlds.emergence import Emergence as Emergence
from hopscope.worlds.emergence import over_checkpoints as over_checkpoints
from hopscope.worlds.scaling import DataNeeded as DataNeeded
from hopscope.worlds.scaling import data_needed as data_needed
from hopscope.worlds.superposition_reading import Superposition as Superposition
from hopscope.worlds.superposition_reading import superposition as superposition
from hopscope.worlds.world import World as World
from hopscope.worlds.world import load_world as load_world
from hopscope.worlds.world_training import train_world as train_world
