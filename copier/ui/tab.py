"""The tab: its sections in one page, and which handler listens to what."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Blocks

from copier.errors import BadInput, CopierError, NotInstalled
from copier.recipe import Recipe
from copier.ui import gradio_versions, pieces, words
from copier.ui.edited import EditedSection
from copier.ui.form import Form, html
from copier.ui.gradio_versions import (
    Answer,
    Handler,
    file_paths,
    keep_out_of_ui_config,
    listen,
    values_in,
)
from copier.ui.leaves import elem_id
from copier.ui.link_values import Links
from copier.ui.links import wire_links
from copier.ui.original import OriginalSection
from copier.ui.parts import Parts, saying
from copier.ui.picture_sets import FIRST, SECOND, Pictures, PictureSets, caption_key, picture_sets
from copier.ui.recipe_form import Problem
from copier.ui.recipe_section import RecipeChoice, RecipeSection, first_recipe
from copier.ui.request_form import OWN_EDIT, OWN_VAE, Wanted, wanted
from copier.ui.run_section import RunSection
from copier.ui.setup import SetupSection
from copier.ui.tools import ToolsSection

log = logging.getLogger(__name__)


class Tab:
    """All sections, and the handlers that concern more than one."""

    def __init__(self, parts: Parts) -> None:
        from copier.app.edits import edits_json

        self.parts, self.form = parts, Form()
        self.edits: Sequence[Mapping[str, Any]] = edits_json()
        html("intro", pieces.intro())
        with gr.Tabs(elem_id=elem_id("sections")):
            with gr.Tab("Make a LoRA", elem_id=elem_id("make")):
                with gr.Row(elem_classes="copier-columns"):
                    with gr.Column(scale=1, min_width=320):
                        first = first_recipe(parts)
                        sets, head = picture_sets(first), RecipeChoice(self.form, parts, first)
                        self.original = OriginalSection(self.form, parts, sets)
                        self.edited = EditedSection(self.form, parts, self.edits, sets)
                        self.recipe = RecipeSection(self.form, parts, first, head)
                    with gr.Column(scale=1, min_width=320):
                        self.run = RunSection(self.form, parts)
                self.run.result.below()
            with gr.Tab("Tools", elem_id=elem_id("tools")):
                self.tools = ToolsSection(self.form, parts)
            with gr.Tab("Setup", elem_id=elem_id("setup")) as self.setup_tab:
                self.setup = SetupSection(self.form, parts)

    @property
    def whole_form(self) -> set[Any]:
        """Everything that a run is made of."""
        heads = ("original", "edited", "run", "preset", "recipe", "train", "gate", "difference", "combine",
                 "resize", "evaluate", "file")  # fmt: skip
        kept = {self.recipe.state, self.original.originals, self.edited.edited, self.recipe.captions.texts}
        return self.form.under(*heads) | kept

    def pictures(self, data: Mapping[Any, Any]) -> Pictures:
        """The pictures that the page remembers, as far as they were given to it, and their captions."""
        taken = self.parts.pictures
        captions = {str(key): str(text) for key, text in data[self.recipe.captions.texts].items()}
        return Pictures(
            taken(data.get(self.original.originals)), taken(data.get(self.edited.edited)), captions
        )

    def read(self, data: Mapping[Any, Any]) -> tuple[Recipe, str, Wanted]:
        """The run that the form asks for now, with every problem in it."""
        recipe, stage, problems = self.recipe.read(data)
        parts, pictures = self.parts, self.pictures(data)
        found = wanted(self.form.answers(data), recipe, pictures, parts.host, parts.settings, self.edits)
        if problems:
            found = Wanted(None, problems=(*problems, *found.problems))
        return recipe, stage, found

    def checked(self, data: Mapping[Any, Any]) -> Answer:
        """Whether Start may be pressed, and why not; the fields that matter now."""
        recipe, stage, found = self.read(data)
        problems, expected = found.problems, ""
        if found.request is not None:
            try:
                expected = self._expected(found)
            except NotInstalled as error:
                problems = (Problem("run.start", f"{error}. In this tab: Setup, 'Install or repair'"),)
            except CopierError as error:
                problems = (Problem("run.start", str(error)),)
        busy, ready = self.parts.jobs.current() is not None, not problems
        return {
            self.run.problems: pieces.problems(problems, busy=busy),
            self.run.start: gr.update(interactive=ready and not busy),
            self.run.queue: gr.update(interactive=ready),
            self.run.estimate: expected,
            self.run.checked: _answered(),
            **self.recipe.captions.heard(recipe, self.pictures(data)),
            **self.recipe.visibility(recipe, stage),
        }

    def _expected(self, found: Wanted) -> str:
        """What the run will take, told from earlier ones. Raises what only a look into the files tells."""
        from copier.app.estimate import estimate

        assert found.request is not None
        settings = self.parts.settings
        return pieces.expected(estimate(found.request, settings, control=found.control, seeds=found.seeds))

    def start(self, data: Mapping[Any, Any], put: Callable[[Wanted], Answer]) -> Answer:
        """Put the run into the queue; with a problem nothing is started, and it is said."""
        _, _, found = self.read(data)
        if found.problems:
            return {
                self.run.problems: pieces.problems(found.problems),
                self.run.said: pieces.note(found.problems[0].message, "bad"),
            }
        return put(found)

    def look(self, data: Mapping[Any, Any]) -> Answer:
        """The pictures as the recipe would train on them, and their captions."""
        recipe, _, _ = self.recipe.read(data)
        sets, pictures = sets_shown(recipe), self.pictures(data)
        return {
            **self.original.look(pictures.originals, sets),
            **self.edited.look(data, recipe, pictures, sets),
            **self.recipe.captions.look(recipe, pictures),
        }

    def looked_at(self) -> set[Any]:
        """All that ``look`` changes."""
        return {self.original.view, self.edited.view, self.edited.views, self.recipe.captions.table}

    def with_pairs(self, handler: Handler) -> Handler:
        """``handler`` for new pictures; they are shown with what it changed."""

        def both(data: dict[Any, Any]) -> Answer:
            answer = handler(data)
            return {**answer, **self.look({**data, **values_in(answer)})}

        return both

    def with_recipe(self, handler: Handler) -> Handler:
        """``handler`` that may put another recipe into the form; the places for pictures follow it."""

        def both(data: dict[Any, Any]) -> Answer:
            answer = handler(data)
            if self.recipe.state not in answer:
                return answer
            now = {**data, **values_in(answer)}
            recipe, _, _ = self.recipe.read(now)
            return {**answer, **self.places(recipe, now)}

        return both

    def places(self, recipe: Recipe, data: Mapping[Any, Any]) -> Answer:
        """The sections for pictures, as ``recipe`` wants them."""
        sets = sets_shown(recipe)
        number = "3" if sets.second or sets.changed else "2"
        return {
            **self.original.fits(sets),
            **self.edited.fits(sets, data),
            **self.recipe.opened(recipe),
            self.run.head: pieces.heading(number, words.RUN),
        }

    def placed(self) -> set[Any]:
        """All that ``places`` and ``look`` change."""
        return self.looked_at() | self.original.fitted() | self.edited.fitted() | {self.run.head}

    def drawn(self, data: Mapping[Any, Any]) -> Answer:
        """Pictures were drawn: where they are no pair, what they were drawn from is their caption."""
        answer = self.original.draw(data)
        recipe, _, _ = self.recipe.read(data)
        files, captions = answer[self.original.drawn], self.recipe.captions
        if recipe.changed:
            return answer
        prompt = self.original.request(data).prompt
        return {**answer, **captions.with_texts({caption_key(FIRST, one): prompt for one in files}, data)}

    def dropped(self, place: str, data: Mapping[Any, Any]) -> Answer:
        """Pictures, and their caption files, were dropped into one of the two places."""
        original, edited = self.original, self.edited
        section, held = (original, original.originals) if place == FIRST else (edited, edited.edited)
        answer = section.drop(data)
        pictures, files = answer.get(held, data[held]), file_paths(data.get(section.files))
        return {**answer, **self.recipe.captions.brought(files, place, pictures, data)}

    def observe(self, data: Mapping[Any, Any]) -> Answer:
        """What is new, in all sections."""
        answer = dict(self.run.observe(data))
        sent = answer[self.run.sent]
        return {
            **answer,
            **self.original.seen(data, sent),
            **self.tools.seen(data, sent),
            **self.setup.seen(data, sent),
        }

    def reuse(self, data: Mapping[Any, Any]) -> Answer:
        """The settings and pictures of an earlier run, in the form again."""
        from copier.app.pair_preview import keep_picture
        from copier.request import Edit, PictureFiles

        request = self.run.history.chosen(data).request
        sets = picture_sets(request.recipe)
        answer = dict(self.recipe.arrived(request.recipe))
        captions: dict[str, str] = {}
        for name, source in request.pictures.items():
            if isinstance(source, PictureFiles):
                kept = [
                    str(keep_picture(path, self.parts.settings)) for path in source.paths if path.is_file()
                ]
                place = FIRST if name == sets.first else SECOND
                captions |= self._captions_again(request.captions, name, place, kept)
                if place == FIRST:
                    answer |= {self.original.originals: kept}
                else:
                    answer |= {self.edited.edited: kept, self.edited.edit: gr.update(value=OWN_EDIT)}
            elif isinstance(source, Edit):
                answer |= self._edit_again(source)
        answer[self.recipe.captions.texts] = captions
        said = pieces.note(f"The form has the settings of {request.title or request.recipe.title}.", "good")
        return {**answer, self.run.history.said: said}

    def _captions_again(
        self, folder: Path | None, name: str, place: str, kept: Sequence[str]
    ) -> dict[str, str]:
        """The captions that a run read of the pictures of a set."""
        from copier.app.caption_sets import caption_in

        if folder is None:
            return {}
        return {caption_key(place, one): caption_in(folder, name, Path(one).stem) for one in kept}

    def _edit_again(self, edit: Any) -> Answer:
        label = next((one["label"] for one in self.edits if one["name"] == edit.name), None)
        values = {f"edited.{edit.name}.{name}": value for name, value in edit.parameters.items()}
        known = {path: value for path, value in values.items() if path in self.form.fields}
        return {self.edited.edit: gr.update(value=label), **self.form.shown(known)}

    def opened(self, data: Mapping[Any, Any]) -> Answer:
        """A page was opened: the host's lists as they are now."""
        return {
            self.run.listed: _answered(),
            **self.original.lists(),
            **self.tools.lists(),
            **self.run.result.lists(),
            **self.recipe.captions.lists(),
            **self._vaes(),
        }

    def _vaes(self) -> Answer:
        names = [OWN_VAE, *(one.name for one in self.parts.host.vaes())]
        return {self.form["run.vae"]: gr.update(choices=names)}


