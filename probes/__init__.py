"""Probes, which read hidden states: functions of tensors and NumPy arrays that need only torch."""

from .control_tasks import Selectivity as Selectivity
from .control_tasks import control_labels as control_labels
from .control_tasks import selectivity as selectivity
from .cross_validation import assign_folds as assign_folds
from .cross_validation import cross_validate as cross_validate
from .jacobian_lens import JacobianLens as JacobianLens
from .linear_probe import LinearProbe as LinearProbe
from .logit_lens import LogitLens as LogitLens
from .neighbours import KeyClusters as KeyClusters
from .neighbours import key_clusters as key_clusters
from .probe import Probe as Probe
from .retrieval import class_of_share as class_of_share
from .retrieval import head_classes as head_classes
from .retrieval import keys_held as keys_held
from .separation import iicg as iicg
from .shipped import shipped as shipped
from .tuned_lens import TunedLens as TunedLens
