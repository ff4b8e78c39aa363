"""Buttons in the host's own tabs, and the components there that the tab is connected with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from PIL import Image

from copier.app.own_recipes import INFOTEXT_FIELD, INFOTEXT_KEY
from copier.app.pair_preview import keep_picture
from copier.app.settings import Settings
from copier.errors import BadPicture
from copier.fields import SEED
from copier.host.drawn import as_png
from copier.host.webui.infotext import fields_of
from copier.ui.link_values import A, Arrival, B, Links, Received

TABS = ("txt2img", "img2img")
_LAST_BUTTON = "{}_send_to_extras"
"""The last of the host's own buttons that send a picture somewhere."""
_BUTTONS = {
    A: ("🅰️", "Send the image and its prompt to Copier as A, the original"),
    B: ("🅱️", "Send the image to Copier as B, the edited picture"),
}
_FIELDS = {
    "original.prompt": "Prompt",
    "original.negative": "Negative prompt",
    "original.seed": "Seed",
    "original.steps": "Steps",
    "original.guidance": "CFG scale",
    "original.width": "Size-1",
    "original.height": "Size-2",
}
"""Fields of the tab, and the host's names of what a picture's text says of them."""
_TEXTS = ("original.prompt", "original.negative")


class HostPage:
    """Gathers components while the host builds its page; a new one for every page that is built."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._buttons: dict[tuple[str, str], Any] = {}

    def component(self, component: Any, **options: Any) -> None:
        """The host made a component; called for each, within its place in the page."""
        name = options.get("elem_id")
        if name in _WANTED:
            self._found[name] = component
        for tab in TABS:
            if name == _LAST_BUTTON.format(tab):
                for target in (A, B):
                    self._buttons[tab, target] = _button(tab, target)

    def links(self, settings: Settings) -> Links:
        """To what was found; what a host has not is left out."""
        from modules import infotext_utils

        found = self._found
        arrivals = [
            Arrival(button, found[f"{tab}_gallery"], found[f"generation_info_{tab}"], target)
            for (tab, target), button in self._buttons.items()
            if {f"{tab}_gallery", f"generation_info_{tab}"} <= set(found)
        ]
        inpaint = infotext_utils.paste_fields.get("inpaint", {}).get("init_img")
        return Links(
            lambda gallery, texts, index: received(gallery, texts, index, settings),
            arrivals,
            inpaint,
            found.get("txt2img_prompt"),
        )


_WANTED = {*(f"{tab}_gallery" for tab in TABS), *(f"generation_info_{tab}" for tab in TABS), "txt2img_prompt"}


def _button(tab: str, target: str) -> Any:
    from modules.ui_components import ToolButton

    label, tip = _BUTTONS[target]
    return ToolButton(label, elem_id=f"copier_{tab}_to_{target}", tooltip=tip)


def received(gallery: Any, texts: Any, index: int, settings: Settings) -> Received:
    """The picture at ``index`` of what one of the host's galleries holds; -1, or that of a grid: the first.

    Raises:
        BadPicture: the gallery is empty, or the file is none that the host shows.
    """
    from modules import infotext_utils

    found = _texts(texts)
    first = int(found.get("index_of_first_image") or 0)
    pictures = list(gallery or ())
    # A grid of all pictures may come before the first one.
    at = index if first <= index < len(pictures) else min(first, max(0, len(pictures) - 1))
    try:
        # Checks that the file is one that the host itself put into the gallery.
        image = infotext_utils.image_from_url_text(pictures[at : at + 1])
    except AssertionError as error:
        raise BadPicture(f"the picture cannot be taken ({error}): save it and drop it in") from error
    if not isinstance(image, Image.Image):
        raise BadPicture("there is no picture in the gallery yet: generate one first")
    infotexts = found.get("infotexts") or []
    text = infotexts[at] if at < len(infotexts) else str(image.info.get(INFOTEXT_KEY, ""))
    fields = fields_of(text)
    recipe = str(fields.get(INFOTEXT_FIELD) or "")
    with as_png(image.convert("RGB"), text, "from-webui.png") as file:
        return Received(keep_picture(file, settings), values_of(fields), recipe)


def _texts(given: Any) -> Mapping[str, Any]:
    try:
        found = json.loads(given) if given else {}
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def values_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the form gets of a picture's text: what it could draw the picture from again."""
    found: dict[str, Any] = {}
    for path, name in _FIELDS.items():
        given = fields.get(name)
        if path in _TEXTS:
            if given is not None:
                found[path] = str(given)
        elif _is_number(given):
            found[path] = float(given) if path == "original.guidance" else int(float(given))
    if not 0 <= found.get("original.seed", 0) <= (SEED.maximum or 0):
        del found["original.seed"]
    if any(found.get(side, 0) % 64 for side in ("original.width", "original.height")):
        found |= {"original.width": 0, "original.height": 0}
    return found


def _is_number(given: Any) -> bool:
    try:
        float(given)
    except (TypeError, ValueError):
        return False
    return True
