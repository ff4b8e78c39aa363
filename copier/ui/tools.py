"""The section "Tools": operations from file to file, as jobs, and what a file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from copier.app.job_kinds import OPERATION, operation_payload
from copier.app.submission import lora_label, new_tensors_file
from copier.errors import BadInput
from copier.fields import FIELDS, Field
from copier.recipe import RankMethod
from copier.ui import pieces
from copier.ui.form import Form, button, choice, flag, html, kept, number, small_button, text
from copier.ui.gradio_versions import Answer
from copier.ui.leaves import elem_id
from copier.ui.parts import Parts
from copier.ui.request_form import LORA_SLOTS, chosen_checkpoint, decimal, lora_file, whole

TERMS = 4
"""LoRAs that a sum may have."""
DTYPES = ("fp16", "bf16", "fp32")
RANKS = FIELDS["RankPolicy"]
_RULES = tuple(one.value for one in RankMethod if one is not RankMethod.EXACT)
_WEIGHT = FIELDS["WeightedLora"]["weight"]

Arguments = dict[str, Any]


class ToolsSection:
    """A tab for each tool. ``job`` holds the id of the one that was started last on this page."""

    def __init__(self, form: Form, parts: Parts) -> None:
        self.form, self.parts = form, parts
        self.job = kept("tools.job", "")
        self.buttons: dict[str, Any] = {}
        self.loras: list[Any] = []
        self.checkpoints: list[Any] = []
        self.readers: dict[str, Callable[[Mapping[str, Any]], Arguments]] = {
            "difference": self._difference,
            "combine": self._combine,
            "resize": self._resize,
            "merge": self._merge,
            "extract": self._extract,
        }
        with gr.Column(elem_classes="copier-card"):
            with gr.Row():
                html(
                    "tools.head",
                    pieces.heading("", "Tools", "From file to file; nothing is ever overwritten."),
                )
                self.refresh = small_button("tools.refresh", "Refresh lists", min_width=110)
            with gr.Tabs(elem_id=elem_id("tools.tabs")):
                self._tabs()
            self.said = html("tools.said")
            self.status = html("tools.status")
            self.stop = button("tools.stop", "Stop the tool", size="sm", visible=False)
            self.found = html("tools.found")

    def _tabs(self) -> None:
        with _tab(
            "difference",
            "Difference",
            "B - A of two LoRAs that were trained apart: what remains is the change.",
        ):
            with gr.Row():
                self._lora("difference.minuend", "B", "The LoRA that counts positive.")
                self._number(
                    "difference.ratio_b", "Ratio of B", FIELDS["DifferenceStage"]["minuend_ratio"], 1
                )
            with gr.Row():
                self._lora("difference.subtrahend", "A", "The LoRA that is taken away.")
                self._number(
                    "difference.ratio_a", "Ratio of A", FIELDS["DifferenceStage"]["subtrahend_ratio"], -1
                )
            self._sum_ranks("difference")
            self._output("difference")
        with _tab("combine", "Combine", "The weighted sum of LoRAs as one file; negative weights subtract."):
            self._terms("combine")
            self._sum_ranks("combine")
            self._output("combine")
        with _tab("resize", "Resize", "The same LoRA with fewer ranks."):
            self._lora("resize.lora", "LoRA", "The one to truncate.")
            self._rules("resize")
            self._output("resize")
        with _tab("merge", "Merge", "A checkpoint with LoRAs in its weights, as a new file."):
            self._checkpoint("merge.checkpoint", "Checkpoint")
            self._terms("merge")
            text(
                self.form,
                "tools.merge.blocks",
                "Block weights",
                "A list of numbers, or NAME=W,...; empty: 1 everywhere.",
            )
            self._output("merge", ("keep", *DTYPES), "keep")
        with _tab("extract", "Extract", "The LoRA that turns one checkpoint into another."):
            with gr.Row():
                self._checkpoint("extract.tuned", "The checkpoint to get to")
                self._checkpoint("extract.base", "The checkpoint to start from")
            self._rules("extract")
            self._output("extract")
        with _tab("inspect", "Inspect", "What a file is and holds, and where a LoRA acts."):
            with gr.Row():
                self._lora("inspect.lora", "LoRA", "From the LoRA folder.")
                self._checkpoint("inspect.checkpoint", "or a checkpoint")
            self.inspect = button("tools.inspect.go", "Inspect", variant="primary")

    def _lora(self, path: str, label: str, info: str) -> None:
        self.loras.append(choice(self.form, f"tools.{path}", label, (), info, scale=3))

    def _checkpoint(self, path: str, label: str) -> None:
        self.checkpoints.append(choice(self.form, f"tools.{path}", label, ()))

    def _number(self, path: str, label: str, known: Field, value: float) -> None:
        info = f"{known.help} {known.minimum:g} to {known.maximum:g}."
        number(self.form, f"tools.{path}", label, info, value=value, min_width=110)

    def _terms(self, tool: str) -> None:
        for i in range(1, TERMS + 1):
            with gr.Row():
                self._lora(f"{tool}.lora{i}", f"LoRA {i}", "" if i == 1 else "Empty: none.")
                self._number(f"{tool}.weight{i}", f"Weight {i}", _WEIGHT, 1)

    def _sum_ranks(self, tool: str) -> None:
        form = self.form
        with gr.Row():
            flag(form, f"tools.{tool}.exact", "Exact", "Lose nothing: the ranks add up.")
            number(form, f"tools.{tool}.rank", "Rank", "0: the largest of the LoRAs.", value=0)
            number(form, f"tools.{tool}.conv_rank", "Conv rank", RANKS["conv_rank"].help, value=0)

    def _rules(self, tool: str) -> None:
        form = self.form
        with gr.Row():
            choice(form, f"tools.{tool}.method", "Rank by", _RULES, RANKS["method"].help, value="rank")
            number(form, f"tools.{tool}.rank", "Rank", RANKS["rank"].help, value=8)
        with gr.Row():
            number(form, f"tools.{tool}.threshold", "Threshold", RANKS["threshold"].help, value=0)
            number(form, f"tools.{tool}.conv_rank", "Conv rank", RANKS["conv_rank"].help, value=0)

    def _output(self, tool: str, dtypes: tuple[str, ...] = DTYPES, default: str = "fp16") -> None:
        with gr.Row():
            text(self.form, f"tools.{tool}.name", "Name of the new file", "Without ending.", scale=3)
            choice(self.form, f"tools.{tool}.dtype", "Number format", dtypes, value=default, min_width=110)
        self.buttons[tool] = button(f"tools.{tool}.go", _GO[tool], variant="primary")

    def lists(self, data: Any = None) -> Answer:
        """The LoRAs and checkpoints that there are now."""
        host = self.parts.host
        loras = [lora_label(path, host) for path in host.loras()]
        names = [one.name for one in host.checkpoints()]
        return {
            **{one: gr.update(choices=["", *loras]) for one in self.loras},
            **{one: gr.update(choices=["", *names]) for one in self.checkpoints},
            **{one: gr.update(choices=loras) for one in self._loras_elsewhere()},
        }

    def listed(self) -> set[Any]:
        """All that ``lists`` changes; the host is not asked for anything."""
        return {*self.loras, *self.checkpoints, *self._loras_elsewhere()}

    def _loras_elsewhere(self) -> list[Any]:
        """The recipe's lists of LoRAs, which have no button of their own to refresh them."""
        slots = (f"run.lora{i + 1}" for i in range(LORA_SLOTS))
        return [self.form[path] for path in ("preset.lora", *slots)]

    def refreshed(self, data: Any) -> Answer:
        """The same after the host has read its folders again."""
        self.parts.host.refresh()
        return self.lists()

    def go(self, data: Mapping[Any, Any], tool: str) -> Answer:
        """Check what is asked for, and put it into the queue."""
        prefix = f"tools.{tool}."
        answers = {
            path.removeprefix(prefix): value
            for path, value in self.form.answers(data).items()
            if path.startswith(prefix)
        }
        arguments = self.readers[tool](answers)
        arguments["dtype"] = str(answers.get("dtype") or "fp16")
        name = str(answers.get("name") or "")
        arguments["out"] = new_tensors_file(name, self.parts.host, checkpoint=tool == "merge")
        payload = operation_payload(tool, **arguments)
        job = self.parts.jobs.submit_work(OPERATION, payload, title=f"{tool}: {arguments['out'].stem}")
        return {self.job: job.id, self.said: "", self.found: ""}

    def _difference(self, given: Mapping[str, Any]) -> Arguments:
        host = self.parts.host
        return {
            "minuend": lora_file(given["minuend"], host),
            "subtrahend": lora_file(given["subtrahend"], host),
            "ratios": [
                decimal(given["ratio_b"], "Ratio of B", -10, 10),
                decimal(given["ratio_a"], "Ratio of A", -10, 10),
            ],
            **_sum_ranks(given),
        }

    def _combine(self, given: Mapping[str, Any]) -> Arguments:
        return {"loras": self._weighted(given), **_sum_ranks(given)}

    def _merge(self, given: Mapping[str, Any]) -> Arguments:
        blocks = str(given.get("blocks") or "").strip()
        return {
            "checkpoint": self._chosen(given["checkpoint"]),
            "loras": self._weighted(given),
            "blocks": [blocks] if blocks else [],
        }

    def _resize(self, given: Mapping[str, Any]) -> Arguments:
        return {"lora": lora_file(given["lora"], self.parts.host), **_rule(given)}

    def _extract(self, given: Mapping[str, Any]) -> Arguments:
        return {"tuned": self._chosen(given["tuned"]), "base": self._chosen(given["base"]), **_rule(given)}

    def _chosen(self, given: Any) -> Path:
        if not given:
            raise BadInput("no checkpoint is chosen: choose one from the list")
        return chosen_checkpoint(given, self.parts.host).path

    def _weighted(self, given: Mapping[str, Any]) -> list[tuple[Path, float]]:
        found = [
            (
                lora_file(given[f"lora{i}"], self.parts.host),
                decimal(given[f"weight{i}"], f"Weight {i}", -10, 10),
            )
            for i in range(1, TERMS + 1)
            if given.get(f"lora{i}")
        ]
        if not found:
            raise BadInput("no LoRA is chosen: choose at least one from the list")
        return found

    def inspected(self, data: Mapping[Any, Any]) -> Answer:
        """What the chosen file is and holds."""
        from copier.app.operations import inspect

        answers = self.form.answers(data)
        lora, checkpoint = answers.get("tools.inspect.lora"), answers.get("tools.inspect.checkpoint")
        if lora and checkpoint:
            raise BadInput("a LoRA and a checkpoint are chosen: leave one of them empty")
        path = lora_file(lora, self.parts.host) if not checkpoint else self._chosen(checkpoint)
        return {self.found: pieces.inspected(inspect(path)), self.status: ""}

    def stopped(self, data: Mapping[Any, Any]) -> Answer:
        """Stop the tool."""
        if data.get(self.job):
            self.parts.jobs.cancel(data[self.job])
        return {}

    def seen(self, data: Mapping[Any, Any], sent: dict[str, Any]) -> Answer:
        """How far the tool is that was started last, when that is news."""
        if not data.get(self.job):
            return {}
        view = self.parts.jobs.view(data[self.job])
        content = pieces.joined(pieces.job_status(view), pieces.operation(view.job.outcome))
        if sent.get("tool") == hash(content):
            return {}
        sent["tool"] = hash(content)
        return {
            self.status: content,
            self.stop: gr.update(visible=not view.job.state.ended),
            **(self.lists() if view.job.state.ended else {}),
        }

    def outputs(self) -> set[Any]:
        """All that ``seen`` may change."""
        return {self.status, self.stop, *self.listed()}


