"""What a script of sd-scripts is started with: from a training's numbers to its arguments and its files.

Pure: a job in, a command out; the caller writes the files and starts the child. Options and their values
are those of sd-scripts v0.10.1. What its parser would take silently, and then do something else with, is
refused here or written so that it means what the training says.

Pictures of one size lie in a folder of their own, which becomes a dataset without buckets: sd-scripts then
resizes nothing. An epoch is as short as full batches allow, because the loss that it shows is the mean over
one epoch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from copier.checkpoint.family import Family
from copier.errors import BadInput, BadPicture, UnknownName
from copier.recipe import (
    CaptionPolicy,
    LossWeighting,
    Optimiser,
    Precision,
    Schedule,
    TrainingSpec,
)
from copier.training.captions import caption_lines

CAPTION_EXTENSION = ".txt"
"""Stated always: sd-scripts' own default is ``.caption``."""
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""What sd-scripts looks for in a folder, all in small or all in capital letters."""
_FOUND = (*IMAGE_EXTENSIONS, *(ending.upper() for ending in IMAGE_EXTENSIONS))
SIDE_STEP = 64
"""Sides are multiples of this, in pixels: eight for the autoencoder, and three halvings in SD 1's U-Net."""

_EMPTY_CHOICE = "{|}"
"""One of several captions that is empty: sd-scripts drops an empty line, and draws this one as no text."""


@dataclass(frozen=True)
class Script:
    """A training script of sd-scripts and what it can do.

    Attributes:
        file: its name in the folder of sd-scripts.
        network: the module of the LoRA.
        tokenizers: the folders that it looks for in the tokenizers' folder, before it asks the network.
        flags: what says the family.
        caches_texts: it can encode the captions once and then leave the text encoders alone.
        skips_layers: clip skip is of use; for other families it has no meaning (sd-scripts only warns).
    """

    file: str
    network: str
    tokenizers: tuple[str, ...]
    flags: tuple[str, ...] = ()
    caches_texts: bool = False
    skips_layers: bool = False


_CLIP_L = "openai_clip-vit-large-patch14"

SCRIPTS: Mapping[Family, Script] = MappingProxyType(
    {
        Family.SD1: Script("train_network.py", "networks.lora", (_CLIP_L,), skips_layers=True),
        Family.SD2: Script(
            "train_network.py", "networks.lora", ("stabilityai_stable-diffusion-2",), flags=("--v2",)
        ),
        Family.SDXL: Script(
            "sdxl_train_network.py",
            "networks.lora",
            (_CLIP_L, "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k"),
            caches_texts=True,
        ),
    }
)
"""The families that can be trained. Another one is a line here, and its own files in ``ScriptJob``."""

_BY_FIELD = {
    "steps": "--max_train_steps --max_train_epochs",
    "batch_size": "--train_batch_size",
    "learning_rate": "--learning_rate --unet_lr",
    "schedule": "--lr_scheduler --lr_scheduler_type",
    "warmup_steps": "--lr_warmup_steps",
    "optimiser": "--optimizer_type --use_8bit_adam --use_lion_optimizer",
    "optimiser_arguments": "--optimizer_args",
    "rank": "--network_dim",
    "alpha": "--network_alpha",
    "text_encoder": "--network_train_unet_only --network_train_text_encoder_only",
    "captions": "--shuffle_caption --keep_tokens --enable_wildcard --caption_dropout_rate",
    "loss_weighting": "--min_snr_gamma --debiased_estimation_loss",
    "noise_offset": "--noise_offset",
    "min_timestep": "--min_timestep",
    "max_timestep": "--max_timestep",
    "precision": "--mixed_precision",
    "fp8_base": "--fp8_base --fp8_base_unet",
    "gradient_checkpointing": "--gradient_checkpointing",
    "masked_loss": "--masked_loss --alpha_mask",
    "seed": "--seed",
    "base": "--base_weights --base_weights_multiplier",
    "start": "--network_weights --dim_from_weights",
}
"""Options by the field of a recipe that sets them."""