def sets_shown(recipe: Recipe) -> PictureSets:
    """The sets that the page has places for; of a recipe with more those of a pair, and the check says so."""
    try:
        return picture_sets(recipe)
    except BadInput:
        return PictureSets(first="a", changed="b")


def build_tab(parts: Parts, *, style: str | None = None, links: Links | None = None) -> Blocks:
    """The tab as gradio blocks.

    Args:
        style: for a page that no host serves.
        links: to the page of a host.
    """
    with (
        gr.Blocks(
            title="Copier", analytics_enabled=False, css=style, theme=gradio_versions.plain_theme()
        ) as blocks,
        gr.Column(elem_id="copier_tab"),
    ):
        tab = Tab(parts)
        _wire(tab)
        if links is not None:
            wire_links(tab, links)
    keep_out_of_ui_config(blocks)
    return blocks


def _wire(tab: Tab) -> None:
    """Every handler in one place; inputs are sets, and a handler gets a dict by component."""
    _wire_pictures(tab)
    _wire_recipe(tab)
    _wire_run(tab)
    _wire_history(tab)
    _wire_tools(tab)


def _check_outputs(tab: Tab) -> set[Any]:
    run, fields = tab.run, tab.recipe.outputs() & set(tab.form.fields.values())
    return {run.problems, run.start, run.queue, run.estimate, run.checked, tab.recipe.captions.told, *fields}


