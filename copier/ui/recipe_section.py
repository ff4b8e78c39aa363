"""The section "Recipe": which one, its numbers stage by stage, and how it is used this time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from copier.codec import builtin_recipes, recipe_from_json, recipe_from_text, recipe_to_json
from copier.errors import BadInput
from copier.fields import CLIP_SKIP, FIELDS, Level
from copier.model_options import Prediction, Switch
from copier.recipe import STAGE_KINDS, Recipe
from copier.request import DEVICES
from copier.ui import pieces, words
from copier.ui.captions import CaptionsPart
from copier.ui.form import Form, button, choice, flag, html, kept, leaf_field, number, small_button, text
from copier.ui.gradio_versions import Answer, file_paths, picture_files
from copier.ui.leaves import RECIPE, Leaf, Shape, elem_id
from copier.ui.parts import Parts
from copier.ui.picture_sets import Pictures
from copier.ui.recipe_form import (
    LEAVES,
    Problem,
    first_stage,
    form_values,
    has_several_trainings,
    kind_of,
    paths_of,
    reads_captions,
    visible_paths,
    with_all_trainings,
    with_caption_files,
    with_form,
)
from copier.ui.request_form import LORA_SLOTS, OWN_VAE, lora_file

if TYPE_CHECKING:
    from copier.app.own_recipes import Imported

FIRST = "copier-quick"
"""The recipe that the tab begins with."""
_POCKET = "-pocket"
"""Ending of the names of recipes for the embedded checkpoint."""
_ROW = 3
"""Fields beside each other."""
_HEADINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "train": (("TrainStage", "training"), ("TrainingSpec", "captions"), ("TrainStage", "concept")),
    "difference": (("DifferenceStage", "ranks"),),
    "combine": (("CombineStage", "ranks"),),
    "resize": (("ResizeStage", "ranks"),),
}
"""Fields that are groups of others: their help stands above the group."""


class RecipeChoice:
    """Which recipe: what all other sections depend on, so it stands above them."""

    def __init__(self, form: Form, parts: Parts, recipe: Recipe) -> None:
        with gr.Column(elem_classes="copier-card"):
            html("preset.head", pieces.heading("", words.RECIPE, words.RECIPE_LEAD))
            titles = list(recipes_by_title(parts))
            self.choose = choice(form, "preset.choice", words.RECIPE, titles, value=recipe.title)
            self.explanation = html("preset.explanation", pieces.note(recipe.explanation))


def recipes_by_title(parts: Parts) -> dict[str, Recipe]:
    """Built-in and own recipes by title; first those for the kind of checkpoint that is loaded."""
    from copier.app.own_recipes import own_presets

    pocket = _on_pocket(parts)
    built_in = sorted(builtin_recipes().values(), key=lambda one: one.name.endswith(_POCKET) is not pocket)
    return {**{recipe.title: recipe for recipe in built_in}, **own_presets(parts.settings)}


def first_recipe(parts: Parts) -> Recipe:
    """The recipe that a new page shows."""
    return builtin_recipes()[FIRST + _POCKET if _on_pocket(parts) else FIRST]


def _on_pocket(parts: Parts) -> bool:
    current = parts.host.current_checkpoint()
    return current is not None and current.embedded


class RecipeSection:
    """Its components. ``state`` holds the recipe as JSON, and the name of the stage that the form shows."""

    def __init__(self, form: Form, parts: Parts, recipe: Recipe, head: RecipeChoice) -> None:
        self.form, self.parts = form, parts
        self.choose, self.explanation = head.choose, head.explanation
        stage = first_stage(recipe)
        self.state = kept("recipe.state", {"recipe": recipe_to_json(recipe), "stage": stage})
        values, shown = form_values(recipe, stage), visible_paths(recipe, stage)
        self.kinds: dict[str, Any] = {}
        with gr.Column(elem_classes="copier-card"):
            html("recipe.head", pieces.heading("", words.SETTINGS, words.SETTINGS_LEAD))
            self.stage = form.add(
                "preset.stage",
                gr.Radio(
                    [one.name for one in recipe.stages],
                    value=stage,
                    label="Stage",
                    info="The numbers below are those of this stage.",
                    elem_id=elem_id("preset.stage"),
                ),
            )
            for kind in STAGE_KINDS:
                self._essentials(kind, values, shown, visible=kind == kind_of(recipe.stage(stage)))
            self.same = button(
                "preset.same",
                "Same steps, rate, rank and alpha for every training",
                size="sm",
                visible=has_several_trainings(recipe),
            )
            self.control = flag(
                form,
                "run.control",
                "Train a plain LoRA too, to compare",
                "On B alone, with the same settings: what one would use otherwise. Takes longer.",
                visible=recipe.measures,
            )
            self.captions = CaptionsPart(form, parts)
            with gr.Accordion("Advanced", open=False, elem_id=elem_id("preset.advanced")):
                self.advanced = {
                    kind: self._advanced(kind, values, shown, stage, recipe) for kind in STAGE_KINDS
                }
                self._about(values, shown)
                self._this_time()
            with gr.Accordion("Save, load, delete", open=False, elem_id=elem_id("preset.files")):
                self._files()
            self.said = html("preset.said")

    def _essentials(
        self, kind: str, values: Mapping[str, Any], shown: Iterable[str], *, visible: bool
    ) -> None:
        fields = [LEAVES[path] for path in paths_of(kind) if LEAVES[path].field.level is Level.ESSENTIAL]
        with gr.Column(visible=visible, elem_id=elem_id(f"essentials.{kind}")) as column:
            _rows(self.form, fields, values, shown)
        self.kinds[kind] = column

    def _advanced(
        self, kind: str, values: Mapping[str, Any], shown: Iterable[str], stage: str, recipe: Recipe
    ) -> Any:
        fields = [LEAVES[path] for path in paths_of(kind)]
        own = [leaf for leaf in fields if leaf.field.level is Level.ADVANCED]
        structure = [leaf for leaf in fields if leaf.field.level is Level.STRUCTURE]
        with gr.Column(
            visible=kind == kind_of(recipe.stage(stage)), elem_id=elem_id(f"advanced.{kind}")
        ) as column:
            for spec, name in _HEADINGS.get(kind, ()):
                html(
                    f"advanced.{kind}_{name}", _group_head(FIELDS[spec][name].label, FIELDS[spec][name].help)
                )
            _rows(self.form, own, values, shown)
            with gr.Accordion("How the stage is connected", open=False):
                _rows(self.form, structure, values, shown)
        return column

    def _about(self, values: Mapping[str, Any], shown: Iterable[str]) -> None:
        known = FIELDS["Recipe"]["stages"]
        with gr.Accordion("The recipe itself", open=False):
            _rows(self.form, [LEAVES[path] for path in paths_of(RECIPE)], values, shown)
            text(
                self.form,
                "preset.json",
                known.label,
                f"{known.help} The whole recipe as JSON, where stages can be added.",
                lines=4,
                max_lines=16,
            )
            with gr.Row():
                self.show_json = button("preset.show_json", "Show the JSON", size="sm")
                self.apply_json = button("preset.apply_json", "Apply the JSON", size="sm")

    def _this_time(self) -> None:
        form = self.form
        with gr.Accordion("This run", open=False):
            text(
                form,
                "run.title",
                "Name of the result",
                "Of the LoRA file; the edit's name where it is empty.",
            )
            with gr.Row():
                number(
                    form,
                    "run.seeds",
                    "Training seeds",
                    "Train all of it so often, and report the range.",
                    value=1,
                )
                number(form, "run.threads", "Threads", "Of the processor; 0: all.", value=0)
                choice(form, "run.device", "Device", DEVICES, value="auto")
            with gr.Row():
                choice(form, "run.vae", "VAE", (OWN_VAE,), value=OWN_VAE)
                number(form, "run.clip_skip", CLIP_SKIP.label, CLIP_SKIP.help, value=1)
            with gr.Row():
                choice(
                    form,
                    "run.prediction",
                    "Prediction",
                    [one.value for one in Prediction],
                    "What the checkpoint predicts: noise or velocity; auto: what its file says.",
                    value="auto",
                )
                choice(
                    form,
                    "run.zero_terminal_snr",
                    "Zero terminal SNR",
                    [one.value for one in Switch],
                    "Whether its noise schedule ends at pure noise; auto: what its file says.",
                    value="auto",
                )
            for i in range(LORA_SLOTS):
                choice(
                    form,
                    f"run.lora{i + 1}",
                    f"LoRA {i + 1}",
                    (),
                    "A LoRA file that the recipe starts from.",
                    visible=False,
                )
            text(
                form,
                "run.captions",
                "Folder of caption files",
                "For recipes that read them; empty: those of the table under Captions.",
            )
            with gr.Row():
                number(
                    form,
                    "run.sample_every",
                    "Draw pictures every",
                    "In steps, while sd-scripts trains; 0: never.",
                    value=0,
                )
                text(form, "run.extra", "Extra arguments", "For sd-scripts; they stay on this machine.")

    def _files(self) -> None:
        form = self.form
        with gr.Row():
            text(form, "preset.name", "Name", "Letters, digits, - and _.")
            self.save = button("preset.save", "Save as my own", size="sm", min_width=120)
        with gr.Row():
            self.rename = button("preset.rename", "Rename", size="sm", min_width=100)
            self.delete = button("preset.delete", "Delete", size="sm", min_width=100)
        self.upload = form.add(
            "preset.upload",
            picture_files(
                label="Recipe from a LoRA, from a picture that was made with one, or from a .json file",
                several=False,
                kinds=(".safetensors", ".png", ".json"),
                elem_id=elem_id("preset.upload"),
                height=100,
            ),
        )
        with gr.Row():
            choice(form, "preset.lora", "Recipe from a LoRA in the folder", ())
            self.load_lora = small_button("preset.load_lora", "Load", min_width=80)

    def read(self, data: Mapping[Any, Any]) -> tuple[Recipe, str, tuple[Problem, ...]]:
        """The recipe as the form has it now, the stage that is shown, and what could not be taken."""
        held = data[self.state]
        recipe = recipe_from_json(held["recipe"])
        values = {path: value for path, value in self.form.answers(data).items() if path in LEAVES}
        return with_form(recipe, held["stage"], values)

    def show(self, recipe: Recipe, stage: str = "") -> Answer:
        """Put ``recipe`` into the form, at its stage of that name or its first training."""
        stage = stage if any(one.name == stage for one in recipe.stages) else first_stage(recipe)
        kind = kind_of(recipe.stage(stage))
        return {
            self.state: {"recipe": recipe_to_json(recipe), "stage": stage},
            self.stage: gr.update(choices=[one.name for one in recipe.stages], value=stage),
            self.explanation: pieces.note(recipe.explanation),
            **{column: gr.update(visible=one == kind) for one, column in self.kinds.items()},
            **{column: gr.update(visible=one == kind) for one, column in self.advanced.items()},
            **self._fields(recipe, stage),
            **{
                self.form[f"run.lora{i + 1}"]: gr.update(visible=i < len(recipe.files))
                for i in range(LORA_SLOTS)
            },
            self.same: gr.update(visible=has_several_trainings(recipe)),
            self.control: gr.update(visible=recipe.measures),
            self.captions.fold: gr.update(visible=bool(recipe.pictures)),
        }

    def opened(self, recipe: Recipe) -> Answer:
        """What belongs to a recipe that was chosen is in sight."""
        return {self.captions.fold: gr.update(visible=bool(recipe.pictures), open=reads_captions(recipe))}

    def _fields(self, recipe: Recipe, stage: str) -> Answer:
        values, shown = form_values(recipe, stage), visible_paths(recipe, stage)
        return {self.form[p]: gr.update(value=v, visible=p in shown) for p, v in values.items()}

    def arrived(self, recipe: Recipe) -> Answer:
        """Put a recipe from elsewhere into the form; the list shows its title where it has that."""
        title = recipe.title if recipe.title in recipes_by_title(self.parts) else None
        return {**self.show(recipe), self.choose: gr.update(value=title)}

    def outputs(self) -> set[Any]:
        """All that ``show`` changes."""
        slots = {self.form[f"run.lora{i + 1}"] for i in range(LORA_SLOTS)}
        fields = {self.form[path] for path in LEAVES}
        columns = {*self.kinds.values(), *self.advanced.values()}
        alone = {self.state, self.stage, self.explanation, self.same, self.control, self.captions.fold}
        return {*alone, *columns, *fields, *slots}

    def visibility(self, recipe: Recipe, stage: str) -> Answer:
        """Show the fields that matter with the values that they have now."""
        among = [*paths_of(RECIPE), *paths_of(kind_of(recipe.stage(stage)))]
        return self.form.visible(visible_paths(recipe, stage), among)

    def switch(self, data: Any) -> Answer:
        """Another stage was chosen: what the form holds goes into the recipe first."""
        recipe, stage, problems = self.read(data)
        if problems:
            return {
                self.stage: gr.update(value=data[self.state]["stage"]),
                self.said: pieces.note(f"{problems[0].message} (then choose another stage)", "bad"),
            }
        return self.show(recipe, str(data.get(self.stage) or stage))

    def load(self, data: Any) -> Answer:
        """Another recipe was chosen."""
        known, title = recipes_by_title(self.parts), data.get(self.choose)
        if title not in known:
            raise BadInput(f"the recipe {title!r} is not there any more: choose another one")
        return self.show(known[title])

    def same_for_all(self, data: Any) -> Answer:
        """The essential numbers of the shown training, for all."""
        recipe, stage, problems = self.read(data)
        if problems:
            raise BadInput(problems[0].message)
        return {
            **self.show(with_all_trainings(recipe, stage), stage),
            self.said: pieces.note(words.DONE, "good"),
        }

    def captioned(self, data: Any, pictures: Pictures) -> Answer:
        """Caption the pictures, and have this run's trainings read that."""
        recipe, stage, problems = self.read(data)
        if problems:
            raise BadInput(problems[0].message)
        answer = self.captions.written(data, recipe, pictures)
        return {**self.show(with_caption_files(recipe), stage), **answer}

    def json_text(self, data: Any) -> Answer:
        """The recipe as JSON."""
        recipe, _, problems = self.read(data)
        if problems:
            raise BadInput(problems[0].message)
        shown = json.dumps(recipe_to_json(recipe), indent=1, ensure_ascii=False)
        return {self.form["preset.json"]: gr.update(value=shown)}

    def json_applied(self, data: Any) -> Answer:
        """The recipe from the JSON."""
        given = str(self.form.answers(data).get("preset.json") or "")
        if not given.strip():
            raise BadInput("there is no JSON: press 'Show the JSON' first, then change it")
        return self.arrived(recipe_from_text(given, "the text"))

    def _listed(self, title: str) -> Answer:
        return {self.choose: gr.update(choices=list(recipes_by_title(self.parts)), value=title)}

    def saved(self, data: Any) -> Answer:
        """Keep the recipe under a name of the user's."""
        from copier.app.own_recipes import save_preset

        recipe, stage, problems = self.read(data)
        if problems:
            raise BadInput(problems[0].message)
        name = str(self.form.answers(data).get("preset.name") or "").strip()
        save_preset(recipe, name, self.parts.settings)
        said = pieces.note(f"Saved as {name}.", "good")
        return {**self.show(recipes_by_title(self.parts)[name], stage), **self._listed(name), self.said: said}

    def _own(self, data: Any) -> str:
        from copier.app.own_recipes import own_presets

        name = str(data.get(self.choose) or "")
        if name not in own_presets(self.parts.settings):
            raise BadInput("built-in recipes stay as they are: choose one of your own above")
        return name

    def renamed(self, data: Any) -> Answer:
        """Give an own recipe another name."""
        from copier.app.own_recipes import rename_preset

        name = str(self.form.answers(data).get("preset.name") or "").strip()
        rename_preset(self._own(data), name, self.parts.settings)
        return {**self._listed(name), self.said: pieces.note(f"Renamed to {name}.", "good")}

    def deleted(self, data: Any) -> Answer:
        """Delete an own recipe; the form keeps it."""
        from copier.app.own_recipes import delete_preset

        name = self._own(data)
        delete_preset(name, self.parts.settings)
        first = first_recipe(self.parts)
        return {**self._listed(first.title), **self.show(first),
                self.said: pieces.note(f"Deleted {name}.", "good")}  # fmt: skip

    def uploaded(self, data: Any) -> Answer:
        """A recipe from a file that was dropped in."""
        from copier.app.own_recipes import imported, recipe_of_lora, recipe_of_picture

        files = file_paths(data.get(self.upload))
        if not files:
            return {}
        kind = files[0].suffix.lower()
        if kind == ".json":
            return self.loaded(imported(files[0].read_text(encoding="utf-8"), files[0].name))
        if kind == ".safetensors":
            return self.loaded(recipe_of_lora(files[0]))
        return self.loaded(recipe_of_picture(files[0], self.parts.host.loras()))

    def from_lora(self, data: Any) -> Answer:
        """A recipe from a LoRA in the folder."""
        from copier.app.own_recipes import recipe_of_lora

        path = lora_file(self.form.answers(data).get("preset.lora"), self.parts.host)
        return self.loaded(recipe_of_lora(path))

    def loaded(self, found: Imported) -> Answer:
        """A recipe that came from elsewhere, and what was left out of it."""
        said = " ".join((f"Loaded {found.recipe.title}.", *found.notes))
        return {**self.arrived(found.recipe), self.said: pieces.note(said, "good")}


def _rows(form: Form, fields: Sequence[Leaf], values: Mapping[str, Any], shown: Iterable[str]) -> None:
    """The fields in rows; those that need room stand alone."""
    narrow = [leaf for leaf in fields if leaf.shape not in (Shape.LINES, Shape.PARTS, Shape.NUMBERS)]
    for start in range(0, len(narrow), _ROW):
        with gr.Row():
            for leaf in narrow[start : start + _ROW]:
                _field(form, leaf, values, shown)
    for leaf in fields:
        if leaf not in narrow:
            _field(form, leaf, values, shown)


def _field(form: Form, leaf: Leaf, values: Mapping[str, Any], shown: Iterable[str]) -> None:
    leaf_field(form, leaf, values.get(leaf.path), visible=leaf.path in shown)


def _group_head(label: str, help: str) -> str:
    return str(pieces.note(f"{label}. {help}"))