_BY_REASON = {
    "it has no effect beside the dataset file, which Copier writes": (
        "--resolution --enable_bucket --dataset_repeats --train_data_dir --reg_data_dir --in_json "
        "--conditioning_data_dir --caption_extension --caption_extention"
    ),
    "sd-scripts refuses it where latents are cached, as here": "--color_aug --random_crop",
    "with it nothing is trained": "--debug_dataset --output_config --help -h",
    "nothing is uploaded from here": (
        "--huggingface_token --huggingface_repo_id --huggingface_repo_type --huggingface_path_in_repo "
        "--huggingface_repo_visibility --save_state_to_huggingface --resume_from_huggingface "
        "--async_upload --wandb_api_key --wandb_run_name --log_with --log_tracker_name --log_tracker_config"
    ),
    "the LoRA's metadata is Copier's": "--no_metadata",
    "what it keeps lies in the folder of the run, which is deleted": (
        "--save_state --save_state_on_train_end --save_last_n_steps_state --save_last_n_steps "
        "--save_last_n_epochs --save_last_n_epochs_state --cache_latents_to_disk "
        "--cache_text_encoder_outputs_to_disk"
    ),
    "an epoch is a batch or two here, and accelerate accumulates no further: raise batch_size": (
        "--gradient_accumulation_steps"
    ),
    "there are no loader processes here": "--persistent_data_loader_workers",
    "Copier reads the log": "--console_log_simple --console_log_file",
    "an epoch may be as short as a step here": (
        "--save_every_n_epochs --save_n_epoch_ratio --sample_every_n_epochs"
    ),
    "Copier sets it": (
        "--pretrained_model_name_or_path --v2 --v_parameterization --zero_terminal_snr --vae --clip_skip "
        "--tokenizer_cache_dir --dataset_config --dataset_class --config_file --resume --network_module "
        "--output_dir --output_name --save_model_as --save_precision --save_every_n_steps --sample_prompts "
        "--sample_every_n_steps --sdpa --no_half_vae --cache_latents --cache_text_encoder_outputs "
        "--max_data_loader_n_workers"
    ),
}
"""The others, by why they are closed."""

MANAGED: Mapping[str, str] = MappingProxyType(
    {
        **{
            name: f"set {field} in the recipe"
            for field, options in _BY_FIELD.items()
            for name in options.split()
        },
        **{name: reason for reason, options in _BY_REASON.items() for name in options.split()},
    }
)
"""Options that no extra argument may have, and why: they would override what the job says, or stop it."""


@dataclass(frozen=True)
class Pictures:
    """Copies of pictures of one size, alone in a folder that sd-scripts may write to.

    ``captions`` are the texts of the caption files, one a picture, for the caption policy ``files``.

    Raises:
        BadPicture: sd-scripts would not find a picture, or would scale it.
        BadInput: the folder is not an absolute path, or there is not one caption for each picture.
    """

    folder: Path
    names: tuple[str, ...]
    width: int
    height: int
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_absolute("the folder of pictures", self.folder)
        if not self.names:
            raise BadPicture(f"the folder {self.folder} has no picture: give at least one")
        for name in self.names:
            if not name.endswith(_FOUND) or name.startswith("."):
                raise BadPicture(
                    f"sd-scripts does not find the picture {name!r}: give it a name that ends with one of "
                    + ", ".join(IMAGE_EXTENSIONS)
                )
        stems = [PurePath(name).stem for name in self.names]
        if len(set(stems)) < len(stems):
            raise BadPicture(f"two pictures in {self.folder} would share a caption file: rename one")
        for side in (self.width, self.height):
            if side < SIDE_STEP or side % SIDE_STEP:
                raise BadPicture(
                    f"the pictures are {self.width} x {self.height} px: both sides must be multiples of "
                    f"{SIDE_STEP}; crop or pad them"
                )
        if self.captions and len(self.captions) != len(self.names):
            raise BadInput(
                f"there are {len(self.captions)} captions for {len(self.names)} pictures: give one for each"
            )


