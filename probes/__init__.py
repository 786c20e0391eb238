"""What reads a hidden state: tensors in, tensors out, torch alone."""

from .control_tasks import Selectivity as Selectivity
from .control_tasks import control_labels as control_labels
from .control_tasks import selectivity as selectivity
from .cross_validation import assign_folds as assign_folds
from .cross_validation import cross_validate as cross_validate
from .linear_probe import LinearProbe as LinearProbe
from .logit_lens import LogitLens as LogitLens
from .probe import Probe as Probe
from .shipped import shipped as shipped
from .tuned_lens import TunedLens as TunedLens
