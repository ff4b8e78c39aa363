"""Recipes, and what the host has: checkpoints, LoRAs, samplers."""

from __future__ import annotations

from copier.api.bodies import install_schema, recipe_schema
from copier.api.calls import Call, Endpoint, Json, NotFound
from copier.app.own_recipes import known_recipes, listed
from copier.app.submission import lora_label, lora_path, read_picture_file, read_recipe
from copier.codec import recipe_to_json, value_from_json, with_values
from copier.errors import BadInput, NotNow, UnknownName, about
from copier.version import program_version


def _program(call: Call) -> Json:
    host = call.services.host
    return {
        "program": "copier",
        "version": program_version(),
        "host": host.name,
        "runner": call.services.jobs.runner(),
        "busy": host.busy(),
        "restricted": host.security().restricted,
    }


def _recipes(call: Call) -> Json:
    return {"recipes": listed(call.services.settings)}


def _recipe(call: Call) -> Json:
    known, name = known_recipes(call.services.settings), call.path["name"]
    if name not in known:
        raise NotFound(UnknownName("recipe", name, known))
    return recipe_to_json(known[name])


def _checked(call: Call) -> Json:
    call.only("recipe", "set")
    with about("recipe"):
        taken = read_recipe(call.body.get("recipe"), call.services.settings)
    changes = call.value("set", tuple[str, ...], ())
    with about("set"):
        recipe = with_values(taken.recipe, changes)
    return {"recipe": recipe_to_json(recipe), "notes": list(taken.notes)}


def _checkpoints(call: Call) -> Json:
    host = call.services.host
    current = host.current_checkpoint()
    rows = [
        {
            "name": one.name,
            "path": str(one.path),
            "family": one.family,
            "sha256": one.sha256,
            "embedded": one.embedded,
            "current": current is not None and one.path == current.path,
        }
        for one in host.checkpoints()
    ]
    vaes = [{"name": one.name, "path": str(one.path)} for one in host.vaes()]
    return {"checkpoints": rows, "vaes": vaes, "samplers": list(host.samplers())}


def _loras(call: Call) -> Json:
    host = call.services.host
    return {"loras": [{"name": lora_label(path, host), "path": str(path)} for path in host.loras()]}


def _install(call: Call) -> Json:
    from copier.app.installing import Card, install_lora
    from copier.app.job_results import result_lora

    call.only("job", "lora", "name", "card", "preview")
    services, body = call.services, call.body
    if ("job" in body) == ("lora" in body):
        raise BadInput("give either the job whose result is meant, or a LoRA file")
    if "job" in body:
        with about("job"):
            job = services.jobs.job(value_from_json("job", str, body["job"]))
            source = result_lora(job)
            if source is None:
                raise NotNow(f"the job {job.id} is {job.state.value} and made no LoRA: wait until it has")
    else:
        with about("lora"):
            source = lora_path(body["lora"], services.host)
    card = call.value("card", Card, {})
    preview = None
    if body.get("preview") is not None:
        with about("preview"):
            preview = read_picture_file(body["preview"], services.host, services.settings)
    name = call.value("name", str, "")
    with about("name"):
        placed = install_lora(source, services.host.folders().loras, name, card=card, preview=preview)
    services.host.refresh()
    return {
        "name": lora_label(placed.lora, services.host),
        "path": str(placed.lora),
        "card": str(placed.card),
        "preview": None if placed.preview is None else str(placed.preview),
    }


ENDPOINTS = (
    Endpoint("GET", "/", _program, "What runs here, and whether it works the queue."),
    Endpoint("GET", "/recipes", _recipes, "The recipes that come with the program, and those of your own."),
    Endpoint("GET", "/recipes/{name}", _recipe, "One recipe with all its stages and numbers."),
    Endpoint(
        "POST",
        "/recipes/check",
        _checked,
        "Check a recipe, also with changed numbers: all of it as it would be run, and what was left out.",
        body=recipe_schema,
    ),
    Endpoint("GET", "/checkpoints", _checkpoints, "The host's checkpoints, VAEs and samplers."),
    Endpoint("GET", "/loras", _loras, "The LoRAs in the host's folder."),
    Endpoint(
        "POST",
        "/loras",
        _install,
        "Put the result of a job, or a file, into the host's LoRA folder under a new name, with a card.",
        body=install_schema,
        status=201,
    ),
)
