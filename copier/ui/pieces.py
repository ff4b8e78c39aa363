"""What the tab shows that is no component: texts and pictures as HTML, escaped by construction."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copier.app.jobs import Job, JobState, JobView, StageView
from copier.app.pages import loss_chart
from copier.app.pair_preview import PairView, thumbnail
from copier.app.ports import CheckpointInfo
from copier.markup import Content, Markup, duration, join, number, tag, weight_text
from copier.ui import words
from copier.ui.caption_rows import CaptionRow
from copier.ui.leaves import elem_id
from copier.ui.recipe_form import Problem
from copier.ui.stage_words import said_of, stage_words

if TYPE_CHECKING:
    from copier.app.estimate import Estimate
    from copier.app.trainer import TrainerStatus
    from copier.app.views import PairOfViews

_THUMB = 160
_SMALL = 96
_NEWEST = 12
"""Pictures on the way that are shown."""


def intro() -> Markup:
    """The first thing that is seen: what this is for, in three steps."""
    steps = (tag("li", tag("b", name), tag("span", text), class_="copier-step") for name, text in words.STEPS)
    return tag(
        "div",
        tag("h2", words.TITLE),
        tag("p", words.LEAD),
        tag("ol", steps, class_="copier-steps"),
        class_="copier-intro",
    )


def heading(step: str, title: str, lead: str = "") -> Markup:
    """The head of a section; ``step`` is its number, or "" ."""
    badge = tag("span", step, class_="copier-badge") if step else None
    return tag(
        "div", tag("h3", badge, tag("span", title)), tag("p", lead) if lead else None, class_="copier-head"
    )


def note(text: str, kind: str = "plain") -> Markup:
    """One sentence; ``kind`` is plain, good, warning or bad."""
    return tag("div", text, class_=f"copier-note copier-{kind}") if text else Markup("")


def checkpoint_line(checkpoint: CheckpointInfo | None) -> Markup:
    """What is known of a checkpoint."""
    if checkpoint is None:
        return note(words.NO_CHECKPOINT, "warning")
    facts = [checkpoint.name, _FAMILIES.get(checkpoint.family, checkpoint.family)]
    if checkpoint.sha256:
        facts.append(checkpoint.sha256[:10])
    more = tag("span", words.POCKET) if checkpoint.embedded else None
    return tag("div", tag("span", " · ".join(facts)), more, class_="copier-facts")


_FAMILIES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sd3": "SD 3", "flux": "FLUX"}


def thumbs(paths: Sequence[Path], none: str, *, removable: bool = False) -> Markup:
    """Chosen pictures, small; ``none`` says that there is none. Those that are ``removable`` have a cross."""
    if not paths:
        return empty(none)
    tiles = (
        tag(
            "figure",
            tag("img", src=thumbnail(one, _THUMB), alt=one.name),
            tag("figcaption", one.name, title=one.name),
            _cross(one) if removable else None,
        )
        for one in paths
    )
    return tag("div", tiles, class_="copier-thumbs")


def _cross(picture: Path) -> Markup:
    return tag(
        "button", "×", type="button", class_="copier-cross", title=words.TAKE_OUT, data_out=str(picture)
    )


def empty(text: str) -> Markup:
    """What is said where something will be."""
    return tag("div", text, class_="copier-empty")


def caption_table(rows: Sequence[CaptionRow]) -> Markup:
    """A field for the caption of each picture; the page's script keeps what is typed there."""
    if not rows:
        return empty(words.NO_CAPTIONED)
    lines = [tag("tr", (tag("th", head) for head in words.CAPTION_HEADS))]
    names = tuple(dict.fromkeys(one.set_name for one in rows))
    for name in names:
        if len(names) > 1:
            lines.append(tag("tr", tag("th", words.set_words(name).title, colspan=len(words.CAPTION_HEADS))))
        lines += [_caption_line(one) for one in rows if one.set_name == name]
    return tag("table", tag("tbody", lines), class_="copier-captions")


