"""Training by text alone: a concept is erased, enhanced or moved on the checkpoint's own predictions.

With e(p) what the frozen checkpoint predicts of x_t for the prompt p, in the context of the step, and e()
what it predicts without any, the LoRA is trained so that the prompt that changes (``target``) predicts of
the same x_t

    erase    e(neutral) - guidance (e(positive) - e())
    enhance  e(neutral) + guidance (e(positive) - e())
    move     e(positive) + guidance (e(positive) - e(target))

x_t is drawn with the LoRA as it is so far, from noise to a random step of DDIM, guided by
``drawing_guidance``. erase with the neutral prompt "" and no contexts is ESD (Gandikota et al. 2023,
"Erasing Concepts from Diffusion Models", arXiv 2303.07345); the four prompts, enhance and the drawing with
the LoRA are LECO's (p1atdev/LECO, ``train_lora.py`` and ``prompt_util.py``). move with guidance 0 aims at
what "Ablating Concepts in Text-to-Image Diffusion Models" (Kumari et al. 2023, arXiv 2303.13516) calls the
anchor concept; the guidance on top of that is this program's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from copier.checkpoint.shapes import LATENT_CHANNELS
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import LATENT_STRIDE
from copier.diffusion.prompts import Conditions, encode_guided, joined
from copier.diffusion.sample import denoise, scheduler
from copier.errors import BadInput
from copier.progress import CancelToken
from copier.recipe import ConceptAction, ConceptSpec, TrainingSpec
from copier.training.lora_modules import LoraModules
from copier.training.objectives import Pass, predicted, random_stream

Predictions = Callable[[str | None], torch.Tensor]
"""What the frozen checkpoint predicts for a prompt of the concept in its context; for None without any."""


def aim(concept: ConceptSpec, frozen: Predictions) -> torch.Tensor:
    """What the prompt that changes should predict, (n, 4, h, w); the formulas are in the module's docstring.

    ``frozen`` is asked for ``concept.target``, ``concept.leading``, ``concept.neutral`` and None.
    """
    leading = frozen(concept.leading)
    if concept.action is ConceptAction.MOVE:
        return leading + concept.guidance * (leading - frozen(concept.target))
    direction = concept.guidance * (leading - frozen(None))
    neutral = frozen(concept.neutral)
    return neutral - direction if concept.action is ConceptAction.ERASE else neutral + direction


class ConceptObjective:
    """Makes the passes of a training by text alone."""

    def __init__(
        self,
        model: DiffusionModel,
        spec: TrainingSpec,
        concept: ConceptSpec,
        lora: LoraModules,
        *,
        clip_skip: int,
        cancel: CancelToken,
    ) -> None:
        """
        Raises:
            BadInput: no step of the drawing lies between the training's first and last timestep.
        """
        self._model, self._spec, self._concept, self._lora = model, spec, concept, lora
        self._cancel = cancel
        ddim = scheduler(model.predicts)
        ddim.set_timesteps(concept.sampling_steps)
        levels = [int(timestep) for timestep in ddim.timesteps]
        self._levels = [
            (done, level)
            for done, level in enumerate(levels)
            if spec.min_timestep <= level < spec.max_timestep
        ]
        if not self._levels:
            raise BadInput(
                f"none of the {concept.sampling_steps} steps of drawing lies between the timesteps "
                f"{spec.min_timestep} and {spec.max_timestep}: give more steps, or widen the limits"
            )
        self._noise, self._steps, self._places = (
            random_stream(spec.seed, name) for name in ("noise", "timesteps", "contexts")
        )
        self._encoded: dict[str, Conditions] = {}
        prompts = dict.fromkeys((concept.target, concept.leading, concept.neutral))
        for prompt in prompts:
            self._encoded[prompt], self._nothing = encode_guided(
                model, concept.in_contexts(prompt), "", clip_skip=clip_skip
            )

    @torch.no_grad()
    def passes(self) -> Sequence[Pass]:
        """Of the next step: one, on latents that the LoRA draws for it."""
        size, concept = self._spec.batch_size, self._concept
        rows = torch.randint(len(concept.contexts), (size,), generator=self._places).tolist()
        done, level = self._levels[int(torch.randint(len(self._levels), (1,), generator=self._steps))]
        side = self._spec.resolution // LATENT_STRIDE
        noise = torch.randn(size, LATENT_CHANNELS, side, side, generator=self._noise)
        conditions = self._encoded[concept.target].rows(rows)
        noised = denoise(
            self._model,
            noise,
            conditions,
            self._nothing,
            torch.full((size,), concept.drawing_guidance),
            steps=concept.sampling_steps,
            last=done,
            cancel=self._cancel,
        )
        timesteps = torch.full((size,), level, device=self._model.device)
        with self._lora.at(0.0):
            target = aim(concept, self._frozen(noised, timesteps, rows))
        return (Pass(noised, timesteps, target, lambda: conditions),)

    def _frozen(self, noised: torch.Tensor, timesteps: torch.Tensor, rows: list[int]) -> Predictions:
        """The predictions for all prompts, made in one pass."""
        known: dict[str | None, Conditions] = {
            prompt: encoded.rows(rows) for prompt, encoded in self._encoded.items()
        }
        known[None] = self._nothing.repeated(len(rows))
        count = len(known)
        outputs = predicted(
            self._model,
            noised.repeat(count, 1, 1, 1),
            timesteps.repeat(count),
            joined([*known.values()]),
        )
        return dict(zip(known, outputs.chunk(count), strict=True)).__getitem__
