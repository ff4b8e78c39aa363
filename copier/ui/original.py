"""The section "Original": the checkpoint, pictures drawn by the host, and pictures that are dropped in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from copier.app.ports import MOST_DRAWN, GenerateRequest
from copier.captioning import CAPTION_ENDING
from copier.fields import GUIDANCE, LARGEST_SEED, SAMPLING_STEPS
from copier.progress import ignore
from copier.request import ENDINGS
from copier.ui import pieces, words
from copier.ui.form import Form, button, choice, flag, html, kept, number, small_button, text
from copier.ui.gradio_versions import Answer, file_paths, gallery, picture_files
from copier.ui.leaves import elem_id
from copier.ui.parts import Parts, Stoppable
from copier.ui.picture_sets import PictureSets
from copier.ui.request_form import (
    FOLLOW,
    chosen_checkpoint,
    decimal,
    lora_file,
    lora_label,
    whole,
)

KINDS = (*ENDINGS, CAPTION_ENDING)
"""Endings of what may be dropped in."""
NO_LORA = "No LoRA"
POCKET_PROMPT = "a red star on cyan background"
"""What the embedded checkpoint draws well."""


class OriginalSection:
    """Its components; ``drawn`` and ``originals`` hold the paths of files in the data directory."""

    def __init__(self, form: Form, parts: Parts, sets: PictureSets) -> None:
        self.form, self.parts = form, parts
        self.drawing = Stoppable()
        self.drawn = kept("original.drawn", [])
        self.originals = kept("original.originals", [])
        with gr.Column(elem_classes="copier-card"):
            said = sets.texts[0]
            self.head = html("original.head", pieces.heading("1", said.title, said.lead))
            self._model_line()
            with gr.Column(visible=bool(sets.first), elem_id=elem_id("original.pictures")) as self.place:
                self._pictures(said)

    def _pictures(self, said: words.SetWords) -> None:
        form = self.form
        with gr.Tabs(elem_id=elem_id("original.ways")):
            with gr.Tab("Draw one", elem_id=elem_id("original.draw")):
                self._drawing()
            with gr.Tab("Drop one in", elem_id=elem_id("original.drop")):
                self.files = form.add(
                    "original.files",
                    picture_files(
                        label=words.PICTURES_LABEL,
                        several=True,
                        kinds=KINDS,
                        elem_id=elem_id("original.files"),
                        height=120,
                    ),
                )
                flag(
                    form,
                    "original.fit",
                    "Scale and crop to fit",
                    "To the recipe's resolution, sides multiples of 64; A and B alike.",
                    value=True,
                )
        self.said = html("original.said")
        self.view = html("original.view", pieces.empty(said.none))
        with gr.Row():
            self.several = flag(
                form,
                "original.several",
                "Several originals",
                "What is chosen or dropped in is added; else it takes the place of the others.",
            )
            self.clear = small_button("original.clear", "Take out", min_width=90)
            self.to_inpaint = small_button(
                "original.to_inpaint", "A to inpaint", min_width=110, visible=False
            )
        with gr.Row(elem_classes="copier-quiet"):
            self.out = kept("original.out", "", written=True)
            self.take_one = button("original.take_one", words.TAKE_OUT)
            self.clicked = kept("original.clicked", 0, written=True)
            self.pick_one = button("original.pick", words.CHOOSE)

    def _model_line(self) -> None:
        with gr.Row():
            self.checkpoint = choice(
                self.form, "original.checkpoint", "Checkpoint", (FOLLOW,), value=FOLLOW, scale=4
            )
            self.refresh = small_button("original.refresh", "Refresh", min_width=80)
        self.line = html("original.line")

    def _drawing(self) -> None:
        form = self.form
        text(form, "original.prompt", "Prompt", lines=2, max_lines=4, placeholder=POCKET_PROMPT)
        with gr.Row():
            number(form, "original.count", "Pictures", value=4, precision=0)
            number(form, "original.seed", "Seed", value=1, precision=0)
        with gr.Accordion("Sampling", open=False):
            text(form, "original.negative", "Negative prompt", lines=1)
            with gr.Row():
                choice(form, "original.sampler", "Sampler", ())
                number(form, "original.steps", "Sampling steps", SAMPLING_STEPS.help, value=20)
                number(form, "original.guidance", "CFG scale", GUIDANCE.help, value=7)
            with gr.Row():
                choice(
                    form,
                    "original.lora",
                    "With a LoRA",
                    (NO_LORA,),
                    value=NO_LORA,
                    info="To distil it: pick the good pictures as originals, and train on them.",
                )
                number(form, "original.lora_weight", "Weight of that LoRA", value=0.5)
            with gr.Row():
                number(form, "original.width", "Width", "In px; 0: what the checkpoint is used to.", value=0)
                number(
                    form, "original.height", "Height", "In px; 0: what the checkpoint is used to.", value=0
                )
        with gr.Row():
            self.generate = button("original.generate", "Generate", variant="primary")
            self.stop = small_button("original.interrupt", "Stop drawing", min_width=110)
            # The hosts' scripts for Alt+Enter press a button of this name.
            button("original.skip", "Skip", visible=False)
        self.gallery = gallery(label=words.CHOOSE, elem_id=elem_id("original.gallery"), columns=4)

    def lists(self, data: Any = None) -> Answer:
        """The host's lists and current checkpoint, as they are now."""
        host = self.parts.host
        names = [FOLLOW, *(one.name for one in host.checkpoints())]
        samplers = list(host.samplers())
        return {
            self.checkpoint: gr.update(choices=names),
            self.form["original.sampler"]: gr.update(
                choices=samplers, value=samplers[0] if samplers else None
            ),
            self.form["original.lora"]: gr.update(
                choices=[NO_LORA, *(lora_label(path, host) for path in host.loras())]
            ),
            self.line: pieces.checkpoint_line(host.current_checkpoint()),
        }

    def listed(self) -> set[Any]:
        """All that ``lists`` changes; the host is not asked for anything."""
        return {self.checkpoint, self.form["original.sampler"], self.form["original.lora"], self.line}

    def refreshed(self, data: Any) -> Answer:
        """The same after the host has read its folders again."""
        self.parts.host.refresh()
        return self.lists()

    def chosen(self, data: Any) -> Answer:
        """The line about the checkpoint that the list shows now."""
        found = chosen_checkpoint(data.get(self.checkpoint), self.parts.host)
        return {self.line: pieces.checkpoint_line(found)}

    def seen(self, data: Any, sent: dict[str, Any]) -> Answer:
        """The line about the host's current checkpoint, when that is another one than before."""
        if data.get(self.checkpoint) not in (None, "", FOLLOW):
            return {}
        line = str(pieces.checkpoint_line(self.parts.host.current_checkpoint()))
        if sent.get("line") == hash(line):
            return {}
        sent["line"] = hash(line)
        return {self.line: line}

    def request(self, data: Any) -> GenerateRequest:
        """What is to be drawn. Raises BadInput, also where the form asks for too much."""
        answers = self.form.answers(data)
        checkpoint = chosen_checkpoint(answers.get("original.checkpoint"), self.parts.host)
        return GenerateRequest(
            prompt=str(answers["original.prompt"] or "").strip()
            or (POCKET_PROMPT if checkpoint.embedded else ""),
            negative=str(answers["original.negative"] or ""),
            seed=whole(answers["original.seed"], "Seed", 0, LARGEST_SEED),
            count=whole(answers["original.count"], "Pictures", 1, MOST_DRAWN),
            sampler=str(answers["original.sampler"] or ""),
            steps=whole(answers["original.steps"], "Sampling steps", 1, 150),
            width=whole(answers["original.width"], "Width", 0, 4096),
            height=whole(answers["original.height"], "Height", 0, 4096),
            guidance=decimal(answers["original.guidance"], "CFG scale", 1, 30),
            loras=self._lora(answers),
            checkpoint=checkpoint.path,
        )

    def _lora(self, answers: Mapping[str, Any]) -> tuple[tuple[Path, float], ...]:
        """The LoRA that is drawn with, and its weight; nothing where none is chosen."""
        name = answers.get("original.lora")
        if name in (None, "", NO_LORA):
            return ()
        weight = decimal(answers["original.lora_weight"], "Weight of that LoRA", -10, 10)
        return ((lora_file(str(name), self.parts.host), weight),)

    def fits(self, sets: PictureSets) -> Answer:
        """What the section says and shows for a recipe that is given ``sets``."""
        said = sets.texts[0]
        answer: dict[Any, Any] = {
            self.head: pieces.heading("1", said.title, said.lead),
            self.place: gr.update(visible=bool(sets.first)),
        }
        # What the user chose for a recipe of pairs stays: paired sets are some of several originals too.
        return answer | ({self.several: gr.update(value=True)} if sets.many else {})

    def fitted(self) -> set[Any]:
        """All that ``fits`` changes."""
        return {self.head, self.place, self.several}

    def look(self, paths: Sequence[Path], sets: PictureSets) -> Answer:
        """The pictures that are chosen."""
        return {self.view: pieces.thumbs(paths, sets.texts[0].none, removable=True)}

    def draw(self, data: Any) -> Answer:
        """Have the host draw; the first picture becomes the original, unless several are to be chosen."""
        with self.drawing.work() as token:
            found = self.parts.host.generate(self.request(data), ignore, token)
        files = [str(one.path) for one in found]
        shown = [(files[i], f"seed {one.seed}") for i, one in enumerate(found)]
        return {
            self.gallery: gr.update(value=_opened(shown), visible=True),
            self.drawn: files,
            self.said: "",
            **self.taken([] if self._takes_several(data) else files[:1], data),
        }

    def pick(self, data: Any) -> Answer:
        """A picture of the gallery was clicked."""
        drawn, index = data[self.drawn], data[self.clicked]
        return self.taken(drawn[index : index + 1], data)

    def drop(self, data: Any) -> Answer:
        """Pictures were dropped in, or taken away; caption files alone change none of them."""
        from copier.app.pair_preview import keep_picture

        files = file_paths(data.get(self.files))
        pictures = pictures_among(files)
        if files and not pictures:
            return {}
        return self.taken([str(keep_picture(path, self.parts.settings)) for path in pictures], data)

    def take_out(self, data: Any) -> Answer:
        """No original any more."""
        return {self.originals: [], self.files: gr.update(value=None)}

    def take_one_out(self, data: Any) -> Answer:
        """One original less."""
        return {self.originals: [one for one in data[self.originals] if one != data[self.out]], self.out: ""}

    def taken(self, files: list[str], data: Any) -> Answer:
        """Pictures become the originals, or more of them."""
        before = data[self.originals] if self._takes_several(data) else []
        return {self.originals: [*before, *(one for one in files if one not in before)]}

    def _takes_several(self, data: Any) -> bool:
        return bool(data.get(self.several))


def pictures_among(files: Sequence[Path]) -> list[Path]:
    """Those that are no caption files."""
    return [one for one in files if one.suffix.lower() != CAPTION_ENDING]


def _opened(shown: list[tuple[str, str]]) -> list[tuple[Any, str]]:
    """As pictures: gradio serves only files of its own folders by their path."""
    from PIL import Image

    return [(Image.open(path), caption) for path, caption in shown]
