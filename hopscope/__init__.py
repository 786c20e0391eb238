"""How does a language model answer a question that takes two hops, and why does it fail?

    >>> import hopscope as hs
    >>> model = hs.load_model("smollm2-135m")                       # doctest: +SKIP
    >>> graded = hs.grade(model, hs.load_queries("world"))          # doctest: +SKIP
    >>> result = hs.back_patch(model, graded.incorrect())           # doctest: +SKIP
    >>> result.success_rate()                                       # doctest: +SKIP

The names below are imported when they are first used, so that `hopscope.probes` needs torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hopscope.errors import HopscopeError as HopscopeError

if TYPE_CHECKING:
    from hopscope.activations import Activations as Activations
    from hopscope.activations import capture as capture
    from hopscope.documents import MultiDocQuestion as MultiDocQuestion
    from hopscope.documents import QuestionSet as QuestionSet
    from hopscope.documents import load_questions as load_questions
    from hopscope.edits import Knockout as Knockout
    from hopscope.edits import Patch as Patch
    from hopscope.experiments import ActivationPatching as ActivationPatching
    from hopscope.experiments import BackPatching as BackPatching
    from hopscope.experiments import ComputationGraph as ComputationGraph
    from hopscope.experiments import Description as Description
    from hopscope.experiments import DocumentAttention as DocumentAttention
    from hopscope.experiments import Grading as Grading
    from hopscope.experiments import HeadRetrieval as HeadRetrieval
    from hopscope.experiments import Knockouts as Knockouts
    from hopscope.experiments import MaskedPaths as MaskedPaths
    from hopscope.experiments import OrderChoice as OrderChoice
    from hopscope.experiments import Permutation as Permutation
    from hopscope.experiments import Probing as Probing
    from hopscope.experiments import Projection as Projection
    from hopscope.experiments import RankNeighbours as RankNeighbours
    from hopscope.experiments import Recall as Recall
    from hopscope.experiments import Stages as Stages
    from hopscope.experiments import Tracing as Tracing
    from hopscope.experiments import activation_patch as activation_patch
    from hopscope.experiments import attention_to_documents as attention_to_documents
    from hopscope.experiments import back_patch as back_patch
    from hopscope.experiments import best_order as best_order
    from hopscope.experiments import classify_heads as classify_heads
    from hopscope.experiments import computation_graph as computation_graph
    from hopscope.experiments import describe as describe
    from hopscope.experiments import fit_probe as fit_probe
    from hopscope.experiments import grade as grade
    from hopscope.experiments import knockout as knockout
    from hopscope.experiments import logit_lens as logit_lens
    from hopscope.experiments import masked_paths as masked_paths
    from hopscope.experiments import permute_documents as permute_documents
    from hopscope.experiments import probe as probe
    from hopscope.experiments import project as project
    from hopscope.experiments import rank_neighbours as rank_neighbours
    from hopscope.experiments import recall as recall
    from hopscope.experiments import stages as stages
    from hopscope.experiments import trace as trace
    from hopscope.hooks import edit as edit
    from hopscope.masks import Mask as Mask
    from hopscope.models import EncoderDecoder as EncoderDecoder
    from hopscope.models import LanguageModel as LanguageModel
    from hopscope.models import load_any as load_any
    from hopscope.models import load_encoder_decoder as load_encoder_decoder
    from hopscope.models import load_model as load_model
    from hopscope.paths import PathPrompt as PathPrompt
    from hopscope.paths import PathSet as PathSet
    from hopscope.queries import QuerySet as QuerySet
    from hopscope.queries import TwoHopQuery as TwoHopQuery
    from hopscope.queries import load_queries as load_queries
    from hopscope.results import Result as Result
    from hopscope.results import load_result as load_result
    from hopscope.runs import partial as partial
    from hopscope.sweep import ReadOut as ReadOut
    from hopscope.training import train as train
    from hopscope.training_models import TrainingSettings as TrainingSettings
    from hopscope.training_runs import PrefixTraining as PrefixTraining
    from hopscope.training_runs import compare_masks as compare_masks
    from hopscope.views.mask_painter import paint_mask as paint_mask
    from hopscope.views.prompt_explorer import explore as explore
    from hopscope.worlds import Circuit as Circuit
    from hopscope.worlds import Coverage as Coverage
    from hopscope.worlds import DataNeeded as DataNeeded
    from hopscope.worlds import Emergence as Emergence
    from hopscope.worlds import Superposition as Superposition
    from hopscope.worlds import World as World
    from hopscope.worlds import circuit as circuit
    from hopscope.worlds import coverage as coverage
    from hopscope.worlds import data_needed as data_needed
    from hopscope.worlds import load_world as load_world
    from hopscope.worlds import over_checkpoints as over_checkpoints
    from hopscope.worlds import superposition as superposition
    from hopscope.worlds import train_world as train_world

__version__ = "0.1.0"

_HOME = {
    "ActivationPatching": "experiments",
    "Activations": "activations",
    "BackPatching": "experiments",
    "Circuit": "worlds",
    "ComputationGraph": "experiments",
    "Coverage": "worlds",
    "DataNeeded": "worlds",
    "Description": "experiments",
    "DocumentAttention": "experiments",
    "Emergence": "worlds",
    "EncoderDecoder": "models",
    "Grading": "experiments",
    "HeadRetrieval": "experiments",
    "Knockout": "edits",
    "Knockouts": "experiments",
    "LanguageModel": "models",
    "Mask": "masks",
    "MaskedPaths": "experiments",
    "MultiDocQuestion": "documents",
    "OrderChoice": "experiments",
    "Patch": "edits",
    "PathPrompt": "paths",
    "PathSet": "paths",
    "Permutation": "experiments",
    "PrefixTraining": "training_runs",
    "Probing": "experiments",
    "Projection": "experiments",
    "QuerySet": "queries",
    "QuestionSet": "documents",
    "RankNeighbours": "experiments",
    "ReadOut": "sweep",
    "Recall": "experiments",
    "Result": "results",
    "Stages": "experiments",
    "Superposition": "worlds",
    "Tracing": "experiments",
    "TrainingSettings": "training_models",
    "TwoHopQuery": "queries",
    "World": "worlds",
    "activation_patch": "experiments",
    "attention_to_documents": "experiments",
    "back_patch": "experiments",
    "best_order": "experiments",
    "capture": "activations",
    "circuit": "worlds",
    "classify_heads": "experiments",
    "compare_masks": "training_runs",
    "computation_graph": "experiments",
    "coverage": "worlds",
    "data_needed": "worlds",
    "describe": "experiments",
    "edit": "hooks",
    "explore": "views.prompt_explorer",
    "fit_probe": "experiments",
    "grade": "experiments",
    "knockout": "experiments",
    "load_any": "models",
    "load_encoder_decoder": "models",
    "load_model": "models",
    "load_queries": "queries",
    "load_questions": "documents",
    "load_result": "results",
    "load_world": "worlds",
    "logit_lens": "experiments",
    "masked_paths": "experiments",
    "over_checkpoints": "worlds",
    "paint_mask": "views.mask_painter",
    "partial": "runs",
    "permute_documents": "experiments",
    "probe": "experiments",
    "project": "experiments",
    "rank_neighbours": "experiments",
    "recall": "experiments",
    "stages": "experiments",
    "superposition": "worlds",
    "trace": "experiments",
    "train": "training",
    "train_world": "worlds",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hopscope' has no attribute {name!r}")
    return getattr(import_module(f"hopscope.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
