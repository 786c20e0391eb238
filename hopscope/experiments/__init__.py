"""The analyses, one module each."""

from hopscope.experiments.attention_knockout import Knockouts as Knockouts
from hopscope.experiments.attention_knockout import knockout as knockout
from hopscope.experiments.back_patching import BackPatching as BackPatching
from hopscope.experiments.back_patching import back_patch as back_patch
from hopscope.experiments.description import Description as Description
from hopscope.experiments.description import describe as describe
from hopscope.experiments.entity_recall import Recall as Recall
from hopscope.experiments.entity_recall import recall as recall
from hopscope.experiments.grading import Grading as Grading
from hopscope.experiments.grading import grade as grade
from hopscope.experiments.patching import ActivationPatching as ActivationPatching
from hopscope.experiments.patching import activation_patch as activation_patch
from hopscope.experiments.probing import Probing as Probing
from hopscope.experiments.probing import fit_probe as fit_probe
from hopscope.experiments.probing import probe as probe
from hopscope.experiments.projection import Projection as Projection
from hopscope.experiments.projection import logit_lens as logit_lens
from hopscope.experiments.projection import project as project
from hopscope.experiments.stage_order import Stages as Stages
from hopscope.experiments.stage_order import combine as combine
from hopscope.experiments.stage_order import stages as stages
from hopscope.experiments.tracing import Tracing as Tracing
from hopscope.experiments.tracing import trace as trace
