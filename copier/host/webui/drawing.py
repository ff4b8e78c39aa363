"""Pictures by the host's own pipeline: with its samplers and its settings. Its queue lock is held."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from copier.app.ports import GenerateRequest
from copier.errors import BadInput, Cancelled, CopierError
from copier.host.webui.flavour import is_forge
from copier.host.webui.loras import tag
from copier.model_options import AS_IT_IS, Prediction, Switch


@dataclass(frozen=True)
class Sketch:
    """A picture that is not kept yet, and what it was drawn from as the host writes it."""

    image: Image.Image
    seed: int
    infotext: str


def sampler_names() -> tuple[str, ...]:
    """Those that the host shows, in its order."""
    from modules import sd_samplers

    return tuple(sd_samplers.visible_sampler_names())


def check_model_options(request: GenerateRequest) -> None:
    """Raise BadInput for what a host takes from the checkpoint itself."""
    model = request.model
    if model.prediction is not Prediction.AUTO or model.zero_terminal_snr is not Switch.AUTO:
        raise BadInput(
            "the WebUI tells prediction and zero terminal SNR by the checkpoint and its own settings: leave "
            "both at auto to draw with it"
        )


def overrides(request: GenerateRequest, title: str) -> dict[str, Any]:
    """The host's settings for this request alone; ``title`` is the checkpoint's, "" for the current one."""
    found: dict[str, Any] = {"sd_model_checkpoint": title} if title else {}
    if request.model != AS_IT_IS:
        found["CLIP_stop_at_last_layers"] = request.model.clip_skip
    if request.model.vae is not None:
        if is_forge():
            found["forge_additional_modules"] = [str(request.model.vae)]
        else:
            found["sd_vae"] = request.model.vae.name
    return found


def draw(request: GenerateRequest, side: int, title: str) -> list[Sketch]:
    """Draw what ``request`` asks for; ``side`` in pixels stands for a side that it leaves open.

    Raises:
        Cancelled: someone stopped it.
        CopierError: the host failed; the message says how.
    """
    from modules import scripts, shared
    from modules.processing import StableDiffusionProcessingTxt2Img, process_images

    tags = "".join(f" {tag(path, weight)}" for path, weight in request.loras)
    work = StableDiffusionProcessingTxt2Img(
        outpath_samples=shared.opts.outdir_samples or shared.opts.outdir_txt2img_samples,
        outpath_grids=shared.opts.outdir_grids or shared.opts.outdir_txt2img_grids,
        prompt=request.prompt + tags,
        negative_prompt=request.negative,
        seed=request.seed,
        sampler_name=request.sampler or sampler_names()[0],
        batch_size=1,
        n_iter=request.count,
        steps=request.steps,
        cfg_scale=request.guidance,
        width=request.width or side,
        height=request.height or side,
        do_not_save_samples=True,
        do_not_save_grid=True,
        override_settings=overrides(request, title),
    )
    # Without a runner of its own and a list of arguments the tags would not be in the text.
    work.scripts, work.script_args = scripts.ScriptRunner(), []
    with contextlib.closing(work):
        try:
            done = process_images(work)
        except Exception as error:
            raise CopierError(
                f"the WebUI could not draw ({type(error).__name__}: {error}): see whether its own txt2img "
                "draws with this checkpoint and size"
            ) from error
        finally:
            shared.total_tqdm.clear()
    # The second: the host's setting to end after the picture that is being drawn.
    if shared.state.interrupted or getattr(shared.state, "stopping_generation", False):
        raise Cancelled("drawing was stopped")
    return _sketches(done, request)


def _sketches(done: Any, request: GenerateRequest) -> list[Sketch]:
    """The pictures without a grid in front of them."""
    first = done.index_of_first_image
    images, texts = done.images[first:], done.infotexts[first:]
    if len(images) < request.count:
        raise CopierError(f"the WebUI drew {len(images)} of {request.count} pictures, and gave no reason")
    return [
        Sketch(_opened(images[i]), request.seed + i, texts[i] if i < len(texts) else "")
        for i in range(request.count)
    ]


def _opened(image: Any) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.open(Path(image))
