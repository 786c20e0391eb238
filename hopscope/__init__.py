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

from hopscope.errors import HopscopeError as HopscopeError

if TYPE_CHECKING:
    from hopscope.activations import Activations as Activations
    from hopscope.activations import capture as capture
    from hopscope.edits import Patch as Patch
    from hopscope.experiments import BackPatching as BackPatching
    from hopscope.experiments import Grading as Grading
    from hopscope.experiments import back_patch as back_patch
    from hopscope.experiments import grade as grade
    from hopscope.hooks import edit as edit
    from hopscope.models import LanguageModel as LanguageModel
    from hopscope.models import load_model as load_model
    from hopscope.queries import QuerySet as QuerySet
    from hopscope.queries import TwoHopQuery as TwoHopQuery
    from hopscope.queries import load_queries as load_queries
    from hopscope.results import Result as Result
    from hopscope.results import load_result as load_result
    from hopscope.sweep import ReadOut as ReadOut

__version__ = "0.1.0"

_HOME = {
    "Activations": "activations",
    "BackPatching": "experiments",
    "Grading": "experiments",
    "LanguageModel": "models",
    "Patch": "edits",
    "QuerySet": "queries",
    "ReadOut": "sweep",
    "Result": "results",
    "TwoHopQuery": "queries",
    "back_patch": "experiments",
    "capture": "activations",
    "edit": "hooks",
    "grade": "experiments",
    "load_model": "models",
    "load_queries": "queries",
    "load_result": "results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hopscope' has no attribute {name!r}")
    return getattr(import_module(f"hopscope.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
