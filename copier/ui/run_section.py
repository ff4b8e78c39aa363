"""The sections "Run", "Result" and "History": they only observe jobs; closing the page stops nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from copier.app.jobs import RUN, Job, JobState, JobView
from copier.app.measure_job import MEASURE, measure_payload
from copier.app.names import folder_name
from copier.errors import BadInput, CopierError
from copier.fields import FIELDS
from copier.ui import pieces, words
from copier.ui.form import Form, button, choice, flag, html, kept, number, small_button, text
from copier.ui.gradio_versions import Answer
from copier.ui.leaves import elem_id
from copier.ui.parts import Parts
from copier.ui.request_form import Wanted, chosen_checkpoint, decimal

OFFERS = 3
"""Buttons that repeat a failed job with other settings."""
MOST_LISTED = 50
NEWEST = "The newest"
PREVIEWS = {"b": "B, edited", "a": "A, the original"}
"""What may be the picture on a card, by the name of its set."""


class RunSection:
    """Start and stop, and what the watched job does.

    ``watched`` holds the id of a job that the user chose to see, or "" for the one that runs; ``sent`` what
    the page shows already, so that nothing is sent twice.
    """

    def __init__(self, form: Form, parts: Parts) -> None:
        self.form, self.parts = form, parts
        self.watched = kept("run.watched", "")
        self.sent = kept("run.sent", {})
        with gr.Column(elem_classes="copier-card", elem_id=elem_id("run.bar")):
            self.head = html("run.head", pieces.heading("3", words.RUN))
            self.problems = html("run.problems", pieces.problems(()))
            self.estimate = html("run.estimate")
            with gr.Row():
                self.start = button("run.start", "Start", variant="primary", min_width=120)
                self.queue = button("run.queue", "Add to queue", min_width=120)
                self.stop = button("run.interrupt", "Stop", variant="stop", min_width=90, interactive=False)
            self.said = html("run.said")
        with gr.Column(elem_classes="copier-card"):
            self.status = html("run.status", pieces.job_status(None))
            self.offers = [
                button(f"run.offer{i + 1}", "Again", size="sm", visible=False) for i in range(OFFERS)
            ]
            self.curve = html("run.curve")
            self.samples = html("run.samples")
            with gr.Accordion("Log", open=False, elem_id=elem_id("run.log_fold")):
                self.log = html("run.log")
            with gr.Row(elem_classes="copier-quiet"):
                self.poll = small_button("run.poll", "Refresh", min_width=80)
                self.check = small_button("run.check", "Check", min_width=80)
                self.opened = small_button("run.opened", "Lists", min_width=80)
            self.pulse = html("run.pulse")
            self.checked = html("run.checked")
            self.listed = html("run.listed")
        self.result = ResultPart(form, parts)
        self.history = HistoryPart(form, parts)

    def started(self, found: Wanted) -> Answer:
        """Put the run into the queue and watch it."""
        job = self._submitted(found)
        return {self.watched: job.id, self.said: "", **self._blocked()}

    def queued(self, found: Wanted) -> Answer:
        """Put the run into the queue; what is watched stays."""
        job = self._submitted(found)
        return {
            self.said: pieces.note(f"{job.title or job.id} waits in the queue.", "good"),
            **self._blocked(),
        }

    def _submitted(self, found: Wanted) -> Job:
        assert found.request is not None
        return self.parts.jobs.submit(
            found.request, control=found.control, seeds=found.seeds, title=found.title or _title(found)
        )

    def _blocked(self) -> Answer:
        return {self.start: gr.update(interactive=False)}

    def stopped(self, data: Any) -> Answer:
        """Stop the job that is watched."""
        job = self._watched(data)
        if job is None or job.state.ended:
            raise BadInput("nothing runs that could be stopped")
        self.parts.jobs.cancel(job.id)
        return {
            self.said: pieces.note(words.STOPPING),
            self.stop: gr.update(interactive=False),
        }

    def _watched(self, data: Mapping[Any, Any]) -> Job | None:
        """The job that the page shows: the chosen one, else the one that runs, else the newest."""
        jobs = self.parts.jobs
        if data.get(self.watched):
            try:
                return jobs.job(data[self.watched])
            except CopierError:
                pass  # it was deleted, by another page or the command line
        current = jobs.current()
        if current is not None:
            return current
        return next(iter(jobs.jobs()), None)

    def observe(self, data: Mapping[Any, Any]) -> Answer:
        """What is new since the page was last told."""
        jobs = self.parts.jobs
        job = self._watched(data)
        view = jobs.view(job.id) if job is not None else None
        other = self._other(job)
        sent = dict(data.get(self.sent) or {})
        fresh: dict[Any, Any] = {}
        shown: tuple[tuple[Any, Any, Callable[[], str]], ...] = (
            (self.status, None, lambda: pieces.job_status(view, runner=jobs.runner(), other=other)),
            (self.curve, None, lambda: pieces.curve(view)),
            (self.samples, _sample_names(view), lambda: pieces.samples(view)),
            (self.log, None, lambda: pieces.log(view)),
        )
        for component, mark, content in shown:
            made = content() if mark is None else ""
            mark = hash(mark if mark is not None else made)
            if sent.get(component.elem_id) != mark:
                sent[component.elem_id] = mark
                fresh[component] = made or content()
        fresh |= self._buttons(view, sent)
        fresh |= self.result.seen(view, sent)
        fresh |= self.history.seen(jobs.jobs(), sent)
        count = int(sent.get("count", 0)) + 1
        sent["count"] = count
        return {**fresh, self.sent: sent, self.pulse: str(pieces.pulse(count))}

    def _other(self, job: Job | None) -> str:
        """The title of the job that runs while the page shows one that has ended, or ""."""
        current = self.parts.jobs.current()
        if job is None or not job.state.ended or current is None or current.state is not JobState.RUNNING:
            return ""
        return current.title or current.id

    def _buttons(self, view: JobView | None, sent: dict[str, Any]) -> Answer:
        state = None if view is None else view.job.state
        offers = self._offered(view)
        mark = hash((state, offers))
        if sent.get("buttons") == mark:
            return {}
        sent["buttons"] = mark
        live = state is not None and not state.ended
        updates: dict[Any, Any] = {self.stop: gr.update(interactive=live)}
        for i, one in enumerate(self.offers):
            label = offers[i] if i < len(offers) else None
            updates[one] = gr.update(visible=label is not None, value=label or "Again")
        return updates

    def _offered(self, view: JobView | None) -> tuple[str, ...]:
        """What a job that ended without a LoRA can be repeated with."""
        if view is None or view.job.state not in _UNFINISHED:
            return ()
        changes = view.job.failure.settings if view.job.failure is not None else ()
        again = "Go on" if view.job.state in (JobState.STOPPED, JobState.INTERRUPTED) else "Again"
        return (again, *(f"Again with {change_words(change)}" for change in changes[: OFFERS - 1]))

    def again(self, data: Mapping[Any, Any], number: int) -> Answer:
        """Repeat the watched job, with the setting of that button."""
        job = self._watched(data)
        if job is None:
            raise BadInput("there is no job to repeat")
        changes = job.failure.settings[number - 1 : number] if job.failure is not None and number else ()
        new = self.parts.jobs.retry(job.id, changes=changes)
        return {self.watched: new.id, self.said: ""}

    def outputs(self) -> set[Any]:
        """All that ``observe`` may change."""
        own = {
            self.status,
            self.curve,
            self.samples,
            self.log,
            self.stop,
            self.sent,
            self.pulse,
            *self.offers,
        }
        return own | self.result.outputs() | self.history.outputs()


def change_words(change: str) -> str:
    """A change of a recipe, such as ``training.batch_size=1``, as a button says it: "batch size 1"."""
    path, _, value = change.partition("=")
    known = FIELDS["TrainingSpec"].get(path.rpartition(".")[2])
    if known is None:
        return change
    name = known.label[:1].lower() + known.label[1:]
    return name if value == "true" else f"{name} {value}"


_UNFINISHED = (JobState.FAILED, JobState.STOPPED, JobState.INTERRUPTED)


def _sample_names(view: JobView | None) -> tuple[str, ...]:
    return tuple(str(path) for _, path in view.samples) if view is not None else ()


def _title(found: Wanted) -> str:
    assert found.request is not None
    edits = found.request.edits
    return edits[0].name.replace("_", " ").capitalize() if edits else found.request.recipe.title


class ResultPart:
    """The figures, the report, and installing the LoRA. ``shown`` holds the id of the job they are of."""

    def __init__(self, form: Form, parts: Parts) -> None:
        self.form, self.parts = form, parts
        self.shown = kept("result.shown", "")
        self.installed_as = kept("result.installed_as", "")
        self.linked = False
        """Whether ``use`` leads anywhere: in a WebUI."""
        with gr.Column(elem_classes="copier-card"):
            html("result.head", pieces.heading("", words.RESULT))
            self.figures = html("result.figures", pieces.result(None))
            with gr.Column(visible=False, elem_id=elem_id("result.installing")) as self.installing:
                with gr.Row():
                    text(form, "result.name", "Name", "Of the new file in the LoRA folder.")
                    number(form, "result.weight", "Preferred weight", "On the card.", value=1)
                with gr.Row():
                    text(
                        form,
                        "result.activation",
                        "Activation text",
                        "On the card; empty for most such LoRAs.",
                    )
                    text(form, "result.notes", "Notes", "On the card.")
                choice(form, "result.preview", "Preview", (*PREVIEWS.values(), "None"), value=PREVIEWS["b"])
                with gr.Row():
                    self.install = button("result.install", "Install in the LoRA folder", variant="primary")
                    self.use = button("result.use", "Use in txt2img", visible=False)
                with gr.Row():
                    choice(form, "result.checkpoint", "Measure on another checkpoint", (), scale=3)
                    self.measure = small_button("result.measure", "Measure", min_width=90)
                self.said = html("result.said")

    def lists(self) -> Answer:
        """The checkpoints on which a result can be measured."""
        names = [one.name for one in self.parts.host.checkpoints()]
        return {self.form["result.checkpoint"]: gr.update(choices=names)}

    def measured(self, data: Mapping[Any, Any]) -> Answer:
        """Put a weight strip on that checkpoint into the queue."""
        job = self.parts.jobs.job(str(data.get(self.shown) or ""))
        host = self.parts.host
        given = data.get(self.form["result.checkpoint"])
        if not given:
            raise BadInput("no checkpoint is chosen: choose the one to measure on")
        checkpoint = chosen_checkpoint(given, host)
        request, lora = job.request, Path((job.outcome or {})["result"])
        title = f"{job.title or lora.stem} on {checkpoint.name}"
        payload = measure_payload(
            lora,
            checkpoint.path,
            host.folders().output / folder_name(title),
            edit=next(iter(request.edits), None),
            device=request.device,
            threads=request.threads,
        )
        queued = self.parts.jobs.submit_work(MEASURE, payload, title=title)
        return {self.said: pieces.note(f"{queued.title} waits in the queue; History shows it.", "good")}

    def below(self) -> None:
        """The report, across the whole width."""
        with gr.Accordion(
            "Report: gate, weight strip, loss", open=True, visible=False, elem_id=elem_id("result.fold")
        ) as self.fold:
            self.report = html("result.report")

    def outputs(self) -> set[Any]:
        """All that ``seen`` may change."""
        return {self.shown, self.figures, self.report, self.fold, self.installing, self.installed_as,
                self.use, *self.form.under("result")}  # fmt: skip

    def seen(self, view: JobView | None, sent: dict[str, Any]) -> Answer:
        """The result of the watched job, when there is another one than before."""
        measured = view is not None and view.job.kind in (RUN, MEASURE)
        done = view is not None and measured and view.job.state is JobState.DONE
        key = view.job.id if view is not None and done else ""
        if sent.get("result") == key:
            return {}
        sent["result"] = key
        if view is None or not done or view.job.outcome is None:
            return {
                self.shown: "",
                **self._not_installed(),
                self.figures: pieces.result(None),
                self.report: "",
                self.fold: gr.update(visible=False),
                self.installing: gr.update(visible=False),
            }
        return self._filled(view.job)

    def _filled(self, job: Job) -> Answer:
        from copier.app.pages import report_page

        outcome = job.outcome or {}
        report = outcome.get("report")
        try:
            page = report_page(Path(report["html"]).parent) if report else ""
        except BadInput:
            page = ""
        return {
            self.shown: job.id,
            **self._not_installed(),
            self.figures: pieces.joined(
                pieces.result(outcome), pieces.note("" if report else words.NO_REPORT, "plain")
            ),
            self.report: pieces.framed(page),
            self.fold: gr.update(visible=bool(page)),
            self.installing: gr.update(visible=job.kind == RUN),
            **(self._offered(outcome) if job.kind == RUN else {}),
        }

    def _not_installed(self) -> Answer:
        return {self.installed_as: "", self.use: gr.update(visible=False)}

    def _offered(self, outcome: Mapping[str, Any]) -> Answer:
        """What the form for the card begins with."""
        return {
            self.form["result.name"]: gr.update(value=Path(outcome["result"]).stem),
            self.form["result.weight"]: gr.update(value=_weight(outcome)),
        }

    def installed(self, data: Mapping[Any, Any]) -> Answer:
        """Put the LoRA into the folder under the name that was given."""
        from copier.app.installing import Card, install_lora

        job = self.parts.jobs.job(str(data.get(self.shown) or ""))
        answers = self.form.answers(data)
        card = Card(
            activation=str(answers.get("result.activation") or ""),
            weight=decimal(answers.get("result.weight"), "Preferred weight", -10, 10),
            notes=str(answers.get("result.notes") or ""),
        )
        outcome = job.outcome or {}
        host, name = self.parts.host, str(answers.get("result.name") or "").strip()
        folder = host.folders().loras
        folder.mkdir(parents=True, exist_ok=True)
        preview = _preview(outcome, answers.get("result.preview"))
        place = install_lora(Path(outcome["result"]), folder, name, card=card, preview=preview)
        host.refresh()
        return {
            self.said: pieces.installed(place.lora),
            self.installed_as: place.lora.stem,
            self.use: gr.update(visible=self.linked),
        }


def _preview(outcome: Mapping[str, Any], given: Any) -> Path | None:
    """The picture that the card shows: the edited one or the original, where there is one."""
    files = outcome["files"][0]
    name = next((name for name, one in PREVIEWS.items() if given == one), "")
    place = Path(files[name]) if name in files else None
    return place if place is not None and place.is_file() else None


def _weight(outcome: Mapping[str, Any]) -> float:
    """A good weight for the card: the middle of those that the report suggests, else 1."""
    for one in outcome.get("results") or ():
        suggested = one.get("suggested_weights")
        if suggested:
            return round(sum(suggested) / len(suggested), 2)
    return 1.0


class HistoryPart:
    """Earlier jobs: see again, use again, compare, delete."""

    def __init__(self, form: Form, parts: Parts) -> None:
        self.form, self.parts = form, parts
        with gr.Column(elem_classes="copier-card"):
            html("history.head", pieces.heading("", words.HISTORY))
            choice(form, "history.job", "Run", (NEWEST,), value=NEWEST)
            with gr.Row():
                self.open = button("history.open", "Show", size="sm", min_width=70)
                self.use = button("history.use", "Use its settings", size="sm", min_width=110)
                self.delete = button("history.delete", "Delete", size="sm", min_width=80)
            flag(
                form,
                "history.files",
                "Delete its files too",
                "Those that it put into the output folder, and stages that no other run uses.",
            )
            with gr.Row():
                choice(form, "history.other", "Compare with", ())
                self.compare = small_button("history.compare", "Compare", min_width=90)
            self.said = html("history.said")

    def outputs(self) -> set[Any]:
        """All that ``seen`` may change."""
        return {self.form["history.job"], self.form["history.other"]}

    def seen(self, jobs: Any, sent: dict[str, Any]) -> Answer:
        """The list, when it changed."""
        labels = [label(job) for job in jobs[:MOST_LISTED]]
        mark = hash(tuple(labels))
        if sent.get("history") == mark:
            return {}
        sent["history"] = mark
        return {
            self.form["history.job"]: gr.update(choices=[NEWEST, *labels]),
            self.form["history.other"]: gr.update(choices=labels),
        }

    def job(self, given: Any) -> Job:
        """The job that a list shows so. Raises BadInput."""
        jobs = self.parts.jobs.jobs()
        if given in (None, "", NEWEST) and jobs:
            return jobs[0]
        id = str(given or "").rpartition("· ")[2]
        if not id:
            raise BadInput("no run is chosen: choose one from the list")
        return self.parts.jobs.job(id)

    def chosen(self, data: Mapping[Any, Any]) -> Job:
        """The job that is chosen."""
        return self.job(data.get(self.form["history.job"]))

    def compared(self, data: Mapping[Any, Any]) -> Answer:
        """Two runs beside each other."""
        other = data.get(self.form["history.other"])
        if not other:
            raise BadInput("no run is chosen to compare with: choose one from the list")
        first, second = self.chosen(data), self.job(other)
        if first.id == second.id:
            raise BadInput("both are the same run: choose another one to compare with")
        found = self.parts.jobs.compare(first.id, second.id)
        return {self.said: pieces.comparison(label(first), label(second), found)}

    def weighed(self, data: Mapping[Any, Any]) -> Answer:
        """What the chosen run takes on the disk: alone, and with its files."""
        use = self.parts.jobs.disk_use(self.chosen(data).id)
        files = f"{(use.output + use.stages) / 1e6:.1f} MB of files and stages that only it uses"
        return {self.said: pieces.note(f"It takes {use.job / 1e6:.1f} MB, and {files}.")}

    def removed(self, data: Mapping[Any, Any]) -> Answer:
        """Forget a run; says what that took on the disk."""
        job = self.chosen(data)
        files = bool(self.form.answers(data).get("history.files"))
        use = self.parts.jobs.remove(job.id, output=files, stages=files)
        self_note = pieces.note(f"Deleted {label(job)}: {use.total / 1e6:.1f} MB are free again.", "good")
        return {self.said: self_note, self.form["history.job"]: gr.update(value=NEWEST)}


def label(job: Job) -> str:
    """How a list shows a job; ends with its id."""
    return f"{pieces.moment(job.created)} {job.title or job.kind}, {words.STATES[job.state.value]} · {job.id}"