_GO = {
    "difference": "Subtract",
    "combine": "Add",
    "resize": "Resize it",
    "merge": "Merge into a new checkpoint",
    "extract": "Extract a LoRA",
}


def _tab(name: str, label: str, lead: str) -> Any:
    """A tab that begins with one line on what the tool is for."""
    return _LeadTab(name, label, lead)


class _LeadTab:
    def __init__(self, name: str, label: str, lead: str) -> None:
        self._tab = gr.Tab(label, elem_id=elem_id(f"tools.{name}"))
        self._name, self._lead = name, lead

    def __enter__(self) -> None:
        self._tab.__enter__()
        html(f"tools.{self._name}_lead", pieces.note(self._lead))

    def __exit__(self, *error: Any) -> None:
        self._tab.__exit__(*error)


def _sum_ranks(given: Mapping[str, Any]) -> Arguments:
    """The rank of a sum, as the operations take it."""
    rank, conv = whole(given["rank"], "Rank", 0, 4096), whole(given["conv_rank"], "Conv rank", 0, 4096)
    if given.get("exact"):
        if rank or conv:
            raise BadInput("Exact keeps all ranks, so Rank and Conv rank must be 0: change one of them")
        return {"exact": True}
    return {"rank": rank or None, "conv_rank": conv or None}


def _rule(given: Mapping[str, Any]) -> Arguments:
    """How a truncation chooses its rank, as the operations take it."""
    method = str(given.get("method") or "rank")
    rank, conv = whole(given["rank"], "Rank", 1, 4096), whole(given["conv_rank"], "Conv rank", 0, 4096)
    more = {"conv_rank": conv} if conv else {}
    if method == "rank":
        return {"rank": rank, **more}
    return {method: decimal(given["threshold"], "Threshold", 0, 1e6), "max_rank": rank, **more}