def _caption_line(row: CaptionRow) -> Markup:
    name = row.picture.name
    return tag(
        "tr",
        tag("td", tag("img", src=thumbnail(row.picture, _SMALL), alt=name), tag("span", name, title=name)),
        tag("td", tag("textarea", row.text, rows=3, data_caption=row.key, aria_label=name)),
        tag("td", data_told=row.key),
    )


def captions_told(rows: Sequence[CaptionRow]) -> Markup:
    """What the trainings are told of each picture, for the page's script; and whether they read captions."""
    if not rows:
        return Markup("")
    told = (
        tag("span", words.NO_CAPTION if one.told == "" else one.told, data_for=one.key)
        for one in rows
        if one.told is not None
    )
    return join((tag("div", told, class_="copier-told"), _captions_note(rows)))


def _captions_note(rows: Sequence[CaptionRow]) -> Markup:
    read = [one for one in rows if one.told is not None]
    if not read:
        return note(words.CAPTIONS_UNREAD)
    missing = any(not one.text.strip() for one in read)
    return note(words.CAPTIONS_MISSING, "warning") if missing else note(words.CAPTIONS_READ, "good")


def pairs(views: Sequence[PairView]) -> Markup:
    """Each pair as a row: both with a divider to drag, where they differ, and what to know."""
    if not views:
        return empty(words.AN_EDITED.none)
    return tag("div", (_pair(view) for view in views), class_="copier-pairs")


def _pair(view: PairView) -> Markup:
    size = f"{view.size[0]} x {view.size[1]} px"
    if not view.b:
        only = tag("figure", tag("img", src=view.a, alt=words.A), tag("figcaption", size))
        return tag("div", only, class_="copier-pair")
    facts: list[Content] = [tag("span", view.name), tag("span", size)]
    if view.difference:
        facts.append(tag("span", tag("b", f"{100 * view.changed:.1f} %"), " ", tag("span", words.CHANGED)))
    shown: list[Content] = [_swipe(view)]
    if view.difference:
        difference = tag("img", src=view.difference, alt=words.DIFFERENCE)
        shown.append(tag("figure", difference, tag("figcaption", words.DIFFERENCE)))
    return tag(
        "div",
        tag("div", shown, class_="copier-pair"),
        tag("div", facts, class_="copier-facts"),
        note(view.problem, "bad"),
        (note(warning, "warning") for warning in view.warnings),
    )


def framings(views: Sequence[PairOfViews]) -> Markup:
    """The crops and zooms of a pair, A above B."""
    if not views:
        return Markup("")
    figures = (
        tag(
            "figure",
            tag("img", src=one.a, alt=words.A),
            tag("img", src=one.b, alt=words.B) if one.b else None,
            tag("figcaption", one.place, title=one.place),
        )
        for one in views
    )
    said = words.VIEWS if views[0].b else words.VIEWS_OF_A
    return join((note(said), tag("div", figures, class_="copier-thumbs copier-views")))


def _swipe(view: PairView) -> Markup:
    return tag(
        "figure",
        tag(
            "div",
            tag("img", src=view.a, alt=words.A),
            tag("img", src=view.b, alt=words.B, class_="copier-over"),
            tag("span", "A", class_="copier-tag copier-tag-a"),
            tag("span", "B", class_="copier-tag copier-tag-b"),
            tag("input", type="range", min=0, max=100, value=50, aria_label=words.DRAG),
            class_="copier-swipe",
        ),
        tag("figcaption", words.DRAG),
    )


def problems(found: Sequence[Problem], *, busy: bool = False) -> Markup:
    """Why Start is blocked; the page's script puts each sentence beside its field too."""
    if not found:
        return note(words.BUSY, "plain") if busy else note(words.READY, "good")
    lines = (tag("li", one.message, data_for=elem_id(one.path)) for one in found)
    return tag(
        "div", tag("b", words.BLOCKED), tag("ul", lines), class_="copier-note copier-warning copier-blocked"
    )