def _pictures_then(tab: Tab, handler: Handler, place: Any) -> Handler:
    return saying(tab.with_pairs(handler), place)


def _wire_pictures(tab: Tab) -> None:
    original, edited, form, texts = tab.original, tab.edited, tab.whole_form, tab.recipe.captions.texts
    taken = {original.originals, original.said, texts} | tab.looked_at()
    inputs = form | {original.drawn}
    listen(original.generate, "click", _pictures_then(tab, tab.drawn, original.said), form,
           taken | {original.gallery, original.drawn}, busy=True)  # fmt: skip
    listen(original.stop, "click", _quietly(original.drawing.stop), (), (), queued=False)
    listen(original.pick_one, "click", _pictures_then(tab, original.pick, original.said),
           inputs | {original.clicked}, taken)  # fmt: skip
    dropped, second = (functools.partial(tab.dropped, place) for place in (FIRST, SECOND))
    for event in ("upload", "clear"):
        listen(original.files, event, _pictures_then(tab, dropped, original.said), inputs, taken)
        listen(edited.files, event, _pictures_then(tab, second, edited.said), inputs,
               {edited.edited, edited.said, texts} | tab.looked_at())  # fmt: skip
    listen(original.clear, "click", _pictures_then(tab, original.take_out, original.said), inputs,
           taken | {original.files})  # fmt: skip
    listen(original.take_one, "click", _pictures_then(tab, original.take_one_out, original.said),
           inputs | {original.out}, taken | {original.out})  # fmt: skip
    look = saying(tab.look, edited.said)
    chosen = _pictures_then(tab, edited.choose, edited.said)
    places = {edited.explanation, edited.files, edited.said, *edited.parameters.values()} | tab.looked_at()
    listen(edited.edit, "change", chosen, form, places)
    for one in edited.parameters.values():
        listen(one, "release", look, form, tab.looked_at() | {edited.said})
    listen(original.refresh, "click", saying(original.refreshed, original.said), (),
           original.listed() | {original.said})  # fmt: skip
    listen(original.checkpoint, "input", saying(original.chosen, original.said), {original.checkpoint},
           {original.line, original.said})  # fmt: skip
    listen(tab.form["original.fit"], "input", look, form, tab.looked_at() | {edited.said})


