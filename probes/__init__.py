"""What reads a hidden state: tensors in, tensors out, torch alone."""

from hopscope.probes.logit_lens import LogitLens as LogitLens
