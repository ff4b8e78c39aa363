"""Components by dotted path, and nothing by position: what a section binds, a handler reads by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import gradio as gr
from gradio.blocks import Block

from copier.ui import gradio_versions
from copier.ui.leaves import Leaf, Shape, elem_id


class Form:
    """The components of the tab that hold values, by path."""

    def __init__(self) -> None:
        self.fields: dict[str, Block] = {}

    def add(self, path: str, component: Any) -> Any:
        """Bind ``component`` to ``path``, once."""
        assert path not in self.fields, f"two components have the path {path}"
        self.fields[path] = component
        return component

    def __getitem__(self, path: str) -> Any:
        return self.fields[path]

    def under(self, *heads: str) -> set[Block]:
        """The components whose path is one of ``heads`` or begins with it."""
        return {one for path, one in self.fields.items() if _under(path, heads)}

    def every(self) -> set[Block]:
        """All components."""
        return set(self.fields.values())

    def answers(self, data: Mapping[Block, Any]) -> dict[str, Any]:
        """What a handler was given, by path."""
        return {path: data[one] for path, one in self.fields.items() if one in data}

    def shown(self, values: Mapping[str, Any]) -> dict[Block, Any]:
        """Updates that put ``values`` into the components."""
        return {self.fields[path]: gr.update(value=value) for path, value in values.items()}

    def visible(self, paths: Collection[str], among: Iterable[str]) -> dict[Block, Any]:
        """Updates that show those of ``among`` that are in ``paths``, and hide the others."""
        return {self.fields[path]: gr.update(visible=path in paths) for path in among}


def _under(path: str, heads: tuple[str, ...]) -> bool:
    return any(path == head or path.startswith(f"{head}.") for head in heads)


def text(form: Form, path: str, label: str, info: str = "", **options: Any) -> Any:
    """A line of text, or several."""
    return form.add(
        path,
        gr.Textbox(
            label=label, info=info or None, elem_id=elem_id(path), **{"value": "", "max_lines": 1, **options}
        ),
    )


def number(form: Form, path: str, label: str, info: str = "", **options: Any) -> Any:
    """A number. Bounds are said by our own checks: gradio's would end the whole handler."""
    return form.add(path, gr.Number(label=label, info=info or None, elem_id=elem_id(path), **options))


def flag(form: Form, path: str, label: str, info: str = "", **options: Any) -> Any:
    """Yes or no."""
    return form.add(path, gr.Checkbox(label=label, info=info or None, elem_id=elem_id(path), **options))


def choice(form: Form, path: str, label: str, choices: Iterable[str], info: str = "", **options: Any) -> Any:
    """One of a list, or several of it with ``multiselect``."""
    return form.add(
        path,
        gr.Dropdown(list(choices), label=label, info=info or None, elem_id=elem_id(path), **options),
    )


def slider(form: Form, path: str, label: str, low: float, high: float, value: float, **options: Any) -> Any:
    """A number between two others."""
    return form.add(path, gr.Slider(low, high, value, label=label, elem_id=elem_id(path), **options))


def kept(path: str, value: Any, *, written: bool = False) -> Any:
    """A value that the page keeps for the handlers, across a restart of the program; not bound.

    ``written``: the page's script may write it too.
    """
    return gradio_versions.kept(value, elem_id=elem_id(path), written=written)


def button(path: str, label: str, **options: Any) -> Any:
    """A button; it holds no value, so it is not bound."""
    return gr.Button(label, elem_id=elem_id(path), **options)


def small_button(path: str, label: str, **options: Any) -> Any:
    """A button beside a field, no higher than itself."""
    return button(path, label, size="sm", scale=0, elem_classes="copier-small", **options)


def html(path: str, value: str = "", **options: Any) -> Any:
    """A place for what the program says."""
    return gr.HTML(value, elem_id=elem_id(path), **options)


def leaf_field(form: Form, leaf: Leaf, value: Any, *, visible: bool) -> Any:
    """The component of a field of the recipe, with its help, unit and bounds."""
    label, info = leaf.field.label, leaf.info
    options: dict[str, Any] = {"value": value, "visible": visible}
    if leaf.shape in (Shape.WHOLE, Shape.NUMBER):
        return number(form, leaf.path, label, info, **options)
    if leaf.shape is Shape.FLAG:
        return flag(form, leaf.path, label, info, **options)
    if leaf.shape is Shape.CHOICE:
        return choice(form, leaf.path, label, leaf.choices, info, **options)
    lines = 3 if leaf.shape in (Shape.LINES, Shape.PARTS) else 1
    return text(form, leaf.path, label, info, lines=lines, max_lines=8 if lines > 1 else 1, **options)
