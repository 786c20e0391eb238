"""How does a language model answer a question that takes two hops, and why does it fail?

    >>> import hopscope as hs
    >>> model = hs.load_model("smollm2-135m")                       # doctest: +SKIP
    >>> graded = hs.grade(model, hs.load_queries("world"))          # doctest: +SKIP
    >>> result = hs.back_patch(model, graded.incorrect())           # doctest: +SKIP
    >>> result.success_rate()                                       # doctest: +SKIP

Names are imported when they are first used, so that `hopscope.probes` needs torch alone; they are
listed in `__init__.pyi`.
"""

import logging

import lazy_loader

from hopscope.compat.old_paths import install
from hopscope.errors import HopscopeError as HopscopeError

__version__ = "0.1.0"
__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

# Where torchao is installed, importing transformers loads it, and it tells of kernels that this
# machine cannot run and of what it will change: nothing that anyone here can do something about.
for noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(noisy).setLevel(logging.ERROR)

install()