def expected(found: Estimate) -> Markup:
    """Time and memory of a run, as far as anything is known."""
    reused = sum(one.reused for one in found.stages)
    facts = [f"about {duration(found.seconds)}" if found.seconds is not None else words.UNKNOWN_TIME]
    if found.memory:
        size = "" if found.largest is None else f" for {found.largest[0]} x {found.largest[1]} px"
        facts.append(f"{found.memory / 2**30:.1f} GB{size}")
    if reused:
        facts.append(f"{reused} of {len(found.stages)} stages are there already")
    return tag("div", (tag("span", fact) for fact in facts), class_="copier-facts")


def job_status(view: JobView | None, *, runner: str = "here", other: str = "") -> Markup:
    """The job that is watched: its state, how far it is, and its stages. ``other`` is one that runs now."""
    if view is None:
        return tag("div", words.NO_JOB, class_="copier-empty", data_live="0")
    job = view.job
    live = "0" if job.state.ended else "1"
    parts: list[Content] = [_job_head(job)]
    current = view.current
    if current is not None:
        parts.append(_progress(current))
    if job.state is JobState.QUEUED and runner == "nobody":
        parts.append(note("nobody works the queue: restart the program", "warning"))
    if other:
        parts.append(note(f"{other} is at work now: History shows it."))
    if job.failure is not None:
        parts.append(note(job.failure.message, "bad"))
    if view.stages:
        parts.append(_stages(view.stages, stage_words(job)))
    state = {"data_live": live, "data_job": job.id, "data_state": job.state.value, "data_other": other}
    return tag("div", parts, class_="copier-job", **state)


def _job_head(job: Job) -> Markup:
    took = duration(job.seconds) if job.seconds else ""
    chip = tag("span", words.STATES[job.state.value], class_=f"copier-chip copier-{_LOOKS[job.state.value]}")
    return tag(
        "div",
        tag("b", job.title or job.id),
        chip,
        tag("span", took, class_="copier-faint"),
        class_="copier-line",
    )


_LOOKS = {
    "done": "good", "reused": "good", "failed": "bad", "running": "busy", "stopped": "warning",
    "interrupted": "warning", "queued": "plain", "planned": "plain",
}  # fmt: skip


def _progress(stage: StageView) -> Markup:
    share = stage.step / stage.steps if stage.steps else 0.0
    facts = []
    if stage.steps:
        facts.append(f"{stage.step} of {stage.steps}")
    if stage.loss is not None:
        facts.append(f"loss {stage.loss:.4f}")
    if stage.rate is not None:
        facts.append(
            f"{stage.rate:.2f} s per step" if stage.rate >= 0.01 else f"{stage.rate * 1e3:.1f} ms per step"
        )
    if stage.left is not None:
        facts.append(f"{duration(stage.left)} left")
    bar = tag("div", tag("div", style=f"width:{100 * share:.1f}%"), class_="copier-bar")
    name = tag("b", stage.name)
    return tag(
        "div",
        tag("div", name, tag("span", " · ".join(facts)), class_="copier-line"),
        bar,
        class_="copier-progress",
    )


def _stages(stages: Sequence[StageView], known: dict[str, str]) -> Markup:
    rows = []
    for one in stages:
        chip = tag("span", words.STATES.get(one.state, one.state),
                   class_=f"copier-chip copier-{_LOOKS.get(one.state, 'plain')}")  # fmt: skip
        took = duration(one.seconds) if one.seconds else ""
        name = one.name if one.round <= 1 else f"{one.name} · {one.round}"
        rows.append(
            tag(
                "tr",
                tag("td", tag("span", name), tag("span", said_of(one.name, known), class_="copier-does")),
                tag("td", chip),
                tag("td", took),
                tag("td", one.reason, class_="copier-why"),
            )
        )
    return tag("table", tag("tbody", rows), class_="copier-stages")


