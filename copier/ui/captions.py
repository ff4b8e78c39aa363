"""Captions of all pictures: said by a tagger or the host, or typed into the table; the run reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from copier.app.jobs import JobState
from copier.app.names import folder_name
from copier.app.ports import allowed_path
from copier.captioning import CAPTION_ENDING, Captioner
from copier.errors import BadInput
from copier.progress import ignore
from copier.recipe import Recipe
from copier.ui import pieces, words
from copier.ui.caption_rows import CaptionRow, by_set, caption_rows
from copier.ui.form import Form, button, choice, flag, html, kept, number, small_button, text
from copier.ui.gradio_versions import Answer
from copier.ui.leaves import elem_id
from copier.ui.parts import Parts, Stoppable
from copier.ui.picture_sets import Pictures, caption_key
from copier.ui.request_form import decimal


class CaptionsPart:
    """Its components. ``texts`` holds the captions by ``caption_key`` of the kept pictures."""

    def __init__(self, form: Form, parts: Parts) -> None:
        self.form, self.parts = form, parts
        self.captioning = Stoppable()
        with gr.Accordion("Captions", open=False, elem_id=elem_id("captions.fold")) as self.fold:
            html("captions.lead", pieces.note(words.CAPTIONS_LEAD))
            choice(form, "captions.by", "Who says them", (words.WD14,), value=words.WD14)
            with gr.Accordion("The WD14 tagger", open=False):
                text(
                    form,
                    "captions.model",
                    "Folder of its model",
                    "Empty: the usual one, in the data directory.",
                )
                number(
                    form, "captions.threshold", "Threshold", "How sure it must be, 0 to 1; empty: as usual."
                )
                flag(form, "captions.download", "Download the usual model", "Several hundred MB, once.")
            with gr.Row():
                self.write = button("captions.write", "Caption the pictures that have none")
                self.stop = small_button("captions.interrupt", "Stop captioning", min_width=120)
            self.said = html("captions.said")
            self.table = html("captions.table", pieces.caption_table(()))
            self.told = html("captions.told")
            self.save = button("captions.save", "Save as caption files", size="sm")
            with gr.Row(elem_classes="copier-quiet"):
                self.texts = kept("captions.texts", {}, written=True)

    def lists(self) -> Answer:
        """Who can say captions, as the host is now."""
        return {self.form["captions.by"]: gr.update(choices=[words.WD14, *self.parts.host.captioners()])}

    def rows(self, recipe: Recipe, pictures: Pictures) -> tuple[CaptionRow, ...]:
        """The table's rows; none of a recipe that has more sets than the tab has places for."""
        try:
            return caption_rows(recipe, pictures)
        except BadInput:
            return ()

    def look(self, recipe: Recipe, pictures: Pictures) -> Answer:
        """The table for the pictures that there are now."""
        return {self.table: pieces.caption_table(self.rows(recipe, pictures))}

    def heard(self, recipe: Recipe, pictures: Pictures) -> Answer:
        """What the trainings are told now; the page's script puts it into the table, which stays."""
        return {self.told: pieces.captions_told(self.rows(recipe, pictures))}

    def with_texts(self, texts: Mapping[str, str], data: Mapping[Any, Any]) -> Answer:
        """Captions by their keys, beside those that are there."""
        return {self.texts: {**data[self.texts], **texts}}

    def brought(
        self, files: Sequence[Path], place: str, pictures: Sequence[str], data: Mapping[Any, Any]
    ) -> Answer:
        """The caption files among ``files`` that have the names of the kept ``pictures`` of a place.

        Raises:
            BadInput: one cannot be read.
        """
        from copier.app.caption_sets import caption_text

        texts = {one.stem: caption_text(one) for one in files if one.suffix.lower() == CAPTION_ENDING}
        stems = {caption_key(place, one): Path(one).stem for one in pictures}
        known = {key: texts[stem] for key, stem in stems.items() if stem in texts}
        return self.with_texts(known, data) if known else {}

    def written(self, data: Mapping[Any, Any], recipe: Recipe, pictures: Pictures) -> Answer:
        """Captions for the pictures that have none.

        Raises:
            BadInput: there is none, a field is wrong, or a job has the memory.
            CopierError: as the captioner; nothing was changed.
        """
        from copier.app.captions import what_is_said

        rows = caption_rows(recipe, pictures)
        if not rows:
            raise BadInput("there is no picture to caption: draw one, or drop some in")
        empty = [one for one in rows if not one.text.strip()]
        if not empty:
            raise BadInput("every picture has a caption: empty those that are to be said anew")
        current = self.parts.jobs.current()
        if current is not None and current.state is JobState.RUNNING:
            raise BadInput("a job is running and has the memory: caption when it has ended, or stop it")
        captioner = self._captioner(self.form.answers(data))
        with self.captioning.work() as token:
            said = what_is_said([one.picture for one in empty], captioner, observer=ignore, cancel=token)
        return self.with_texts({row.key: text for row, text in zip(empty, said, strict=True)}, data)

    def saved(self, recipe: Recipe, pictures: Pictures) -> Answer:
        """Write the table as caption files into a new folder of the output folder.

        Raises:
            BadInput: there is no picture, or as ``by_set``.
        """
        from copier.app.caption_sets import write_caption_sets

        rows = caption_rows(recipe, pictures)
        if not rows:
            raise BadInput("there is no picture to caption: draw one, or drop some in")
        folder = self.parts.host.folders().output / folder_name("captions")
        write_caption_sets(by_set(rows), folder)
        return {self.said: pieces.note(f"Written into {folder}.", "good")}

    def _captioner(self, answers: Mapping[str, Any]) -> Captioner:
        from copier.app.captions import Wd14Tagger

        host, by = self.parts.host, answers.get("captions.by")
        if by != words.WD14:
            known = host.captioners()
            if by not in known:
                raise BadInput(f"{by!r} is not there any more: choose who else says the captions")
            return known[by]
        model, download = str(answers.get("captions.model") or "").strip(), bool(answers["captions.download"])
        if download and host.security().restricted:
            raise BadInput(
                "the WebUI can be reached from elsewhere, and then downloads nothing: put the model into its "
                "folder, or start the WebUI with --enable-insecure-extension-access"
            )
        sure = answers["captions.threshold"]
        return Wd14Tagger(
            self.parts.settings,
            model=allowed_path(Path(model), host) if model else None,
            allow_download=download and not model,
            **({} if sure in (None, "") else {"threshold": decimal(sure, "Threshold", 0, 1)}),
        )