def _wire_recipe(tab: Tab) -> None:
    recipe, form = tab.recipe, tab.whole_form
    outputs = {
        *recipe.outputs(),
        recipe.said,
        recipe.choose,
        tab.form["preset.json"],
        tab.form["preset.name"],
    }
    events: tuple[tuple[Any, str, Handler], ...] = (
        (recipe.stage, "input", recipe.switch),
        (recipe.same, "click", recipe.same_for_all),
        (recipe.show_json, "click", recipe.json_text),
        (recipe.save, "click", recipe.saved),
        (recipe.rename, "click", recipe.renamed),
    )
    replacing: tuple[tuple[Any, str, Handler], ...] = (
        (recipe.choose, "input", recipe.load),
        (recipe.apply_json, "click", recipe.json_applied),
        (recipe.delete, "click", recipe.deleted),
        (recipe.upload, "upload", recipe.uploaded),
        (recipe.load_lora, "click", recipe.from_lora),
    )
    for component, event, handler in events:
        listen(component, event, saying(handler, recipe.said), form, outputs)
    for component, event, handler in replacing:
        listen(component, event, _pictures_then(tab, tab.with_recipe(handler), recipe.said), form,
               outputs | tab.placed())  # fmt: skip
    _wire_captions(tab)


def _wire_captions(tab: Tab) -> None:
    recipe, captions, form = tab.recipe, tab.recipe.captions, tab.whole_form

    def captioned(data: Mapping[Any, Any]) -> Answer:
        return recipe.captioned(data, tab.pictures(data))

    def saved(data: Mapping[Any, Any]) -> Answer:
        return captions.saved(recipe.read(data)[0], tab.pictures(data))

    told = {captions.texts, captions.said} | tab.looked_at()
    listen(captions.write, "click", _pictures_then(tab, captioned, captions.said),
           form | tab.form.under("captions"), recipe.outputs() | told, busy=True)  # fmt: skip
    listen(captions.stop, "click", _quietly(captions.captioning.stop), (), (), queued=False)
    listen(captions.save, "click", saying(saved, captions.said), form, {captions.said})