def curve(view: JobView | None) -> Markup:
    """The losses of the training that runs, or of the last one."""
    if view is None:
        return Markup("")
    trained = [stage for stage in view.stages if len(stage.losses) > 1]
    running = [stage for stage in trained if stage.state == "running"]
    if not trained:
        return Markup("")
    shown = (running or trained)[-1]
    chart = loss_chart(shown.losses, f"loss of {shown.name}")
    caption = tag("figcaption", tag("span", words.LOSS), " · ", tag("span", shown.name))
    return tag("figure", chart, caption, class_="copier-curve")


def samples(view: JobView | None) -> Markup:
    """Pictures that were drawn on the way."""
    if view is None or not view.samples:
        return Markup("")
    tiles = [
        tag("figure", tag("img", src=thumbnail(path, _THUMB), alt=label), tag("figcaption", label))
        for label, path in view.samples[-_NEWEST:]
        if path.is_file()
    ]
    return tag("div", tag("b", words.SAMPLES), tag("div", tiles, class_="copier-thumbs"))


def log(view: JobView | None) -> Markup:
    """The latest lines."""
    lines = "\n".join(view.log) if view is not None else ""
    return tag("pre", lines, class_="copier-log") if lines else Markup("")


def result(outcome: Mapping[str, Any] | None) -> Markup:
    """The main figures of a finished run, a tile each."""
    if outcome is None:
        return empty(words.NO_RESULT)
    tiles: list[Content] = []
    gate = outcome.get("gate")
    if gate:
        passed = words.PASSED if gate["passed"] else words.NOT_PASSED
        hint = f"{number(gate['median'])}, at most {number(gate['median_limit'])}"
        tiles.append(_tile(words.GATE, tag("span", passed), hint, good=gate["passed"]))
    for one in outcome.get("results") or ():
        tiles += _figures(one)
    advice = note(words.GATE_ADVICE if gate and not gate["passed"] else "", "warning")
    return tag("div", tag("div", tiles, class_="copier-tiles"), advice)


def _figures(found: Mapping[str, Any]) -> list[Content]:
    mine, control = found.get("lora") or {}, found.get("control") or {}
    names = (
        (("effect", words.EFFECT, words.EFFECT_HINT), ("leakage", words.LEAKAGE, words.LEAKAGE_HINT))
        if found.get("measures") == "effect"
        else (
            ("magnitude", words.CHANGE, words.CHANGE_HINT),
            ("consistency", words.CONSISTENCY, words.CONSISTENCY_HINT),
        )
    )
    tiles: list[Content] = []
    for name, label, hint in names:
        if name in mine:
            lines: list[Content] = [tag("div", hint)]
            if name in control:
                lines.append(tag("div", tag("span", words.CONTROL), f" {number(control[name])}"))
            tiles.append(_tile(label, number(mine[name]), lines))
    suggested = found.get("suggested_weights")
    if suggested:
        tiles.append(
            _tile(
                words.WEIGHTS,
                " … ".join(weight_text(one) for one in dict.fromkeys(suggested)),
                words.WEIGHTS_HINT,
            )
        )
    return tiles


def _tile(name: str, value: Content, hint: Content, *, good: bool | None = None) -> Markup:
    look = "" if good is None else (" copier-good" if good else " copier-bad")
    return tag(
        "div",
        tag("div", name, class_="copier-faint"),
        tag("div", value, class_=f"copier-value{look}"),
        tag("div", hint, class_="copier-faint"),
        class_="copier-tile",
    )


def framed(page: str) -> Markup:
    """A whole page of our own inside the tab; its looks cannot touch the host's, nor the host's its own."""
    if not page:
        return Markup("")
    return tag("iframe", srcdoc=page, class_="copier-frame", title=words.RESULT, sandbox="allow-same-origin")


def pulse(count: int) -> Markup:
    """Tells the page's script that an answer arrived."""
    return tag("span", class_="copier-pulse", data_count=count)


