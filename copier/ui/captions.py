"""Captions of the originals: said by a tagger or the host, shown as a table, and used by the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from copier.app.jobs import JobState
from copier.app.names import folder_name
from copier.app.ports import allowed_path
from copier.captioning import Captioner, Policy, tags_of
from copier.errors import BadInput
from copier.progress import ignore
from copier.ui import pieces, words
from copier.ui.form import Form, button, choice, flag, html, number, small_button, text
from copier.ui.gradio_versions import Answer
from copier.ui.parts import Parts, Stoppable
from copier.ui.request_form import decimal

KEPT = {
    "Everything": Policy.ALL,
    "What differs between the pictures": Policy.VARIES,
    "Only the tags to keep": Policy.CONSTANT,
}
"""The policies as the list shows them."""


class CaptionsPart:
    """Its components; ``original.originals`` are captioned, and an edited picture takes its original's."""

    def __init__(self, form: Form, parts: Parts) -> None:
        self.form, self.parts = form, parts
        self.captioning = Stoppable()
        html("captions.lead", pieces.note(words.CAPTIONS_LEAD))
        with gr.Row():
            choice(form, "captions.by", "Who says them", (words.WD14,), value=words.WD14)
            choice(form, "captions.policy", "What is kept", KEPT, value=next(iter(KEPT)))
        text(form, "captions.keep", "Tags to keep", "With commas between them; empty: those of framing.")
        with gr.Accordion("The WD14 tagger", open=False):
            text(
                form, "captions.model", "Folder of its model", "Empty: the usual one, in the data directory."
            )
            number(form, "captions.threshold", "Threshold", "How sure it must be, 0 to 1; empty: as usual.")
            flag(form, "captions.download", "Download the usual model", "Several hundred MB, once.")
        with gr.Row():
            self.write = button("captions.write", "Caption the originals")
            self.stop = small_button("captions.interrupt", "Stop captioning", min_width=120)
        self.said = html("captions.said")
        self.found = html("captions.found")

    def lists(self) -> Answer:
        """Who can say captions, as the host is now."""
        return {self.form["captions.by"]: gr.update(choices=[words.WD14, *self.parts.host.captioners()])}

    def written(self, data: Mapping[Any, Any], originals: Any) -> tuple[Answer, Path]:
        """Caption the originals into a new folder in the output folder; the table, and the folder.

        Raises:
            BadInput: there is no original, a field is wrong, or a job has the memory.
            CopierError: as ``app.captions.caption_pictures``; nothing was written.
        """
        from copier.app.captions import CaptionRequest, caption_pictures

        answers = self.form.answers(data)
        pictures = self.parts.pictures(data.get(originals))
        if not pictures:
            raise BadInput("there is no original to caption: draw one, or drop a picture in")
        current = self.parts.jobs.current()
        if current is not None and current.state is JobState.RUNNING:
            raise BadInput("a job is running and has the memory: caption when it has ended, or stop it")
        policy = KEPT.get(str(answers.get("captions.policy")), Policy.ALL)
        keep = tags_of(str(answers.get("captions.keep") or ""))
        out = self.parts.host.folders().output / folder_name("captions")
        request = CaptionRequest(pictures, out, policy=policy, keep=keep or None)
        captioner = self._captioner(answers)
        with self.captioning.work() as token:
            captions = caption_pictures(request, captioner, observer=ignore, cancel=token)
        rows = [(one.picture.name, one.text or words.NO_CAPTION) for one in captions]
        return {self.found: str(pieces.table(rows))}, out

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
