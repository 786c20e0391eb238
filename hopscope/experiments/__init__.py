"""The analyses, one module each."""

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
from hopscope.experiments.two_hop.activation_patching import (
    ActivationPatching as ActivationPatching,
)
from hopscope.experiments.two_hop.activation_patching import activation_patch as activation_patch
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
from hopscope.experiments.two_hop.projection import logit_lens as logit_lens
from hopscope.experiments.two_hop.projection import project as project
from hopscope.experiments.two_hop.rank_neighbours import RankNeighbours as RankNeighbours
from hopscope.experiments.two_hop.rank_neighbours import rank_neighbours as rank_neighbours
from hopscope.experiments.two_hop.stages import Stages as Stages
from hopscope.experiments.two_hop.stages import combine as combine
from hopscope.experiments.two_hop.stages import stages as stages
from hopscope.experiments.worlds.computation_graph import ComputationGraph as ComputationGraph
from hopscope.experiments.worlds.computation_graph import computation_graph as computation_graph
