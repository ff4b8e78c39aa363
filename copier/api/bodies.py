"""Schemas of what is sent: those of specs and operations, with what ``app.submission`` adds to them."""

from __future__ import annotations

from copier.api.calls import Json
from copier.api.schema import PLACES, Schemas, described, object_schema
from copier.app.operation_arguments import KNOWN, OUT, WEIGHTED, parameters
from copier.app.ports import GenerateRequest
from copier.app.submission import MOST_SEEDS
from copier.codec import value_to_json
from copier.recipe import Recipe
from copier.request import Edit, Generated, PictureFiles, RunRequest

_TEXT: Json = {"type": "string"}
_TRUTH: Json = {"type": "boolean", "default": False}
_CHANGES: Json = {
    "type": "array",
    "items": _TEXT,
    "description": "Numbers of the recipe to change, as path=value: training.steps=300.",
}
_CHECKPOINT: Json = {
    "type": "string",
    "description": "A name of /checkpoints or a path; left out: the one that is chosen in the host.",
}
_LORA: Json = {"type": "string", "description": "A name of /loras or a path."}
_PICTURE: Json = {"$ref": f"{PLACES}Picture"}
_EMBEDDED: Json = {**_TRUTH, "description": "Also send the pictures themselves, as base64."}
_WEIGHTED: Json = {
    "type": "array",
    "items": {"type": "array", "prefixItems": [_LORA, {"type": "number"}], "minItems": 2, "maxItems": 2},
    "description": "LoRAs with weights: [name, weight] each.",
}


def picture_schema() -> Json:
    """A picture as ``submission.read_picture_file`` takes it."""
    sent = object_schema(
        {"data": {"type": "string", "contentEncoding": "base64"}, "name": _TEXT},
        ["data"],
        "The picture itself; a data URI will do.",
    )
    return {"anyOf": [{"type": "string", "description": "A path on the host's machine."}, sent]}


def _pictures(schemas: Schemas) -> Json:
    """One set: a picture, or a source as ``request_json`` writes it."""
    kinds = []
    for kind, cls in (("files", PictureFiles), ("generated", Generated), ("edit", Edit)):
        properties = schemas.properties(cls)
        needed = [name for name, one in properties.items() if "default" not in one and name != "parameters"]
        if cls is PictureFiles:
            properties["paths"] = {"type": "array", "items": _PICTURE, "minItems": 1}
            text = "Scale and crop to what the recipe and the checkpoint are used to."
            properties["scale"] = {**_TRUTH, "description": text}
        kinds.append(object_schema({"kind": {"const": kind}, **properties}, ["kind", *needed]))
    return {"anyOf": [_PICTURE, *kinds]}


def run_schema(schemas: Schemas) -> Json:
    """A run as ``submission.read_run`` takes it."""
    given: Json = {
        "recipe": {"anyOf": [{**_TEXT, "description": "A name of /recipes."}, schemas.spec(Recipe)]},
        "checkpoint": _CHECKPOINT,
        "pictures": {
            "type": "object",
            "additionalProperties": _pictures(schemas),
            "description": "One for each set of the recipe: usually a, the original, and b, the edited one.",
        },
        "out": {"type": "string", "description": "Folder of the outcome; left out: a new one in output."},
        "loras": {"type": "object", "additionalProperties": _LORA},
    }
    properties = {**schemas.properties(RunRequest), **given}
    return object_schema(
        {
            **properties,
            "version": {"type": "integer", "description": "Of the request's format."},
            "set": _CHANGES,
            "card": {"type": ["integer", "null"], "description": "Fit the recipe to a card of so many GB."},
            "control": {**_TRUTH, "description": "Also train a plain LoRA on B, and compare."},
            "seeds": {"type": "integer", "minimum": 1, "maximum": MOST_SEEDS, "default": 1},
        },
        ["recipe", "pictures"],
    )


def generate_schema(schemas: Schemas) -> Json:
    """A drawing as ``submission.read_generation`` takes it, and ``data``."""
    properties = schemas.properties(GenerateRequest)
    more = {"checkpoint": _CHECKPOINT, "loras": _WEIGHTED, "data": _EMBEDDED}
    return object_schema({**properties, **more}, ["prompt"])


def operation_schema(operation: str, schemas: Schemas) -> Json:
    """The arguments of an operation as ``submission.read_operation`` takes them, and ``title``."""
    properties: dict[str, Json] = {"title": _TEXT}
    needed = []
    for name, one in parameters(operation).items():
        if name == "overwrite":
            continue
        schema = {"enum": list(one.choices)} if one.choices else schemas.of(one.hint)
        if name == WEIGHTED:
            schema = _WEIGHTED
        elif name == OUT:
            schema = {**_TEXT, "description": "Name of the new file, or its path."}
        else:
            schema = described(schema, KNOWN.get(name))
        if one.required:
            needed.append(name)
        else:
            schema = {**schema, "default": value_to_json(one.default)}
        properties[name] = schema
    return object_schema(properties, needed)


def recipe_schema(schemas: Schemas) -> Json:
    """A recipe to be checked, by its name or itself, and changes of its numbers."""
    recipe = {"anyOf": [_TEXT, schemas.spec(Recipe)]}
    return object_schema({"recipe": recipe, "set": _CHANGES}, ["recipe"])


def changes_schema(schemas: Schemas) -> Json:
    """Changes of a recipe's numbers."""
    return object_schema({"set": _CHANGES})


def inspect_schema(schemas: Schemas) -> Json:
    """A file to look into: a LoRA or a checkpoint."""
    return object_schema({"lora": _LORA, "checkpoint": _CHECKPOINT})


def measure_schema(schemas: Schemas) -> Json:
    """A measurement of a LoRA on a checkpoint."""
    run = schemas.properties(RunRequest)
    more = {name: run[name] for name in ("out", "title", "device", "threads")}
    edit = {"anyOf": [schemas.spec(Edit), {"type": "null"}]}
    return object_schema({"lora": _LORA, "checkpoint": _CHECKPOINT, "edit": edit, **more}, ["lora"])


def install_schema(schemas: Schemas) -> Json:
    """A LoRA to be put into the host's folder: the result of a job, or a file."""
    from copier.app.installing import Card

    job = {**_TEXT, "description": "Whose result is meant; or name a file as lora."}
    properties = {"job": job, "lora": _LORA, "name": _TEXT, "card": schemas.spec(Card), "preview": _PICTURE}
    return object_schema(properties, ["name"])


def edit_schema(schemas: Schemas) -> Json:
    """A picture that an edit is applied to."""
    out = {**_TEXT, "description": "Path of a new PNG file; left out: among the program's pictures."}
    parameters = schemas.properties(Edit)["parameters"]
    return object_schema(
        {"picture": _PICTURE, "parameters": parameters, "out": out, "data": _EMBEDDED}, ["picture"]
    )