@dataclass(frozen=True)
class SamplePrompt:
    """One of the pictures that are drawn in between; sides in pixels, multiples of 8."""

    prompt: str
    seed: int
    width: int
    height: int
    negative: str = ""
    steps: int = 20
    guidance: float = 7.0


@dataclass(frozen=True)
class ScriptJob:
    """One training by sd-scripts. All paths are absolute: the child runs in another folder.

    Attributes:
        family: of the checkpoint.
        work: a folder of the job's own, for the files that the command names.
        output_folder, output_name: where the LoRA goes, as ``output_name``.safetensors.
        tokenizers: the folder with those that the script looks for (``tokenizer_folders``).
        base: LoRA files and multipliers, merged into the checkpoint in memory.
        start: a LoRA file to go on from. It must have the training's rank, alpha and modules: sd-scripts
            fails at another rank, counts another alpha wrongly and leaves out other modules silently.
        vae: an autoencoder's file that takes the place of the checkpoint's.
        clip_skip: as hosts count it; 1 uses all layers. Only SD 1.x has it.
        velocity: the checkpoint predicts v; ``zero_terminal_snr``: its noise schedule ends at pure noise.
        save_precision: number format of the written LoRA.
        save_every: a file every so many steps; 0: only at the end.
        samples, sample_every: what is drawn every so many steps; 0: nothing.
        extra: arguments of the user's own, checked against the script's options.

    Raises:
        BadInput: something contradicts something else, or the script cannot do it.
    """

    checkpoint: Path
    family: Family
    training: TrainingSpec
    pictures: tuple[Pictures, ...]
    work: Path
    output_folder: Path
    output_name: str
    tokenizers: Path
    base: tuple[tuple[Path, float], ...] = ()
    start: Path | None = None
    vae: Path | None = None
    clip_skip: int = 1
    velocity: bool = False
    zero_terminal_snr: bool = False
    save_precision: Precision = Precision.FP32
    save_every: int = 0
    samples: tuple[SamplePrompt, ...] = ()
    sample_every: int = 0
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.family not in SCRIPTS:
            known = ", ".join(family.value for family in SCRIPTS)
            raise BadInput(
                f"the checkpoint is {self.family.value}, which is not trained with sd-scripts: use {known}"
            )
        self._check_paths()
        if not self.pictures:
            raise BadPicture("there is no picture to train on: give at least one")
        if len({pictures.folder for pictures in self.pictures}) < len(self.pictures):
            raise BadInput("two sizes of pictures lie in one folder: give each size a folder of its own")
        if self.clip_skip < 1:
            raise BadInput(f"clip skip is {self.clip_skip}: the smallest value is 1, which skips nothing")
        if self.clip_skip > 1 and not self.script.skips_layers:
            raise BadInput(
                f"clip skip is {self.clip_skip}, but {self.family.value} has none: set it to 1"
            )
        if self.zero_terminal_snr and not self.velocity:
            raise BadInput(
                "zero terminal SNR is on for a checkpoint that predicts noise: at pure noise there is "
                "nothing to learn; turn v-prediction on, or zero terminal SNR off"
            )
        if min(self.save_every, self.sample_every) < 0:
            raise BadInput("files are saved and samples drawn every 1, 2, ... steps, or never (0)")
        if bool(self.samples) != bool(self.sample_every):
            raise BadInput("samples need both prompts and a number of steps: give both or neither")

    def _check_paths(self) -> None:
        named = {
            "the checkpoint": self.checkpoint,
            "the work folder": self.work,
            "the output folder": self.output_folder,
            "the tokenizers' folder": self.tokenizers,
            "the LoRA to start from": self.start,
            "the autoencoder": self.vae,
        }
        for what, path in (*named.items(), *(("a base LoRA", path) for path, _ in self.base)):
            if path is not None:
                _check_absolute(what, path)
        name = self.output_name
        if not name or name.startswith(("-", ".")) or PurePath(name).name != name or "\\" in name:
            raise BadInput(
                f"the output's name is {name!r}: give a name without folders that starts with neither - nor ."
            )

    @property
    def script(self) -> Script:
        """The script that trains this family."""
        return SCRIPTS[self.family]

    @property
    def tokenizer_folders(self) -> tuple[Path, ...]:
        """What must be there so that the script downloads nothing."""
        return tuple(self.tokenizers / name for name in self.script.tokenizers)

    @property
    def output(self) -> Path:
        """The LoRA that is there at the end."""
        return self.output_folder / f"{self.output_name}.safetensors"

    def saved(self, step: int) -> Path:
        """The LoRA that is saved after ``step`` steps, by ``save_every``."""
        return self.output_folder / f"{self.output_name}-step{step:08d}.safetensors"

    @property
    def dataset_file(self) -> Path:
        """Where the dataset's description goes."""
        return self.work / "dataset.json"

    @property
    def samples_file(self) -> Path:
        """Where the sample prompts go."""
        return self.work / "samples.json"

    @property
    def samples_folder(self) -> Path:
        """Where sd-scripts puts the samples."""
        return self.output_folder / "sample"


