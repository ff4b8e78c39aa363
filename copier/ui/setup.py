"""The section "Setup": sd-scripts and its packages, where things are, and what they take on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from copier.app.job_kinds import INSTALL
from copier.errors import BadInput
from copier.ui import pieces, words
from copier.ui.form import Form, button, flag, html, kept, number
from copier.ui.gradio_versions import Answer
from copier.ui.parts import Parts
from copier.ui.request_form import decimal


class SetupSection:
    """``job`` holds the id of the installation that was started last on this page."""

    def __init__(self, form: Form, parts: Parts) -> None:
        self.form, self.parts = form, parts
        self.job = kept("setup.job", "")
        with gr.Row():
            with gr.Column(elem_classes="copier-card"):
                html(
                    "setup.trainer_head",
                    pieces.heading(
                        "", "sd-scripts", "Trains on real checkpoints. The builtin trainer needs none of it."
                    ),
                )
                self.trainer = html("setup.trainer")
                with gr.Row():
                    self.look = button("setup.look", "Check again", min_width=80)
                    self.install = button(
                        "setup.install", "Install or repair", variant="primary", min_width=140
                    )
                flag(form, "setup.tagger", "With the tagger", "What captions by WD14 need.")
                flag(form, "setup.again", "Anew", "Also what is there and current.")
                self.said = html("setup.said")
                self.status = html("setup.status")
                self.stop = button("setup.stop", "Stop the installation", size="sm", visible=False)
            with gr.Column(elem_classes="copier-card"):
                html(
                    "setup.folders_head",
                    pieces.heading(
                        "", "Folders and settings", "Set by the host, or by the variables in brackets."
                    ),
                )
                self.folders = html("setup.folders")
                html(
                    "setup.cache_head",
                    pieces.heading("", "Finished stages", "Kept so that a run reuses what was made before."),
                )
                self.cache = html("setup.cache")
                number(
                    form,
                    "setup.keep",
                    "Keep younger than",
                    "In days; older stages are deleted, and made again when needed.",
                    value=30,
                )
                self.prune = button("setup.prune", "Prune", min_width=90)
                self.pruned = html("setup.pruned")

    def shown(self, data: Any = None) -> Answer:
        """What is there now."""
        return {
            self.trainer: self._trainer(),
            self.folders: pieces.table(self._folders()),
            self.cache: self._cache(),
        }

    def _trainer(self) -> str:
        from copier.app.trainer import trainer_status

        return str(pieces.trainer(trainer_status(self.parts.settings)))

    def _folders(self) -> list[tuple[str, Any]]:
        settings, folders = self.parts.settings, self.parts.host.folders()
        return [
            (words.HOST, self.parts.host.name),
            (words.LORAS, str(folders.loras)),
            (words.OUTPUT, str(folders.output)),
            (words.CHECKPOINTS, "; ".join(map(str, folders.checkpoints)) or "–"),
            (words.DATA, str(settings.data)),
            (words.TRAINS, str(settings.python)),
            (words.SCRIPTS_FOLDER, str(settings.sd_scripts_dir or "the submodule")),
            (words.ACCELERATE, str(settings.accelerate or "–")),
        ]

    def _cache(self) -> str:
        from copier.app.cache import cached_stages

        stages = cached_stages(self.parts.settings)
        return str(pieces.note(f"{len(stages)} stages, {sum(one.size for one in stages) / 1e6:.1f} MB"))

    def installed(self, data: Mapping[Any, Any]) -> Answer:
        """Put the installation into the queue."""
        if self.parts.host.security().restricted:
            raise BadInput(
                "an installation runs code, and the WebUI can be reached from elsewhere: install with "
                "`copier trainer install`, or start the WebUI with --enable-insecure-extension-access"
            )
        answers = self.form.answers(data)
        payload = {name: bool(answers.get(f"setup.{name}")) for name in ("tagger", "again")}
        job = self.parts.jobs.submit_work(INSTALL, payload, title="Install sd-scripts' packages")
        return {self.job: job.id, self.said: ""}

    def stopped(self, data: Mapping[Any, Any]) -> Answer:
        """Stop the installation."""
        if data.get(self.job):
            self.parts.jobs.cancel(data[self.job])
        return {}

    def cut(self, data: Mapping[Any, Any]) -> Answer:
        """Delete old stages."""
        from copier.app.cache import prune

        days = decimal(self.form.answers(data).get("setup.keep"), "The number of days to keep", 0, 36500)
        removed = prune(self.parts.settings, keep_days=days)
        freed = sum(one.size for one in removed) / 1e6
        said = pieces.note(f"Deleted {len(removed)} stages: {freed:.1f} MB are free again.", "good")
        return {self.pruned: said, self.cache: self._cache()}

    def seen(self, data: Mapping[Any, Any], sent: dict[str, Any]) -> Answer:
        """How far the installation is, when that is news."""
        if not data.get(self.job):
            return {}
        view = self.parts.jobs.view(data[self.job])
        content = pieces.joined(pieces.job_status(view), pieces.log(view))
        if sent.get("install") == hash(content):
            return {}
        sent["install"] = hash(content)
        ended = view.job.state.ended
        return {
            self.status: content,
            self.stop: gr.update(visible=not ended),
            **({self.trainer: self._trainer()} if ended else {}),
        }

    def outputs(self) -> set[Any]:
        """All that ``seen`` may change."""
        return {self.status, self.stop, self.trainer}
