"""Provides the module paths of version 0.1: `hopscope.trainer.Schedule` is found where it is today.

A module that is gone is made anew, empty; its names, and those that a package once had itself, are
looked up in the modules that hold them today, when they are first used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from typing import Any

MOVED: Mapping[str, Sequence[str]] = {
    "activations": ("prompting.capture",),
    "answers": ("queries.answers",),
    "demonstrations": ("queries.demonstrations",),
    "document_files": ("documents.formats",),
    "document_plots": ("experiments.documents.plots", "plots.mask_grid"),
    "documents": ("documents.question_set", "documents.load"),
    "edits": ("engine.edits",),
    "encoder_decoder": ("engine.masked.encoder_decoder",),
    "experiments": (
        "experiments.documents.attention",
        "experiments.documents.masked_paths",
        "experiments.documents.order_choice",
        "experiments.documents.permutation",
        "experiments.two_hop.activation_patching",
        "experiments.two_hop.attention_knockout",
        "experiments.two_hop.back_patching",
        "experiments.two_hop.causal_tracing",
        "experiments.two_hop.description",
        "experiments.two_hop.entity_recall",
        "experiments.two_hop.grading",
        "experiments.two_hop.head_retrieval",
        "experiments.two_hop.probing",
        "experiments.two_hop.projection",
        "experiments.two_hop.rank_neighbours",
        "experiments.two_hop.stages",
        "experiments.worlds.computation_graph",
        "engine.logit_lens",
    ),
    "experiments.asking": (
        "prompting.query_prompts",
        "statistics",
        "experiments.arguments",
        "prompting.generation",
    ),
    "experiments.attention_knockout": ("experiments.two_hop.attention_knockout",),
    "experiments.back_patching": ("experiments.two_hop.back_patching",),
    "experiments.controls": ("experiments.two_hop.controls", "experiments.randomness"),
    "experiments.description": ("experiments.two_hop.description",),
    "experiments.document_asking": (
        "prompting.document_prompts",
        "statistics",
        "experiments.arguments",
    ),
    "experiments.document_attention": ("experiments.documents.attention",),
    "experiments.document_paths": ("experiments.documents.masked_paths",),
    "experiments.entity_recall": ("experiments.two_hop.entity_recall",),
    "experiments.grading": ("experiments.two_hop.grading", "prompting.generation"),
    "experiments.graph_extraction": (
        "experiments.worlds.computation_graph",
        "experiments.worlds.graph_operations",
    ),
    "experiments.head_retrieval": ("experiments.two_hop.head_retrieval",),
    "experiments.order_choice": ("experiments.documents.order_choice",),
    "experiments.pairs": ("experiments.two_hop.partners",),
    "experiments.patching": ("experiments.two_hop.activation_patching",),
    "experiments.permutation": (
        "experiments.documents.permutation",
        "prompting.document_prompts",
    ),
    "experiments.probing": ("experiments.two_hop.probing",),
    "experiments.projection": ("experiments.two_hop.projection", "engine.logit_lens"),
    "experiments.ranking": ("experiments.two_hop.rank_neighbours",),
    "experiments.stage_order": ("experiments.two_hop.stages", "statistics"),
    "experiments.tracing": ("experiments.two_hop.causal_tracing",),
    "figure_check": ("study.figure_check",),
    "figure_runs": ("study.standalone_figures",),
    "findings": ("results.wording",),
    "graph_plots": ("experiments.worlds.graph_plots",),
    "hooks": ("engine.hooks", "engine.editing"),
    "interop": ("prompting.transformer_lens_cache", "models.transformer_lens"),
    "layouts": ("documents.layout", "documents.lay_out", "documents.templates", "models.chat"),
    "masked": (
        "engine.masked.read",
        "engine.read_out",
        "engine.plain",
        "engine.masked.units",
        "engine.masked.store",
        "engine.masked.batch",
    ),
    "masks": ("masks.algebra", "masks.named", "masks.lowering"),
    "models": ("models.load", "models.language_model", "models.encoder_decoder"),
    "models.interrupts": ("interrupts",),
    "orders": ("documents.orders",),
    "paths": ("queries.graph_paths",),
    "plots": ("experiments.two_hop.plots", "plots.lines", "plots.heatmaps", "plots.figures"),
    "prompts": ("queries.two_hop_query", "queries.prompts"),
    "queries": ("queries.query_set", "queries.load"),
    "query_files": ("queries.formats",),
    "report": ("study.report",),
    "results": (
        "results.result",
        "statistics",
        "results.run_folder",
        "results.run_record",
        "results.runs",
        "files",
        "loading",
    ),
    "retrieval_plots": ("experiments.two_hop.head_plots",),
    "rotary": ("engine.masked.rotary",),
    "rows": ("engine.rows",),
    "runs": ("results.runs",),
    "streams": ("engine.attention", "engine.cache", "engine.prefix_store", "engine.support"),
    "study": (
        "study.study",
        "study.presets",
        "study.figures",
        "experiments.analysis",
        "experiments.documents.permutation",
    ),
    "style": ("plots.style",),
    "sweep": (
        "engine.sweep",
        "engine.read_out",
        "engine.memory",
        "engine.plain",
        "engine.clean_run",
        "engine.placed_edits",
    ),
    "tokenized": ("prompting.tokenized",),
    "trainer": ("training.fit", "training.settings"),
    "training": ("training.mask_training",),
    "training_batches": ("training.batches",),
    "training_models": ("training.small_models", "training.settings"),
    "training_plots": ("experiments.documents.training_plots",),
    "training_runs": ("experiments.documents.prefix_training",),
    "views.display": ("display.notebook", "display.front_end"),
    "views.grid": ("display.grid",),
    "views.page": ("display.page",),
    "views.result_grids": ("experiments.two_hop.grids",),
    "views.static_files": ("display.static_files",),
    "views.widgets": ("display.widgets",),
    "world_docs": ("documents.world_docs",),
    "worlds": (
        "worlds.catalogue",
        "worlds.recipe",
        "worlds.world",
        "worlds.load",
        "worlds.train",
        "experiments.worlds.circuit",
        "experiments.worlds.coverage",
        "experiments.worlds.emergence",
        "experiments.worlds.data_needed",
        "experiments.worlds.superposition",
    ),
    "worlds.blocks": ("worlds.small_model",),
    "worlds.catalogue": ("worlds.recipe", "worlds.tasks.task"),
    "worlds.circuit_plot": ("experiments.worlds.circuit_plots",),
    "worlds.circuit_reading": ("experiments.worlds.circuit",),
    "worlds.coverage_cutoffs": ("experiments.worlds.coverage_cutoffs",),
    "worlds.coverage_plot": ("experiments.worlds.coverage_plots",),
    "worlds.coverage_reading": ("experiments.worlds.coverage",),
    "worlds.coverage_task": ("worlds.tasks.composed_tables",),
    "worlds.emergence": ("experiments.worlds.emergence",),
    "worlds.emergence_plot": ("experiments.worlds.emergence_plots",),
    "worlds.examples": ("worlds.tasks.examples",),
    "worlds.graph_reachability": ("worlds.tasks.graph_reachability",),
    "worlds.graph_search": ("worlds.tasks.graph_search",),
    "worlds.in_context": ("worlds.tasks.chains_in_context",),
    "worlds.scaling": ("experiments.worlds.data_needed", "statistics"),
    "worlds.superposition_reading": ("experiments.worlds.superposition",),
    "worlds.two_hop_facts": ("worlds.tasks.two_hop_facts",),
    "worlds.world": ("worlds.load", "worlds.folders"),
    "worlds.world_training": ("worlds.train",),
}
"""For each module of version 0.1, relative to `hopscope`, the modules that hold its names today."""
RENAMED: Mapping[str, str] = {
    "RATHER_ALIKE": "MIN_LENGTH_RATIO",
    "ALONE": "STANDALONE_FIGURES",
    "Setting": "Settings",
    "Asked": "FittedQuestion",
    "Asker": "QueryPrompts",
    "DocumentAsker": "DocumentPrompts",
    "at_line_end": "stop_at_line_end",
    "described": "question_details",
    "DocumentReader": "DocumentModel",
    "instead": "with_substitution",
    "said": "answer_text",
    "seeded": "generator_for",
    "until_answered": "stop_when_answered",
    "whole_pool": "all_candidates",
    "demonstrations.arrange": "demonstration_order",
    "documents.BUNDLED": "BUNDLED_QUESTION_SETS",
    "layouts.SPANS": "SPAN_NAMES",
    "queries.BUNDLED": "BUNDLED_QUERY_SETS",
    "rows.Layout": "RowLayout",
    "trainer.seeded": "torch_seed",
    "worlds.world.parsed": "parse_reference",
    "worlds.world.seeds_at_hand": "available_seeds",
    "masked.Openings": "PrefixCache",
    **{
        f"experiments.{name}.POSITIONS": "ENDS" for name in ("description", "probing", "projection")
    },
    "worlds.examples.Batch": "TaskBatch",
    "worlds.examples.Drawn": "EpochBatches",
    "worlds.examples.Written": "Example",
    "worlds.examples.tabulated": "as_batch",
}
"""What names of version 0.1 are called today; in one module, or wherever they were."""


def old_names(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names of version 0.1 lie elsewhere today.

    Example:
        >>> __getattr__ = old_names("hopscope.masks")
        >>> __getattr__("document_block").__module__
        'hopscope.masks.named'
    """
    return partial(_find, package)