@dataclass(frozen=True)
class Command:
    """A script's name, its arguments, and the contents of the files that must be there before it starts.

    ``captions`` are the texts of the caption files by their paths.
    """

    script: str
    argv: tuple[str, ...]
    dataset: Mapping[str, Any]
    samples: tuple[Mapping[str, Any], ...]
    captions: Mapping[Path, str]
    job: ScriptJob

    def files(self) -> dict[Path, str]:
        """Path and text of every file to write, in UTF-8.

        The JSON is ASCII: sd-scripts opens the dataset file in the system's encoding.
        """
        texts = {self.job.dataset_file: json.dumps(self.dataset, indent=1), **self.captions}
        if self.samples:
            texts[self.job.samples_file] = json.dumps(self.samples, indent=1)
        return texts


def build_command(job: ScriptJob, options: Collection[str] = ()) -> Command:
    """The command of ``job``.

    Args:
        options: the option strings of the script's own parser, ``--learning_rate`` and so on; needed only
            where the job has extra arguments.

    Raises:
        UnknownName: an extra argument that the script does not have.
        BadInput: an extra argument that would override what the job says.
    """
    lines = _lines_by_picture(job)
    varied = any(len(choices) > 1 for _, choices in lines)
    argv = tuple(part for group in _arguments(job, varied=varied) for part in group)
    check_extra(job.extra, options, script=job.script.file, used=argv)
    return Command(
        script=job.script.file,
        argv=(*argv, *job.extra),
        dataset=_dataset(job, varied=varied),
        samples=tuple(map(_sample, job.samples)),
        captions={path: caption_text(choices, varied=varied) for path, choices in lines},
        job=job,
    )


def check_extra(
    extra: Sequence[str], options: Collection[str], *, script: str, used: Collection[str] = ()
) -> None:
    """Check a user's own arguments by name; their values are for the script's parser to judge.

    Names are written out: argparse would take ``--base_w`` for ``--base_weights``.

    Raises:
        UnknownName: an option that is not among the script's ``options``.
        BadInput: an option that is ``MANAGED`` or among those ``used``, or a value without an option.
    """
    for number, word in enumerate(extra):
        if not word.startswith("-") or re.match(r"-\.?\d", word):
            if number == 0:
                raise BadInput(f"the extra arguments begin with {word!r}: begin with an option, as in --name")
            continue
        name = word.partition("=")[0]
        if name not in options:
            raise UnknownName(f"option of {script}", name, options)
        if name in MANAGED:
            raise BadInput(f"the extra argument {name} is not possible: {MANAGED[name]}")
        if name in used:
            raise BadInput(f"the extra argument {name} would override the recipe's: leave it out")


def caption_text(choices: Sequence[str], *, varied: bool) -> str:
    """The text of a caption file with the ``choices``, one of which sd-scripts draws at each step.

    Args:
        varied: ``enable_wildcard`` is on. Braces are then doubled, or they would mean a choice.
    """
    lines = [" ".join(choice.split()) for choice in choices]
    if varied:
        lines = [line.replace("{", "{{").replace("}", "}}") or _EMPTY_CHOICE for line in lines]
    # A file without any line is an AssertionError, one with an empty line an empty caption.
    return "".join(f"{line}\n" for line in lines)


