"""The section "Edited": a built-in edit or a picture of one's own, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from copier.recipe import Recipe
from copier.request import ENDINGS, Edit
from copier.ui import pieces, words
from copier.ui.form import Form, html, kept, slider
from copier.ui.gradio_versions import Answer, file_paths, picture_files
from copier.ui.leaves import elem_id
from copier.ui.parts import Parts
from copier.ui.request_form import OWN_EDIT, Pictures, chosen_checkpoint, chosen_edit, partners

MOST_SHOWN = 6
"""Pairs that are shown as rows."""


class EditedSection:
    """Its components; ``edited`` holds the paths of the user's own edited pictures."""

    def __init__(self, form: Form, parts: Parts, edits: Sequence[Mapping[str, Any]]) -> None:
        self.form, self.parts, self.edits = form, parts, edits
        self.edited = kept("edited.edited", [])
        self.parameters: dict[str, Any] = {}
        first = edits[0]
        with gr.Column(elem_classes="copier-card"):
            html("edited.head", pieces.heading("2", words.EDITED, words.EDITED_LEAD))
            labels = [*(str(edit["label"]) for edit in edits), OWN_EDIT]
            self.edit = form.add(
                "edited.edit",
                gr.Radio(labels, value=first["label"], label="What changes", elem_id=elem_id("edited.edit")),
            )
            self.explanation = html("edited.explanation", pieces.note(first["explanation"]))
            for edit in edits:
                self._sliders(edit, visible=edit is first)
            self.files = form.add(
                "edited.files",
                picture_files(
                    label="B: the original with your edit; of several, each under its original's name",
                    several=True,
                    kinds=ENDINGS,
                    elem_id=elem_id("edited.files"),
                    height=120,
                ),
            )
            self.files.visible = False
            self.said = html("edited.said")
            self.view = html("edited.view", pieces.pairs(()))

    def _sliders(self, edit: Mapping[str, Any], *, visible: bool) -> None:
        for one in edit["parameters"]:
            path = f"edited.{edit['name']}.{one['name']}"
            low, high = one["minimum"], one["maximum"]
            step = 1 if one["whole"] else _step(high - low)
            options = {"step": step, "visible": visible}
            self.parameters[path] = slider(
                self.form, path, one["label"], low, high, one["default"], **options
            )

    def choose(self, data: Any) -> Answer:
        """Show the sliders of the edit that was chosen, and its pictures."""
        label = data.get(self.edit)
        shown = next((edit for edit in self.edits if edit["label"] == label), None)
        prefix = f"edited.{shown['name']}." if shown else "-"
        return {
            self.explanation: pieces.note(shown["explanation"] if shown else ""),
            self.files: gr.update(visible=label == OWN_EDIT),
            **{one: gr.update(visible=path.startswith(prefix)) for path, one in self.parameters.items()},
        }

    def drop(self, data: Any) -> Answer:
        """Edited pictures were dropped in."""
        from copier.app.pair_preview import keep_picture

        kept = [str(keep_picture(path, self.parts.settings)) for path in file_paths(data.get(self.files))]
        return {self.edited: kept}

    def look(self, data: Any, recipe: Recipe, originals: Any) -> Answer:
        """The pairs as they would be trained on."""
        answers = self.form.answers(data)
        pictures = Pictures(
            self.parts.pictures(data.get(originals)), self.parts.pictures(data.get(self.edited))
        )
        if not pictures.originals or not recipe.changed:
            return {self.view: pieces.pairs(())}
        return {self.view: pieces.pairs(self._views(answers, pictures, recipe))}

    def _views(self, answers: Mapping[str, Any], pictures: Pictures, recipe: Recipe) -> list[Any]:
        from copier.app.pair_preview import look_at

        edit = chosen_edit(answers, self.edits)
        first = self._ready(answers, pictures.originals, recipe)
        seconds: Sequence[Path | Edit | None]
        if edit is not None:
            seconds = [edit] * len(first)
        elif pictures.edited:
            seconds = self._ready(answers, partners(pictures), recipe)
        else:
            seconds = [None] * len(first)
        both = list(zip(first, seconds, strict=True))
        return [look_at(a, b) for a, b in both[:MOST_SHOWN]]

    def _ready(self, answers: Mapping[str, Any], files: Sequence[Path], recipe: Recipe) -> tuple[Path, ...]:
        if not answers.get("original.fit"):
            return tuple(files)
        from copier.app.fitting import fitted

        checkpoint = chosen_checkpoint(answers.get("original.checkpoint"), self.parts.host)
        return fitted(files, recipe, checkpoint.path, self.parts.settings)


def _step(span: float) -> float:
    """Of a slider: about a hundredth of its range."""
    return 0.01 if span <= 2 else 0.1 if span <= 20 else 1.0
