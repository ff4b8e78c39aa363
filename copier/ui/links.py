"""The tab and the rest of a WebUI's page: pictures that come in, A and the LoRA that go out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import gradio as gr

from copier.errors import BadInput
from copier.ui import pieces
from copier.ui.gradio_versions import Answer, in_order, listen_ordered, listen_script
from copier.ui.link_values import A, Arrival, Links, Received
from copier.ui.parts import saying
from copier.ui.request_form import OWN_EDIT, decimal

_CHOSEN = "given[2] = selected_gallery_index();"
"""The host's own script knows which picture of the gallery is open."""


def wire_links(tab: Any, links: Links) -> None:
    """Connect the tab; within its blocks."""
    for arrival in links.arrivals:
        _wire_arrival(tab, links, arrival)
    if links.inpaint is not None:
        original = tab.original
        original.to_inpaint.visible = True
        listen_ordered(
            original.to_inpaint, "click", functools.partial(_to_inpaint, tab, links.inpaint),
            [original.originals], {links.inpaint, original.said}, script="switch_to_inpaint();",
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
    form = in_order(tab.whole_form)
    place = tab.original.said if arrival.target == A else tab.edited.said

    def arrived(gallery: Any, texts: Any, index: Any, *held: Any) -> Answer:
        def taken(data: Mapping[Any, Any]) -> Answer:
            chosen = int(index) if isinstance(index, (int, float)) else -1
            return _taken(tab, links.receive(gallery, texts, chosen), arrival.target, data)

        given = dict(zip(form, held, strict=True))
        return saying(tab.with_pairs(tab.with_recipe(taken)), place)(given)

    # The button itself stands for the index, which the page's script fills in.
    inputs = [arrival.gallery, arrival.infotexts, arrival.button, *form]
    listen_ordered(arrival.button, "click", arrived, inputs, _changed(tab) | {place}, script=_CHOSEN)
    listen_script(arrival.button, "click", "() => window.copierShow()")


def _taken(tab: Any, received: Received, target: str, data: Mapping[Any, Any]) -> Answer:
    """A picture that arrives takes its place in the form, and the recipe that it carries too."""
    from copier.app.own_recipes import imported

    files = [str(received.picture)]
    if target == A:
        known = {path: value for path, value in received.values.items() if path in tab.form.fields}
        answer = {**tab.original.taken(files, data), **tab.form.shown(known)}
    else:
        answer = {tab.edited.edited: files, tab.edited.edit: gr.update(value=OWN_EDIT)}
    if received.recipe:
        answer |= tab.recipe.loaded(imported(received.recipe, "the picture's text"))
    return answer


def _changed(tab: Any) -> set[Any]:
    """All that a picture that arrives may change."""
    original, edited, recipe = tab.original, tab.edited, tab.recipe
    own = {original.originals, edited.edited, edited.edit, recipe.said, recipe.choose} | tab.placed()
    return own | recipe.outputs() | tab.form.under("original")


def _to_inpaint(tab: Any, inpaint: Any, originals: Any) -> Answer:
    """A goes to the host's inpainting; what becomes of it comes back by img2img's own button."""
    from PIL import Image

    found, said = tab.parts.pictures(originals), tab.original.said
    if not found:
        return {said: pieces.note("there is no original yet: draw one, or drop a picture in", "bad")}
    return {inpaint: Image.open(found[0]).convert("RGB"), said: ""}


def _with_tag(prompt: Any, name: Any, weight: Any) -> Any:
    """``prompt`` with the LoRA at its end."""
    if not name:
        return gr.update()
    try:
        value = decimal(weight, "Preferred weight", -10, 10)
    except BadInput:
        value = 1.0
    return f"{str(prompt or '').rstrip()} <lora:{name}:{value:g}>".lstrip()