def sample_number(name: str, output_name: str) -> tuple[int, int] | None:
    """Step and number of the prompt of a sample, from the name of its file; None of another file."""
    match = re.fullmatch(re.escape(output_name) + r"_(\d{6,})_(\d{2,})_\d{14}(_\d+)?\.png", name)
    return (int(match[1]), int(match[2])) if match else None


def _lines_by_picture(job: ScriptJob) -> list[tuple[Path, tuple[str, ...]]]:
    """Each picture's caption file and the captions that are drawn from."""
    spec = job.training.captions
    found = []
    for pictures in job.pictures:
        if spec.policy is CaptionPolicy.FILES and not pictures.captions:
            raise BadInput(
                f"the pictures in {pictures.folder} have no captions, which the caption policy 'files' needs"
            )
        for number, name in enumerate(pictures.names):
            path = (pictures.folder / name).with_suffix(CAPTION_EXTENSION)
            if spec.policy is CaptionPolicy.FILES:
                found.append((path, caption_lines(pictures.captions[number])))
            else:
                found.append((path, spec.texts or ("",)))
    return found


def _dataset(job: ScriptJob, *, varied: bool) -> dict[str, Any]:
    spec = job.training
    size = spec.batch_size
    # So many that the pictures of every folder fill whole batches, and each picture counts alike.
    repeats = math.lcm(*(size // math.gcd(len(pictures.names), size) for pictures in job.pictures))
    return {
        "datasets": [
            {
                "resolution": [pictures.width, pictures.height],
                "batch_size": size,
                "enable_bucket": False,
                "subsets": [
                    {
                        "image_dir": str(pictures.folder),
                        "num_repeats": repeats,
                        "caption_extension": CAPTION_EXTENSION,
                        "shuffle_caption": spec.captions.shuffle,
                        "keep_tokens": spec.captions.keep_tokens,
                        "enable_wildcard": varied,
                        "caption_dropout_rate": spec.captions.dropout,
                        "alpha_mask": spec.masked,
                    }
                ],
            }
            for pictures in job.pictures
        ]
    }


def _sample(sample: SamplePrompt) -> dict[str, Any]:
    """As JSON: in sd-scripts' text format an empty prompt, or one with " --" in it, cannot be written."""
    return {
        "prompt": sample.prompt,
        "negative_prompt": sample.negative,
        "width": sample.width,
        "height": sample.height,
        "sample_steps": sample.steps,
        "scale": sample.guidance,
        "seed": sample.seed,
    }


def _arguments(job: ScriptJob, *, varied: bool) -> Iterator[tuple[str, ...]]:
    yield from _model_arguments(job)
    yield from _network_arguments(job)
    yield from _training_arguments(job.training)
    yield from _memory_arguments(job, varied=varied)
    yield "--dataset_config", str(job.dataset_file)
    yield "--output_dir", str(job.output_folder)
    yield "--output_name", job.output_name
    yield "--save_model_as", "safetensors"
    yield "--save_precision", _SAVED[job.save_precision]
    if job.save_every:
        yield "--save_every_n_steps", str(job.save_every)
    if job.sample_every:
        yield "--sample_prompts", str(job.samples_file)
        yield "--sample_every_n_steps", str(job.sample_every)
    # Loader processes would have to be started for every epoch, and epochs are short.
    yield "--max_data_loader_n_workers", "0"
    # Without it the log wraps at the width of a terminal, where the package `rich` is installed.
    yield ("--console_log_simple",)


def _model_arguments(job: ScriptJob) -> Iterator[tuple[str, ...]]:
    yield "--pretrained_model_name_or_path", str(job.checkpoint)
    yield from ((flag,) for flag in job.script.flags)
    if job.velocity:
        yield ("--v_parameterization",)
    if job.zero_terminal_snr:
        yield ("--zero_terminal_snr",)
    if job.vae is not None:
        yield "--vae", str(job.vae)
    if job.clip_skip > 1:
        yield "--clip_skip", str(job.clip_skip)
    yield "--tokenizer_cache_dir", str(job.tokenizers)


def _network_arguments(job: ScriptJob) -> Iterator[tuple[str, ...]]:
    spec = job.training
    yield "--network_module", job.script.network
    yield "--network_dim", str(spec.rank)
    yield "--network_alpha", _number(spec.alpha)
    if spec.conv_rank:
        yield "--network_args", f"conv_dim={spec.conv_rank}", f"conv_alpha={_number(spec.conv_alpha)}"
    if not spec.text_encoder:
        yield ("--network_train_unet_only",)
    if job.start is not None:
        yield "--network_weights", str(job.start)
    if job.base:
        yield "--base_weights", *(str(path) for path, _ in job.base)
        yield "--base_weights_multiplier", *(_number(multiplier) for _, multiplier in job.base)


def _training_arguments(spec: TrainingSpec) -> Iterator[tuple[str, ...]]:
    yield "--max_train_steps", str(spec.steps)
    yield "--seed", str(spec.seed)
    yield "--learning_rate", _number(spec.learning_rate)
    # "constant" refuses a warm-up.
    warm = spec.schedule is Schedule.CONSTANT and spec.warmup_steps
    yield "--lr_scheduler", "constant_with_warmup" if warm else spec.schedule.value
    if spec.warmup_steps:
        yield "--lr_warmup_steps", str(spec.warmup_steps)
    yield "--optimizer_type", _OPTIMISERS[spec.optimiser]
    yield "--optimizer_args", f"weight_decay={_number(spec.weight_decay)}", *spec.optimiser_arguments
    if spec.noise_offset:
        yield "--noise_offset", _number(spec.noise_offset)
    if spec.min_timestep > 0:
        yield "--min_timestep", str(spec.min_timestep)
    if spec.max_timestep < 1000:
        yield "--max_timestep", str(spec.max_timestep)
    if spec.loss_weighting is LossWeighting.MIN_SNR:
        yield "--min_snr_gamma", _number(spec.min_snr_gamma)
    elif spec.loss_weighting is LossWeighting.DEBIASED:
        yield ("--debiased_estimation_loss",)


def _memory_arguments(job: ScriptJob, *, varied: bool) -> Iterator[tuple[str, ...]]:
    """What changes memory and time, and the result by no more than rounding."""
    spec = job.training
    yield "--mixed_precision", _MIXED[spec.precision]
    if spec.fp8_base:
        # The U-Net alone: --fp8_base takes the text encoder too, which is small.
        yield ("--fp8_base_unet",)
    if spec.gradient_checkpointing:
        yield ("--gradient_checkpointing",)
    yield ("--sdpa",)
    # SDXL's autoencoder overflows in fp16, and it encodes each picture only once.
    yield ("--no_half_vae",)
    yield ("--cache_latents",)
    # sd-scripts refuses captions that are shuffled or left away here, but would encode one of several as if
    # it were the only one.
    changing = spec.captions.shuffle or spec.captions.dropout or varied
    if job.script.caches_texts and not (spec.text_encoder or changing):
        yield ("--cache_text_encoder_outputs",)


_SAVED = MappingProxyType({Precision.FP32: "float", Precision.FP16: "fp16", Precision.BF16: "bf16"})
_MIXED = MappingProxyType({Precision.FP32: "no", Precision.FP16: "fp16", Precision.BF16: "bf16"})
_OPTIMISERS = MappingProxyType({Optimiser.ADAMW: "AdamW", Optimiser.ADAMW_8BIT: "AdamW8bit"})


def _number(value: float) -> str:
    """Without an exponent: argparse takes -1e-05 for an option, and -0.00001 for a number."""
    text = format(Decimal(repr(float(value))), "f")
    return text.removesuffix(".0")


def _check_absolute(what: str, path: Path) -> None:
    if not path.is_absolute():
        raise BadInput(f"{what} is {str(path)!r}: give the whole path, from the root on")
