"""The analyses, one module each."""

from hopscope.experiments.back_patching import BackPatching as BackPatching
from hopscope.experiments.back_patching import back_patch as back_patch
from hopscope.experiments.grading import Grading as Grading
from hopscope.experiments.grading import grade as grade
