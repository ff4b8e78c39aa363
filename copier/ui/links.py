"""The tab and the rest of a WebUI's page: pictures that come in, A and the LoRA that go out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from copier.errors import BadInput
from copier.ui import pieces
from copier.ui.gradio_versions import Answer, listen_ordered, listen_script
from copier.ui.link_values import A, Arrival, Links
from copier.ui.parts import saying
from copier.ui.request_form import OWN_EDIT, decimal

_CHOSEN = "given[2] = selected_gallery_index();"
"""The host's own script knows which picture of the gallery is open."""


def wire_links(tab: Any, links: Links) -> None:
    """Connect the tab; within its blocks."""
    for arrival in links.arrivals:
        _wire_arrival(tab, links, arrival)
    if links.inpaint is not None:
        button = tab.original.to_inpaint
        button.visible = True
        originals, said = tab.original.originals, tab.original.said
        listen_ordered(
            button, "click", _Inpaint(tab, links).send, [originals], {links.inpaint, said},
            script="switch_to_inpaint();",
        )  # fmt: skip
    if links.prompt is not None:
        result, prompt = tab.run.result, links.prompt
        result.linked = True
        listen_ordered(
            result.use, "click", lambda text, name, weight: {prompt: _with_tag(text, name, weight)},
            [prompt, result.installed_as, tab.form["result.weight"]], {prompt},
            script="switch_to_txt2img();",
        )  # fmt: skip


def _wire_arrival(tab: Any, links: Links, arrival: Arrival) -> None:
    form = sorted(tab.whole_form, key=lambda one: one._id)
    taken = _Taken(tab, links, arrival.target, form)
    place = tab.original.said if arrival.target == A else tab.edited.said
    handler = saying(taken.answer, place)

    def arrived(*given: Any) -> Answer:
        return handler(dict(enumerate(given)))

    # The button itself stands for the index, which the page's script fills in.
    inputs = [arrival.gallery, arrival.infotexts, arrival.button, *form]
    listen_ordered(arrival.button, "click", arrived, inputs, taken.outputs() | {place}, script=_CHOSEN)
    listen_script(arrival.button, "click", "() => window.copierShow()")


class _Taken:
    """A picture that arrives takes its place in the form."""

    def __init__(self, tab: Any, links: Links, target: str, form: Sequence[Any]) -> None:
        self.tab, self.links, self.target, self.form = tab, links, target, form

    def answer(self, given: Mapping[int, Any]) -> Answer:
        """``given``: gallery, texts, index, then the whole form."""
        index = int(given[2]) if isinstance(given[2], (int, float)) else -1
        received = self.links.receive(given[0], given[1], index)
        data = {one: given[i + 3] for i, one in enumerate(self.form)}
        tab, files = self.tab, [str(received.picture)]
        if self.target == A:
            answer = dict(tab.original.taken(files, data))
            known = {path: value for path, value in received.values.items() if path in tab.form.fields}
            answer |= tab.form.shown(known)
        else:
            answer = {tab.edited.edited: files, tab.edited.edit: gr.update(value=OWN_EDIT)}
        if received.recipe:
            answer |= self._recipe(received.recipe)
        return {**answer, **self._look(data, answer)}

    def _recipe(self, text: str) -> Answer:
        from copier.app.own_recipes import imported

        return dict(self.tab.recipe.loaded(imported(text, "the picture's text")))

    def _look(self, data: Mapping[Any, Any], answer: Mapping[Any, Any]) -> Answer:
        now = dict(data)
        for one, value in answer.items():
            if not isinstance(value, dict):
                now[one] = value
            elif one in now and "value" in value:
                now[one] = value["value"]
        return dict(self.tab.look(now))

    def outputs(self) -> set[Any]:
        """All that may change."""
        tab = self.tab
        own = {tab.original.originals, tab.original.view, tab.edited.edited, tab.edited.edit, tab.edited.view}
        return own | tab.recipe.outputs() | {tab.recipe.said} | tab.form.under("original")


class _Inpaint:
    """A goes to the host's inpainting; what becomes of it comes back by img2img's own button."""

    def __init__(self, tab: Any, links: Links) -> None:
        self.tab, self.links = tab, links

    def send(self, originals: Any) -> Answer:
        """The first original."""
        from PIL import Image

        found = self.tab.parts.pictures(originals)
        said = self.tab.original.said
        if not found:
            return {said: pieces.note("there is no original yet: draw one, or drop a picture in", "bad")}
        return {self.links.inpaint: Image.open(found[0]).convert("RGB"), said: ""}


def _with_tag(prompt: Any, name: Any, weight: Any) -> Any:
    """``prompt`` with the LoRA at its end."""
    if not name:
        return gr.update()
    try:
        value = decimal(weight, "Preferred weight", -10, 10)
    except BadInput:
        value = 1.0
    return f"{str(prompt or '').rstrip()} <lora:{name}:{value:g}>".lstrip()
