"""The section "Edited": a built-in edit or pictures of one's own, and what differs; or a second set."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from copier.errors import BadInput, BadPicture
from copier.recipe import Recipe
from copier.request import Edit
from copier.ui import pieces, words
from copier.ui.form import Form, html, kept, slider
from copier.ui.gradio_versions import Answer, file_paths, picture_files
from copier.ui.leaves import elem_id
from copier.ui.original import KINDS, pictures_among
from copier.ui.parts import Parts
from copier.ui.picture_sets import Pictures, PictureSets
from copier.ui.request_form import OWN_EDIT, chosen_checkpoint, chosen_edit, partners

MOST_SHOWN = 6
"""Pairs that are shown as rows."""
_VIEW_SIDE = 192
"""Longer side of a crop or zoom in the page, in pixels."""


class EditedSection:
    """Its components; ``edited`` holds the paths of the user's own edited pictures."""

    def __init__(
        self, form: Form, parts: Parts, edits: Sequence[Mapping[str, Any]], sets: PictureSets
    ) -> None:
        self.form, self.parts, self.edits = form, parts, edits
        self.edited = kept("edited.edited", [])
        self.parameters: dict[str, Any] = {}
        first, said = edits[0], sets.texts[1]
        with gr.Column(elem_classes="copier-card", visible=bool(sets.changed or sets.second)) as self.place:
            self.head = html("edited.head", pieces.heading("2", said.title, said.lead))
            with gr.Column(visible=bool(sets.changed)) as self.change:
                labels = [*(str(edit["label"]) for edit in edits), OWN_EDIT]
                self.edit = form.add(
                    "edited.edit",
                    gr.Radio(
                        labels, value=first["label"], label="What changes", elem_id=elem_id("edited.edit")
                    ),
                )
                self.explanation = html("edited.explanation", pieces.note(first["explanation"]))
                for edit in edits:
                    self._sliders(edit, visible=edit is first)
            self.files = form.add(
                "edited.files",
                picture_files(
                    label=words.B_LABEL,
                    several=True,
                    kinds=KINDS,
                    elem_id=elem_id("edited.files"),
                    height=120,
                ),
            )
            self.files.visible = bool(sets.second)
            self.said = html("edited.said")
            self.view = html("edited.view", pieces.empty(said.none))
            self.views = html("edited.views")

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

    def fits(self, sets: PictureSets, data: Mapping[Any, Any]) -> Answer:
        """What the section says and shows for a recipe that is given ``sets``."""
        said, own = sets.texts[1], data.get(self.edit) == OWN_EDIT
        return {
            self.place: gr.update(visible=bool(sets.changed or sets.second)),
            self.head: pieces.heading("2", said.title, said.lead),
            self.change: gr.update(visible=bool(sets.changed)),
            self.files: gr.update(
                visible=bool(sets.second) or (bool(sets.changed) and own),
                label=words.B_LABEL if sets.changed else words.PICTURES_LABEL,
            ),
        }

    def fitted(self) -> set[Any]:
        """All that ``fits`` changes."""
        return {self.place, self.head, self.change, self.files}

    def drop(self, data: Any) -> Answer:
        """Pictures were dropped in; caption files alone change none of them."""
        from copier.app.pair_preview import keep_picture

        files = file_paths(data.get(self.files))
        pictures = pictures_among(files)
        if files and not pictures:
            return {}
        return {self.edited: [str(keep_picture(path, self.parts.settings)) for path in pictures]}

    def look(self, data: Any, recipe: Recipe, pictures: Pictures, sets: PictureSets) -> Answer:
        """The pairs as they would be trained on, and their views; or the pictures of the second set."""
        if sets.second:
            return {self.view: pieces.thumbs(pictures.edited, sets.texts[1].none), self.views: ""}
        if not sets.changed or not pictures.originals:
            return {self.view: pieces.pairs(()), self.views: ""}
        pairs = self._pairs(self.form.answers(data), pictures, recipe)
        return {self.view: pieces.pairs(_views(pairs)), self.views: _framings(sets, pairs)}

    def _pairs(
        self, answers: Mapping[str, Any], pictures: Pictures, recipe: Recipe
    ) -> list[tuple[Path, Path | Edit | None]]:
        """Each original, and what is its partner so far."""
        edit = chosen_edit(answers, self.edits)
        first = self._ready(answers, pictures.originals, recipe)
        seconds: Sequence[Path | Edit | None] = [edit] * len(first)
        if edit is None and pictures.edited:
            # A partner may be missing: the check says so, beside the place for files.
            with contextlib.suppress(BadInput):
                seconds = self._ready(answers, partners(pictures), recipe)
        return list(zip(first, seconds, strict=True))

    def _ready(self, answers: Mapping[str, Any], files: Sequence[Path], recipe: Recipe) -> tuple[Path, ...]:
        if not answers.get("original.fit"):
            return tuple(files)
        from copier.app.fitting import fitted

        checkpoint = chosen_checkpoint(answers.get("original.checkpoint"), self.parts.host)
        return fitted(files, recipe, checkpoint.path, self.parts.settings)


def _views(pairs: Sequence[tuple[Path, Path | Edit | None]]) -> list[Any]:
    from copier.app.pair_preview import look_at

    return [look_at(a, b) for a, b in pairs[:MOST_SHOWN]]


def _framings(sets: PictureSets, pairs: Sequence[tuple[Path, Path | Edit | None]]) -> str:
    """The views that a recipe makes of its first pair, where it makes some."""
    if sets.views is None:
        return ""
    from copier.app.views import look_at_views

    try:
        return str(pieces.framings(look_at_views(sets.views, *pairs[0], _VIEW_SIDE)))
    except BadPicture:
        return ""  # the pair's own row says why


def _step(span: float) -> float:
    """Of a slider: about a hundredth of its range."""
    return 0.01 if span <= 2 else 0.1 if span <= 20 else 1.0
