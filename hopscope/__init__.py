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

from hopscope.compat.old_paths import install
from hopscope.errors import HopscopeError as HopscopeError

if TYPE_CHECKING:
    from hopscope.documents.question_set import MultiDocQuestion as MultiDocQuestion
    from hopscope.documents.question_set import QuestionSet as QuestionSet
    from hopscope.engine.edits import Knockout as Knockout
    from hopscope.engine.edits import Patch as Patch
    from hopscope.engine.hooks import edit as edit
    from hopscope.engine.logit_lens import logit_lens as logit_lens
    from hopscope.engine.read_out import ReadOut as ReadOut
    from hopscope.experiments.documents.attention import DocumentAttention as DocumentAttention
    from hopscope.experiments.documents.attention import (
        attention_to_documents as attention_to_documents,
    )
    from hopscope.experiments.documents.masked_paths import MaskedPaths as MaskedPaths
    from hopscope.experiments.documents.masked_paths import masked_paths as masked_paths
    from hopscope.experiments.documents.order_choice import OrderChoice as OrderChoice
    from hopscope.experiments.documents.order_choice import best_order as best_order
    from hopscope.experiments.documents.permutation import Permutation as Permutation
    from hopscope.experiments.documents.permutation import permute_documents as permute_documents
    from hopscope.experiments.documents.prefix_training import PrefixTraining as PrefixTraining
    from hopscope.experiments.documents.prefix_training import compare_masks as compare_masks
    from hopscope.experiments.two_hop.activation_patching import (
        ActivationPatching as ActivationPatching,
    )
    from hopscope.experiments.two_hop.activation_patching import (
        activation_patch as activation_patch,
    )
    from hopscope.experiments.two_hop.attention_knockout import Knockouts as Knockouts
    from hopscope.experiments.two_hop.attention_knockout import knockout as knockout
    from hopscope.experiments.two_hop.back_patching import BackPatching as BackPatching
    from hopscope.experiments.two_hop.back_patching import back_patch as back_patch
    from hopscope.experiments.two_hop.causal_tracing import Tracing as Tracing
    from hopscope.experiments.two_hop.causal_tracing import trace as trace
    from hopscope.experiments.two_hop.description import Description as Description
    from hopscope.experiments.two_hop.description import describe as describe
    from hopscope.experiments.two_hop.entity_recall import Recall as Recall
    from hopscope.experiments.two_hop.entity_recall import recall as recall
    from hopscope.experiments.two_hop.grading import Grading as Grading
    from hopscope.experiments.two_hop.grading import grade as grade
    from hopscope.experiments.two_hop.head_retrieval import HeadRetrieval as HeadRetrieval
    from hopscope.experiments.two_hop.head_retrieval import classify_heads as classify_heads
    from hopscope.experiments.two_hop.probing import Probing as Probing
    from hopscope.experiments.two_hop.probing import fit_probe as fit_probe
    from hopscope.experiments.two_hop.probing import probe as probe
    from hopscope.experiments.two_hop.projection import Projection as Projection
    from hopscope.experiments.two_hop.projection import project as project
    from hopscope.experiments.two_hop.rank_neighbours import RankNeighbours as RankNeighbours
    from hopscope.experiments.two_hop.rank_neighbours import rank_neighbours as rank_neighbours
    from hopscope.experiments.two_hop.stages import Stages as Stages
    from hopscope.experiments.two_hop.stages import stages as stages
    from hopscope.experiments.worlds.circuit import Circuit as Circuit
    from hopscope.experiments.worlds.circuit import circuit as circuit
    from hopscope.experiments.worlds.computation_graph import ComputationGraph as ComputationGraph
    from hopscope.experiments.worlds.computation_graph import computation_graph as computation_graph
    from hopscope.experiments.worlds.coverage import Coverage as Coverage
    from hopscope.experiments.worlds.coverage import coverage as coverage
    from hopscope.experiments.worlds.data_needed import DataNeeded as DataNeeded
    from hopscope.experiments.worlds.data_needed import data_needed as data_needed
    from hopscope.experiments.worlds.emergence import Emergence as Emergence
    from hopscope.experiments.worlds.emergence import over_checkpoints as over_checkpoints
    from hopscope.experiments.worlds.superposition import Superposition as Superposition
    from hopscope.experiments.worlds.superposition import superposition as superposition
    from hopscope.loading import load_any as load_any
    from hopscope.loading import load_encoder_decoder as load_encoder_decoder
    from hopscope.loading import load_model as load_model
    from hopscope.loading import load_queries as load_queries
    from hopscope.loading import load_questions as load_questions
    from hopscope.loading import load_result as load_result
    from hopscope.loading import load_world as load_world
    from hopscope.masks.algebra import Mask as Mask
    from hopscope.models.encoder_decoder import EncoderDecoder as EncoderDecoder
    from hopscope.models.language_model import LanguageModel as LanguageModel
    from hopscope.prompting.capture import Activations as Activations
    from hopscope.prompting.capture import capture as capture
    from hopscope.queries.graph_paths import PathPrompt as PathPrompt
    from hopscope.queries.graph_paths import PathSet as PathSet
    from hopscope.queries.query_set import QuerySet as QuerySet
    from hopscope.queries.two_hop_query import TwoHopQuery as TwoHopQuery
    from hopscope.results.result import Result as Result
    from hopscope.results.runs import partial as partial
    from hopscope.training.settings import TrainingSettings as TrainingSettings
    from hopscope.training.train import train as train
    from hopscope.views.mask_painter import paint_mask as paint_mask
    from hopscope.views.prompt_explorer import explore as explore
    from hopscope.worlds.train import train_world as train_world
    from hopscope.worlds.world import World as World