def _wire_run(tab: Tab) -> None:
    run, form = tab.run, tab.whole_form
    said = {run.said, run.problems, run.start, run.watched}
    started, queued = run.started, run.queued
    listen(run.start, "click", saying(lambda data: tab.start(data, started), run.said), form, said)
    listen(run.queue, "click", saying(lambda data: tab.start(data, queued), run.said), form, said)
    listen(
        run.stop, "click", saying(run.stopped, run.said), {run.watched}, {run.said, run.stop}, queued=False
    )
    listen(run.check, "click", _logged(tab.checked), form, _check_outputs(tab), queued=False)
    for i, one in enumerate(run.offers):
        again = saying(functools.partial(_again, run, i), run.said)
        listen(one, "click", again, {run.watched}, {run.watched, run.said})
    watching = {run.watched, run.sent, tab.original.checkpoint, tab.tools.job, tab.setup.job}
    seen = run.outputs() | {tab.original.line} | tab.tools.outputs() | tab.setup.outputs()
    listen(run.poll, "click", _logged(tab.observe), watching, seen, queued=False)
    result = tab.form.under("result") | {run.result.shown}
    put = {run.result.said, run.result.use, run.result.installed_as}
    for one, handler in (
        (run.result.install, run.result.installed),
        (run.result.measure, run.result.measured),
    ):
        listen(one, "click", saying(handler, run.result.said), result, put)


def _answered() -> str:
    """Tells the page's script that this answer is another one."""
    return str(pieces.pulse(time.monotonic_ns()))


def _again(run: RunSection, number: int, data: Mapping[Any, Any]) -> Answer:
    return run.again(data, number)


def _wire_history(tab: Tab) -> None:
    history, run = tab.run.history, tab.run
    fields = tab.form.under("history")

    def show(data: Mapping[Any, Any]) -> Answer:
        return {run.watched: history.chosen(data).id}

    listen(history.open, "click", saying(show, history.said), fields, {run.watched, history.said})
    listen(history.compare, "click", saying(history.compared, history.said), fields, {history.said})
    listen(tab.form["history.job"], "input", saying(history.weighed, history.said), fields, {history.said})
    listen(history.delete, "click", saying(history.removed, history.said), fields,
           {history.said, tab.form["history.job"]})  # fmt: skip
    outputs = {history.said, tab.original.originals, tab.edited.edited, tab.edited.edit,
               tab.recipe.captions.texts, tab.recipe.choose, *tab.edited.parameters.values(),
               *tab.recipe.outputs(), *tab.placed()}  # fmt: skip
    listen(history.use, "click", _pictures_then(tab, tab.with_recipe(tab.reuse), history.said),
           fields | tab.whole_form, outputs)  # fmt: skip


def _wire_tools(tab: Tab) -> None:
    tools, setup = tab.tools, tab.setup
    fields = tab.form.under("tools")
    for name, one in tools.buttons.items():
        go = saying(functools.partial(_go, tools, name), tools.said)
        listen(one, "click", go, fields, {tools.job, tools.said, tools.found})
    listen(tools.inspect, "click", saying(tools.inspected, tools.said), fields,
           {tools.found, tools.said, tools.status})  # fmt: skip
    listen(tools.refresh, "click", saying(tools.refreshed, tools.said), (), tools.listed() | {tools.said})
    listen(tools.stop, "click", saying(tools.stopped, tools.said), {tools.job}, {tools.said}, queued=False)
    settings = tab.form.under("setup")
    shown = {setup.trainer, setup.folders, setup.cache, setup.said}
    listen(setup.look, "click", saying(setup.shown, setup.said), (), shown)
    listen(setup.install, "click", saying(setup.installed, setup.said), settings, {setup.job, setup.said})
    listen(setup.stop, "click", saying(setup.stopped, setup.said), {setup.job}, {setup.said}, queued=False)
    listen(setup.prune, "click", saying(setup.cut, setup.pruned), settings, {setup.pruned, setup.cache})
    listen(tab.setup_tab, "select", saying(setup.shown, setup.said), (), shown)
    alone = {tab.form[path] for path in ("result.checkpoint", "run.vae", "captions.by")}
    opened = tab.original.listed() | tools.listed() | alone | {tab.run.listed}
    listen(tab.run.opened, "click", _logged(tab.opened), (), opened, queued=False)


def _go(tools: ToolsSection, name: str, data: Mapping[Any, Any]) -> Answer:
    return tools.go(data, name)


def _quietly(action: Callable[[], None]) -> Handler:
    def handler(data: dict[Any, Any]) -> Answer:
        action()
        return {}

    return handler


def _logged(handler: Handler) -> Handler:
    """``handler``, whose failure is logged and leaves the page as it is: it is called again soon."""

    def guarded(data: dict[Any, Any]) -> Answer:
        try:
            return handler(data)
        except Exception:
            log.exception("a handler of the tab failed")
            return {}

    return guarded
