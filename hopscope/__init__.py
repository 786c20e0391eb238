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
from typing import Any

import lazy_loader

from hopscope.compat.old_paths import install
from hopscope.errors import HopscopeError as HopscopeError
from hopscope.errors import did_you_mean

__version__ = "0.1.0"
_imported, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    known = __dir__()
    if name in known or name.startswith("_"):
        return _imported(name)
    raise AttributeError(f"hopscope has no {name!r}{did_you_mean(name, known)}")


# Where torchao is installed, importing transformers loads it, and it tells of kernels that this
# machine cannot run and of what it will change: nothing that anyone here can do something about.
for noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(noisy).setLevel(logging.ERROR)

install()