def install() -> None:
    """Let imports find the modules that are gone."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def names_in(package: str) -> Callable[[], list[str]]:
    """The `__dir__` of such a package, for completion: what it has, and what it had."""
    return partial(_names, package)


def _names(module: str) -> list[str]:
    own = {name for name in vars(sys.modules[module]) if not name.startswith("_")}
    for home in MOVED[module.removeprefix("hopscope.")]:
        found = vars(import_module(f"hopscope.{home}"))
        own |= {
            name
            for name, each in found.items()
            if not name.startswith("_") and getattr(each, "__module__", "") == f"hopscope.{home}"
        }
    return sorted(own)


def _find(module: str, name: str) -> Any:
    earlier = module.removeprefix("hopscope.")
    wanted = RENAMED.get(f"{earlier}.{name}", RENAMED.get(name, name))
    if name == "__all__":
        return _names(module)
    if not name.startswith("__") and not _is_module(module, name):
        for home in MOVED[earlier]:
            found = import_module(f"hopscope.{home}")
            if wanted in vars(found):
                return vars(found)[wanted]
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def _is_module(package: str, name: str) -> bool:
    """Whether a name is that of a module in a package, which `from package import name` imports."""
    is_package = hasattr(sys.modules.get(package), "__path__")
    return is_package and find_spec(f"{package}.{name}") is not None


class _OldModule(ModuleType):
    """A module that is gone; where a function has its name today (`hopscope.sweep`), it is both."""

    def __call__(self, *args: Any, **given: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **given)


class _Finder(MetaPathFinder, Loader):
    """Makes the modules that are gone; it comes last, so that what is there is found first."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        there = fullname.startswith("hopscope.") and fullname.removeprefix("hopscope.") in MOVED
        return spec_from_loader(fullname, self) if there else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _OldModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = old_names(module.__name__)
        vars(module)["__dir__"] = names_in(module.__name__)