__version__ = "0.1.0"

install()

_HOME = {
    "ActivationPatching": "experiments.two_hop.activation_patching",
    "Activations": "prompting.capture",
    "BackPatching": "experiments.two_hop.back_patching",
    "Circuit": "experiments.worlds.circuit",
    "ComputationGraph": "experiments.worlds.computation_graph",
    "Coverage": "experiments.worlds.coverage",
    "DataNeeded": "experiments.worlds.data_needed",
    "Description": "experiments.two_hop.description",
    "DocumentAttention": "experiments.documents.attention",
    "Emergence": "experiments.worlds.emergence",
    "EncoderDecoder": "models.encoder_decoder",
    "Grading": "experiments.two_hop.grading",
    "HeadRetrieval": "experiments.two_hop.head_retrieval",
    "Knockout": "engine.edits",
    "Knockouts": "experiments.two_hop.attention_knockout",
    "LanguageModel": "models.language_model",
    "Mask": "masks.algebra",
    "MaskedPaths": "experiments.documents.masked_paths",
    "MultiDocQuestion": "documents.question_set",
    "OrderChoice": "experiments.documents.order_choice",
    "Patch": "engine.edits",
    "PathPrompt": "queries.graph_paths",
    "PathSet": "queries.graph_paths",
    "Permutation": "experiments.documents.permutation",
    "PrefixTraining": "experiments.documents.prefix_training",
    "Probing": "experiments.two_hop.probing",
    "Projection": "experiments.two_hop.projection",
    "QuerySet": "queries.query_set",
    "QuestionSet": "documents.question_set",
    "RankNeighbours": "experiments.two_hop.rank_neighbours",
    "ReadOut": "engine.read_out",
    "Recall": "experiments.two_hop.entity_recall",
    "Result": "results.result",
    "Stages": "experiments.two_hop.stages",
    "Superposition": "experiments.worlds.superposition",
    "Tracing": "experiments.two_hop.causal_tracing",
    "TrainingSettings": "training.settings",
    "TwoHopQuery": "queries.two_hop_query",
    "World": "worlds.world",
    "activation_patch": "experiments.two_hop.activation_patching",
    "attention_to_documents": "experiments.documents.attention",
    "back_patch": "experiments.two_hop.back_patching",
    "best_order": "experiments.documents.order_choice",
    "capture": "prompting.capture",
    "circuit": "experiments.worlds.circuit",
    "classify_heads": "experiments.two_hop.head_retrieval",
    "compare_masks": "experiments.documents.prefix_training",
    "computation_graph": "experiments.worlds.computation_graph",
    "coverage": "experiments.worlds.coverage",
    "data_needed": "experiments.worlds.data_needed",
    "describe": "experiments.two_hop.description",
    "edit": "engine.hooks",
    "explore": "views.prompt_explorer",
    "fit_probe": "experiments.two_hop.probing",
    "grade": "experiments.two_hop.grading",
    "knockout": "experiments.two_hop.attention_knockout",
    "load_any": "loading",
    "load_encoder_decoder": "loading",
    "load_model": "loading",
    "load_queries": "loading",
    "load_questions": "loading",
    "load_result": "loading",
    "load_world": "loading",
    "logit_lens": "engine.logit_lens",
    "masked_paths": "experiments.documents.masked_paths",
    "over_checkpoints": "experiments.worlds.emergence",
    "paint_mask": "views.mask_painter",
    "partial": "results.runs",
    "permute_documents": "experiments.documents.permutation",
    "probe": "experiments.two_hop.probing",
    "project": "experiments.two_hop.projection",
    "rank_neighbours": "experiments.two_hop.rank_neighbours",
    "recall": "experiments.two_hop.entity_recall",
    "stages": "experiments.two_hop.stages",
    "superposition": "experiments.worlds.superposition",
    "trace": "experiments.two_hop.causal_tracing",
    "train": "training.train",
    "train_world": "worlds.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hopscope' has no attribute {name!r}")
    return getattr(import_module(f"hopscope.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