def installed(lora: Path) -> Markup:
    """A LoRA was put into the LoRA folder; tells the page's script to have the host's cards read again."""
    return tag("span", note(f"Installed: {lora.name}.", "good"), data_installed=lora.stem)


def comparison(first: str, second: str, found: Mapping[str, Any]) -> Markup:
    """Two runs beside each other: settings that differ, and figures."""
    head = tag("tr", tag("th", ""), tag("th", first), tag("th", second))
    rows = [
        tag("tr", tag("td", name), tag("td", _plain(one)), tag("td", _plain(other)))
        for part in ("settings", "figures")
        for name, (one, other) in found.get(part, {}).items()
    ]
    if not rows:
        return note(words.ALIKE)
    return tag("div", tag("table", tag("tbody", head, rows), class_="copier-compare"), class_="copier-scroll")


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return number(value, 4).rstrip("0").rstrip(".")
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def table(rows: Sequence[tuple[str, Content]]) -> Markup:
    """Names and what is known of each."""
    lines = (tag("tr", tag("td", name), tag("td", value)) for name, value in rows)
    return tag("table", tag("tbody", lines), class_="copier-facts-table")


def inspected(found: Mapping[str, Any]) -> Markup:
    """What a file is and holds."""
    rows: list[tuple[str, Content]] = [
        (words.FILE, f"{found['name']}, {found['bytes'] / 1e6:.1f} MB"),
        (words.KIND, " ".join(part for part in (found["family"], found["kind"], found["layout"]) if part)),
        (words.TENSORS, f"{found['tensors']} ({_counts(found['dtypes'])})"),
    ]
    if "modules" in found:
        rows.append((words.MODULES, _counts(found["modules"])))
        rows += [(f"Rank, {kind}", _counts(ranks)) for kind, ranks in found["ranks"].items()]
        rows.append((words.ALPHA, _counts(found["alphas"])))
        rows += [(f"Norm, {block}", number(norm, 3)) for block, norm in found["norms"].items()]
    if found["recipe"] is not None:
        rows.append((words.CARRIES, f"{found['recipe']['name']}: {found['recipe']['title']}"))
    if found["recipe_problem"]:
        rows.append((words.CARRIES, found["recipe_problem"]))
    rows += [(name, _plain(text)) for name, text in sorted(found["metadata"].items())]
    return tag("div", table(rows), class_="copier-scroll")


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def operation(outcome: Mapping[str, Any] | None) -> Markup:
    """What a finished operation wrote."""
    if outcome is None or "output" not in outcome:
        return Markup("")
    rows: list[tuple[str, Content]] = [(words.WROTE, Path(outcome["output"]).name)]
    if "changed" in outcome:
        rows.append((words.WRITTEN, str(outcome["changed"])))
    if outcome.get("residual"):
        rows.append((words.LOST, f"{100 * outcome['residual']:.3g} % of the norm"))
    return table(rows)


def trainer(status: TrainerStatus) -> Markup:
    """What training with sd-scripts has, and what it lacks."""
    packages = status.state.value if status.state is not None else "–"
    scripts = status.sd_scripts.version if status.sd_scripts is not None else "–"
    rows: list[tuple[str, Content]] = [
        (words.SD_SCRIPTS, scripts),
        (words.PACKAGES, packages),
        (words.PYTHON, str(status.interpreter.path)),
    ]
    rows += [
        (words.ON_DISK, f"{one.size / 1e6:.0f} MB, {one.packages} packages")
        for one in status.overlays
        if one.used
    ]
    ready = note(words.TRAINER_READY, "good") if status.ready else None
    return join((ready, table(rows), (note(problem, "warning") for problem in status.problems)))


def moment(seconds: float) -> str:
    """A time of today as a clock shows it, an earlier one with its date."""
    then, now = datetime.datetime.fromtimestamp(seconds), datetime.datetime.now()
    return then.strftime("%H:%M" if then.date() == now.date() else "%Y-%m-%d %H:%M")


def joined(*parts: Content) -> str:
    """Several pieces as one text."""
    return str(join(parts))
