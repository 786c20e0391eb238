"""Fitting loads nothing but torch's own; saving nothing but safetensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Prints what is loaded, besides the standard library's and torch's modules, to fit and to save,
# and when something else is imported. torch.optim loads torch._dynamo when it is first used.
WATCHER = """
import sys
import torch, torch._dynamo

def loaded():
    names = {name.partition(".")[0] for name in sys.modules}
    return names - sys.stdlib_module_names - {"hopscope", "torch", "lazy_loader"}

before = loaded()
from hopscope.probes import JacobianLens, LinearProbe, LogitLens, TunedLens
from hopscope.probes import cross_validate, selectivity
norm, unembedding = torch.nn.LayerNorm(4), torch.nn.Linear(4, 10, bias=False)
acts, labels = torch.randn(8, 3, 4), torch.arange(8) % 2
lens = TunedLens(norm, unembedding, n_layers=3, d_model=4).fit(acts, epochs=1)
block = torch.nn.Linear(4, 4).eval()
run = torch.nn.Sequential(torch.nn.Embedding(9, 4), block)
JacobianLens(norm, unembedding, 1, 4).fit(run, [block], [[1, 2, 3]], skip=0)
LogitLens(norm, unembedding).fit(acts).score(acts, labels)
LinearProbe(2).fit(acts, labels).score(acts, labels)
cross_validate(acts, labels, folds=2)
selectivity(acts, labels, torch.arange(8) // 2, folds=2)
print(*loaded() - before)
lens.save(sys.argv[1])
print(*loaded() - before)
import einops
print(*sorted(loaded() - before))
"""


def test_fitting_needs_torch_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WATCHER, str(tmp_path / "lens")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The last line proves that more would be seen.
    assert done.stdout.splitlines() == ["", "safetensors", "einops safetensors"]
