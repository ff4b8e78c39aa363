"""All that differs between gradio 3.41 (A1111) and gradio 4.40 (Forge); the rest of the tab knows neither.

What the tab relies on in both: ``inputs`` given as a set (a handler gets a dict by component), answers given
as a dict by component, ``gr.update``, files that have ``.name``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block, Blocks

MAJOR = int(gr.__version__.split(".")[0])

_SCRIPT = "js" if MAJOR >= 4 else "_js"
"""The argument of an event that names JavaScript."""

Answer = Mapping[Block, Any]
Handler = Callable[[dict[Block, Any]], Answer]


def listen(
    component: Block,
    event: str,
    handler: Handler,
    inputs: Collection[Block],
    outputs: Collection[Block],
    *,
    queued: bool = True,
    busy: bool = False,
) -> None:
    """Call ``handler`` with a dict of the inputs' values when ``event`` happens to ``component``.

    Handlers that take long are ``queued``, and ``busy`` ones show that on their outputs; the others answer
    even when the queue is full.
    """
    shown = "minimal" if busy else "hidden"
    options: dict[str, Any] = {"show_progress": shown, "api_name": False, "queue": queued}
    if MAJOR >= 4:
        options["trigger_mode"] = "once" if busy else "always_last"
    getattr(component, event)(_with_dict(handler, inputs), set(inputs) or None, in_order(outputs), **options)


def in_order(components: Collection[Block]) -> list[Block]:
    """The components in the order of the page, and not of a set, which each process has its own of.

    A page that was open while the program was started anew gets answers by their places.
    """
    return sorted(components, key=lambda one: one._id)


def listen_ordered(
    component: Block,
    event: str,
    handler: Callable[..., Answer],
    inputs: Sequence[Block],
    outputs: Collection[Block],
    *,
    script: str,
) -> None:
    """Call ``handler`` with the inputs' values in their order, after the JavaScript ``script``.

    The script may change them: they are the list ``given``.
    """
    # What it is given are inputs and outputs. Of a list of another length than the inputs' gradio 4 takes it
    # that the states were left out, and moves every value.
    source = f"(...given) => {{ {script} return given.slice(0, {len(inputs)}); }}"
    options: dict[str, Any] = {"show_progress": "hidden", "api_name": False, "queue": True, _SCRIPT: source}

    def called(*given: Any) -> Answer:
        return _written(handler(*map(held, inputs, given)))

    getattr(component, event)(called, list(inputs), in_order(outputs), **options)


def listen_script(component: Block, event: str, script: str) -> None:
    """Run JavaScript alone."""
    getattr(component, event)(None, None, None, **{_SCRIPT: script})


def _with_dict(handler: Handler, inputs: Collection[Block]) -> Callable[..., Answer]:
    """Without inputs gradio calls a handler without arguments."""

    def called(data: dict[Block, Any]) -> Answer:
        return _written(handler(_read(data)))

    return called if inputs else lambda: called({})


def kept(value: Any, *, elem_id: str, written: bool = False) -> Any:
    """A value, as JSON is able to hold it, that the page keeps and sends along; nobody sees it.

    What ``gr.State`` holds is in the program's memory, and lost to an open page when the program is started
    anew. Whoever sits at the page can change it: a handler checks what it is given, and gets ``value`` in
    place of what is of another type. What the page's script writes (``written``) is in the page, where style
    hides it.
    """

    component = gr.Textbox(json.dumps(value), visible=written, show_label=False, elem_id=elem_id)
    # Neither a class of our own, for which gradio 4 writes a file beside this one, nor methods of this
    # object, for gradio 4 makes another one of the usual class with every answer that leaves it out.
    component.copier_kept = value
    return component


def held(component: Block, given: Any) -> Any:
    """What a handler gets of what ``component`` sends: what is ``kept`` there, else ``given`` itself."""
    if not hasattr(component, "copier_kept"):
        return given
    value = component.copier_kept
    try:
        found = json.loads(given)
    except (TypeError, ValueError, RecursionError):
        return value
    return found if type(found) is type(value) else value


def _read(data: dict[Block, Any]) -> dict[Block, Any]:
    return {one: held(one, given) for one, given in data.items()}


def _written(answer: Answer) -> Answer:
    return {one: json.dumps(value) if hasattr(one, "copier_kept") else value for one, value in answer.items()}


def values_in(answer: Answer) -> dict[Block, Any]:
    """The values that components have with ``answer``, without those that it leaves as they are."""
    found = {}
    for one, value in answer.items():
        update = isinstance(value, dict) and "__type__" in value
        if not update or "value" in value:
            found[one] = value["value"] if update else value
    return found


def picture_files(
    *, label: str, several: bool, kinds: Sequence[str], elem_id: str, height: int | None = None
) -> Any:
    """A place to drop files."""
    options: dict[str, Any] = {"type": "filepath"} if MAJOR >= 4 else {"type": "file"}
    if height is not None:
        options["height"] = height
    return gr.File(
        label=label,
        file_count="multiple" if several else "single",
        file_types=list(kinds),
        elem_id=elem_id,
        **options,
    )


def file_paths(value: Any) -> tuple[Path, ...]:
    """The files that a file component holds: nothing, one, or several."""
    if not value:
        return ()
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(Path(str(getattr(one, "name", one))) for one in values)


def plain_theme() -> Any:
    """gradio's own theme with the system's fonts: its usual ones are fetched from the network."""
    return gr.themes.Default(
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"]
    )


def keep_out_of_ui_config(blocks: Blocks) -> None:
    """A1111 and Forge save what components hold by their labels; ours keep their own defaults."""
    for block in blocks.blocks.values():
        block.do_not_save_to_config = True


def gallery(*, label: str, elem_id: str, columns: int) -> Any:
    """A gallery to choose from, without its own preview: the page's script tells which one was clicked."""
    return gr.Gallery(
        label=label, elem_id=elem_id, columns=columns, allow_preview=False, height="auto", visible=False
    )


def launch(
    blocks: Blocks, *, host: str, port: int, accounts: Sequence[tuple[str, str]] = ()
) -> tuple[str, Any]:
    """Serve the page in a thread; its address, and the FastAPI application that serves it.

    No file is served but what gradio itself put into its folder.

    Args:
        accounts: names and passwords, one of which is asked for; empty: nobody is asked.

    Raises:
        OSError: the port is taken.
    """
    blocks.queue(**({"default_concurrency_limit": 4} if MAJOR >= 4 else {"concurrency_count": 4}))
    blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        show_api=False,
        share=False,
        inbrowser=False,
        auth=list(accounts) or None,
    )
    if MAJOR < 4:
        # It would serve whatever lies in the folder that the program was started in.
        blocks.server_app.cwd = blocks.server_app.uploaded_file_dir
    return str(blocks.local_url), blocks.server_app


def close(blocks: Blocks) -> None:
    """Stop serving."""
    blocks.close()
