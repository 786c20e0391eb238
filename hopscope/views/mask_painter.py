"""Provides paint_mask(): a widget to paint an attention mask, under which the model answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import traitlets

from hopscope.display.static_files import module, static
from hopscope.display.widgets import View
from hopscope.documents.layout import Layout
from hopscope.documents.orders import Order
from hopscope.documents.question_set import MultiDocQuestion, QuestionSet
from hopscope.documents.templates import Template
from hopscope.engine.read_out import ReadOut, Version
from hopscope.errors import HopscopeError, QueryError, UsageError, of_type
from hopscope.masks.algebra import Mask
from hopscope.masks.named import MASKS, mask_of, painted, switched
from hopscope.models.token_model import TokenModel
from hopscope.prompting.document_prompts import DocumentModel, DocumentPrompts
from hopscope.prompting.generation import answer_text
from hopscope.queries.answers import matches


class MaskPainter(View):
    """A widget that shows an attention mask to be painted; the model answers under the mask.

    The widget does not show demonstrations and instruction, whose part of the mask cannot change.

    Attributes:
        seen: the keep-mask over the visible tokens: for each query token a text of 0 and 1, one for
            each key token. The front end changes it.
        layers: the first and last layer in which the painted mask holds; the other layers keep the
            initial mask.
        heads: the heads in which the painted mask holds; all if empty.
        answers: the answers under the masks that were tried, the latest first.
        prompt: the tokenised question and documents.
        expected: the expected answer, or an empty string.
        before: the text before the visible tokens.
    """

    kind = "mask"
    _esm = module("grid.js", "mask.js", render="renderMask")
    _css = static("view.css")
    title = traitlets.Unicode().tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)
    expected = traitlets.Unicode().tag(sync=True)
    before = traitlets.Unicode().tag(sync=True)
    tokens: traitlets.List[Any] = traitlets.List().tag(sync=True)
    parts: traitlets.List[Any] = traitlets.List().tag(sync=True)
    presets: traitlets.List[Any] = traitlets.List().tag(sync=True)
    seen: traitlets.List[Any] = traitlets.List().tag(sync=True)
    layers: traitlets.List[Any] = traitlets.List().tag(sync=True)
    heads: traitlets.List[Any] = traitlets.List().tag(sync=True)
    n_layers = traitlets.Int().tag(sync=True)
    n_heads = traitlets.Int().tag(sync=True)
    changed = traitlets.Int().tag(sync=True)
    answers: traitlets.List[Any] = traitlets.List().tag(sync=True)
    asked = traitlets.Int().tag(sync=True)

    def __init__(self, prompts: DocumentPrompts, prompt: Layout, mask: Mask) -> None:
        self.prompt = prompt
        self._prompts, self._base, self._initial = prompts, mask, mask
        self._first = prompt.segments[0][1]
        n_layers = prompts.reader.n_mask_layers
        names = [mask.name, *(name for name in MASKS if name != mask.name)]
        super().__init__(
            title=f"{prompts.model.name}: {prompt.question.question}",
            expected=prompt.question.answer or "",
            before=prompt.text[: prompt.offsets[self._first][0]],
            tokens=[prompt.text[start:end] for start, end in prompt.offsets[self._first :]],
            parts=_parts(prompt),
            presets=names,
            seen=self._rows(mask),
            n_layers=n_layers,
            n_heads=prompts.model.n_heads,
            layers=[0, n_layers - 1],
        )
        self.on_msg(self._on_message)

    def _rows(self, mask: Mask) -> list[str]:
        """Return the keep-mask over the visible tokens, in the form of `seen`."""
        keep = mask.keep(self.prompt)[0, self._first :, self._first :].tolist()
        return ["".join("1" if cell else "0" for cell in row) for row in keep]

    @property
    def mask(self) -> Mask:
        """The painted mask, for this prompt; the base mask while nothing is painted."""
        if not self.changed:
            return self._base
        keep = self._base.keep(self.prompt)[0].clone()
        visible = torch.tensor([[cell == "1" for cell in row] for row in self.seen])
        keep[self._first :, self._first :] = visible
        mask = painted(keep, f"painted on {self._base.name}")
        first, last = self.layers
        layers = None if self.layers == self._all_layers else range(first, last + 1)
        return switched(mask, self._base, layers=layers, heads=self.heads or None)

    @property
    def _all_layers(self) -> list[int]:
        return [0, self.n_layers - 1]

    @property
    def caption(self) -> str:
        return self.title

    def made(self) -> Mapping[str, str]:
        """Return which model was asked which questions."""
        return {"model": self._prompts.model.name, "questions": self._prompts.questions.name}

    def _html(self) -> str:
        self.name = self.mask.name
        return super()._html()

    def ask(self) -> dict[str, Any]:
        """Let the model answer under the current mask; the answer is put first in `answers`."""
        mask, question, model = self.mask, self.prompt.question, self._prompts.model
        read_out = ReadOut(
            answer_tokens=self._prompts.answer_tokens(self.prompt),
            max_new_tokens=self._prompts.room,
        )
        outputs = self._prompts.reader.read([Version(self.prompt, mask)], read_out).outputs
        text = answer_text(model.decode(outputs.tokens[0]), self._prompts.form.one_line)
        answer = {
            "mask": mask.name + (f" ({self.changed} changed)" if self.changed else ""),
            "says": text.strip(),
            "correct": matches(text, question.names) if question.answer else None,
            "probability": float(outputs.logprob[0].exp()),
            "rank": int(outputs.rank[0]),
        }
        self.answers = [answer, *self.answers]
        self.renew_outputs()
        return answer

    def picture(self) -> str:
        """Return the mask, in a layer and head where it is painted, as PNG in base64."""
        from matplotlib.figure import Figure

        from hopscope.display.notebook import png
        from hopscope.plots.style import figure_style

        with figure_style():
            figure = Figure(figsize=(4.2, 4.2), layout="constrained")
            place = {"layer": self.layers[0], "head": self.heads[0] if self.heads else 0}
            self.mask.show(self.prompt, figure.subplots(), **place)
            return png(figure)

    def begin(self, mask: str | Mask) -> None:
        """Start again from another mask, in all layers and heads.

        Args:
            mask: a name of `MASKS`, the name of the initial mask, or a mask.

        Raises:
            UsageError: for an unknown name, or a mask that differs between layers or heads.
        """
        base = self._initial if mask == self._initial.name else mask_of(mask)
        self._base = _uniform(base)
        self.seen = self._rows(self._base)
        self.layers, self.heads = self._all_layers, []

    @traitlets.validate("layers")
    def _checked_layers(self, proposal: Any) -> list[int]:
        """Check that first and last layer are in order and within the model."""
        layers = proposal["value"]
        if len(layers) != 2 or not 0 <= layers[0] <= layers[1] < self.n_layers:
            raise traitlets.TraitError(
                f"layers must be the first and the last of 0 to {self.n_layers - 1}, not {layers}"
            )
        return list(layers)

    @traitlets.validate("heads")
    def _checked_heads(self, proposal: Any) -> list[int]:
        """Sort the heads, and check that they are within the model."""
        heads = sorted(set(proposal["value"]))
        if not all(0 <= head < self.n_heads for head in heads):
            raise traitlets.TraitError(f"heads must be of 0 to {self.n_heads - 1}, not {heads}")
        return heads

    @traitlets.observe("seen")
    def _count_changes(self, _: Any) -> None:
        pairs = zip("".join(self._rows(self._base)), "".join(self.seen), strict=True)
        self.changed = sum(a != b for a, b in pairs)

    def _on_message(self, _: Any, message: Any, __: Any) -> None:
        if message.get("type") == "begin":
            self.begin(message["name"])
        elif message.get("type") == "ask":
            try:
                self.ask()
            except HopscopeError as error:
                failure = {"mask": self.mask.name, "says": str(error), "correct": None}
                self.answers = [{**failure, "probability": None, "rank": "?"}, *self.answers]
            finally:
                self.asked += 1


def paint_mask(
    model: DocumentModel,
    questions: QuestionSet | MultiDocQuestion,
    mask: str | Mask = "causal",
    *,
    order: Order = "original",
    template: str | Template = "plain",
    seed: int = 0,
) -> MaskPainter:
    """Show a widget to paint an attention mask on the tokens of a question over documents.

    Args:
        model: the model that answers under the mask.
        questions: a question, or a set, of which the first question is used with the set's
            demonstrations. Choose one with few documents, because each token is a row.
        mask: the initial mask, which must be the same in all layers and heads.
        order: order of the documents; see `hopscope.documents.orders.arrange`.
        template: a name of `TEMPLATES`, or a template.
        seed: seed of shuffled orders.

    Returns:
        A widget. Its `mask` can be used like any other mask, for this prompt, and `ask()` lets the
        model answer; `to_html(path)` writes both as a file. `painter.layers = [7, 8]` restricts the
        painted mask to a range of layers, `painter.heads = [0, 3]` to some heads.

    Raises:
        QueryError: for an empty set, or a question that does not fit into the model's context.
        UsageError: for a mask that differs between layers or heads.

    Example:
        >>> painter = hs.paint_mask(model, hs.load_questions("world-docs"))  # doctest: +SKIP
        >>> painter.mask                                                      # doctest: +SKIP
    """
    of_type("model", model, TokenModel, "load one with hs.load_any")
    of_type("questions", questions, QuestionSet | MultiDocQuestion)
    if isinstance(questions, MultiDocQuestion):
        questions = QuestionSet((questions,), "one question")
    if not len(questions):
        raise QueryError(f"{questions.name} is an empty question set: there is nothing to paint on")
    initial = _uniform(mask_of(mask))
    prompts = DocumentPrompts(model, questions, template, seed=seed)
    return MaskPainter(
        prompts, prompts.layout(prompts.fitted_question(questions[0]), order), initial
    )


def _uniform(mask: Mask) -> Mask:
    """Return a mask after a check that it is the same in all layers and heads."""
    if mask.layers or mask.by_head:
        raise UsageError(
            f"the mask {mask.name!r} differs by layer or head and cannot be painted; use it "
            "unchanged, for instance in permute_documents"
        )
    return mask


def _parts(prompt: Layout) -> list[dict[str, Any]]:
    """Return the visible parts of the prompt, with their ranges among the visible tokens."""
    shown = list(zip(prompt.segment_names, prompt.segments, strict=True))[1:]
    first = shown[0][1][0]
    return [
        {"name": name, "start": start - first, "stop": stop - first}
        for name, (start, stop) in shown
        if stop > start
    ]
