"""Lines that sd-scripts v0.10.1 and its libraries print: the bar, the phases, the failures."""

from __future__ import annotations

import io
import math
import re

import pytest

from copier import errors
from copier.errors import BadCheckpoint, BadInput, BadPicture, CopierError, OutOfMemory, TrainingFailed
from copier.recipe import Optimiser, Precision, TrainingSpec
from copier.training.kohya_log import (
    FAILURES,
    BarState,
    LogReader,
    Phase,
    bar_state,
    explain,
    failure_in,
    phase_of,
)
from copier.training.protocol import error_from_json, error_to_json

FIRST = "steps:   0%|          | 0/4 [00:00<?, ?it/s]"
SLOW = "steps:  25%|██▌       | 1/4 [00:24<01:14, 24.74s/it, avr_loss=1.22]"
FAST = "steps:  50%|#####     | 2/4 [00:00<00:00,  8.20it/s, avr_loss=0.0123]"
SPEC = TrainingSpec(resolution=512)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        (FIRST, BarState(0, 4, None, None)),
        (SLOW, BarState(1, 4, 1.22, 24.74)),
        (FAST, BarState(2, 4, 0.0123, 1 / 8.2)),
        ("steps:  25%|##5       | 1/4 [00:00<00:00,  8.32it/s]", BarState(1, 4, None, 1 / 8.32)),
        (
            "steps: 100%|##########| 3072/3072 [1:02:03<00:00,  1.21s/it, Average key norm=0.3, "
            "Keys Scaled=4, avr_loss=1.5e-05]",
            BarState(3072, 3072, 1.5e-05, 1.21),
        ),
        ("steps:  25%|██▌       | 1/4 [00:24<01:14, 24.74s/it, avr_loss=1.2", BarState(1, 4, None, 24.74)),
        ("steps:   1%|          | 1/99 [00:00<00:01,  0.00it/s, avr_loss=1]", BarState(1, 99, 1.0, None)),
    ],
)
def test_a_state_of_the_bar_is_read(line, state):
    assert bar_state(line) == state


@pytest.mark.parametrize(
    "line",
    [FIRST + SLOW + FAST, f"{SLOW}\r{FAST}", f"{SLOW}{FAST}epoch 2/4", f"INFO x{FAST}saving checkpoint: /a"],
)
def test_of_glued_lines_the_last_state_counts(line):
    assert bar_state(line) == bar_state(FAST)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "  0%|          | 0/1 [00:00<?, ?it/s]",
        "read caption: 100%|##########| 1/1 [00:00<00:00, 4106.02it/s]",
        "validation steps:  25%|##5       | 1/4 [00:00<00:00,  8.32it/s, val_avg_loss=0.1]",
        "epoch validation steps:  25%|##5       | 1/4 [00:00<00:00,  8.32it/s]",
        "  total optimization steps / 学習ステップ数: 4",
        "steps:  25%|##5",
    ],
)
def test_other_bars_and_lines_are_no_state(line):
    assert bar_state(line) is None


@pytest.mark.parametrize(("text", "value"), [("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf)])
def test_a_loss_that_is_not_a_number_is_read_as_such(text, value):
    state = bar_state(SLOW.replace("1.22", text))
    assert state is not None and state.loss is not None
    assert repr(state.loss) == repr(value)


def test_tqdms_own_bar_is_read_back():
    tqdm = pytest.importorskip("tqdm")
    out = io.StringIO()
    losses = [0.731, 12.5, 1e-7, 0.25, math.nan]
    with tqdm.tqdm(total=len(losses), smoothing=0, desc="steps", file=out, mininterval=0) as bar:
        for loss in losses:
            bar.update(1)
            bar.set_postfix(avr_loss=loss)
    states = [bar_state(piece) for piece in re.split(r"[\r\n]", out.getvalue()) if piece.strip()]
    assert None not in states
    last = {state.step: state.loss for state in states if state}
    assert last.pop(0) is None
    assert list(last) == [1, 2, 3, 4, 5]
    assert list(last.values())[:4] == losses[:4]
    assert math.isnan(last[5])


LOG = f"""
prepare tokenizer
Using DreamBooth method.
preparing accelerator
loading model for process 0/1
load StableDiffusion checkpoint: /models/a.safetensors
[Dataset 0]
caching latents with caching strategy.
caching latents...
import network module: networks.lora
merging module: /a/copier.safetensors with multiplier 1.0
all weights merged: /a/copier.safetensors
prepare optimizer, data loader etc.
running training / 学習開始
  num epochs / epoch数: 4
unet dtype: torch.float32, device: cpu
{FIRST}
epoch 1/4
steps:  25%|##5       | 1/4 [00:01<00:03,  1.00s/it]
steps:  25%|##5       | 1/4 [00:01<00:03,  1.00s/it, avr_loss=0.5]
generating sample images at step / サンプル画像生成 ステップ: 1
steps:  50%|#####     | 2/4 [00:02<00:02,  1.00s/it, avr_loss=0.5]
steps:  50%|#####     | 2/4 [00:02<00:02,  1.00s/it, avr_loss=0.25]
saving checkpoint: /out/lora-step00000002.safetensors
steps:  75%|#######5  | 3/4 [00:03<00:01,  1.00s/it, avr_loss=0.2]
steps: 100%|##########| 4/4 [00:04<00:00,  1.00s/it, avr_loss=0.1]
saving checkpoint: /out/lora.safetensors
steps: 100%|##########| 4/4 [00:04<00:00,  1.00s/it, avr_loss=0.1]
model saved.
"""


def test_a_whole_log_becomes_phases_and_steps_in_order():
    reader = LogReader("copier", 4)
    assert reader.phase is Phase.STARTING
    events = [event for line in LOG.splitlines() for event in reader.feed(line)]
    assert [event.message for event in events if event.message] == [
        "loading the checkpoint",
        "caching latents",
        "merging base LoRAs",
        "preparing the training",
        "training",
        "drawing samples",
        "saving",
        "saving",
    ]
    steps = [(event.step, event.loss) for event in events if not event.message]
    assert steps == [(1, None), (1, 0.5), (2, 0.5), (2, 0.25), (3, 0.2), (4, 0.1)]
    assert {(event.stage, event.steps) for event in events} == {("copier", 4)}
    assert events[-2].seconds_left == 0.0
    assert (reader.phase, reader.broken_at) == (Phase.SAVING, None)


def test_a_step_after_samples_is_training_again():
    reader = LogReader("copier", 4)
    for line in (FIRST, SLOW, "generating sample images at step / サンプル画像生成 ステップ: 1"):
        reader.feed(line)
    assert reader.phase is Phase.SAMPLING
    reader.feed(SLOW)
    assert reader.phase is Phase.SAMPLING
    reader.feed(FAST)
    assert reader.phase is Phase.TRAINING


def test_a_broken_loss_is_told_once_and_is_no_number_in_events():
    reader = LogReader("copier", 4)
    broken = [line.replace("1.22", "nan").replace("0.0123", "nan") for line in (SLOW, FAST)]
    events = [event for line in broken for event in reader.feed(line)]
    assert [(e.step, e.loss, e.message) for e in events] == [
        (1, None, ""), (1, None, "the loss is nan at step 1"), (2, None, ""),
    ]  # fmt: skip
    assert reader.broken_at == 1


def test_phases_begin_with_their_lines_alone():
    found = [phase for line in LOG.splitlines() if (phase := phase_of(line))]
    assert found == [
        *(Phase.LOADING, Phase.LATENTS, Phase.MERGING, Phase.PREPARING, Phase.TRAINING),
        *(Phase.SAMPLING, Phase.SAVING, Phase.SAVING),
    ]
    line = "caching Text Encoder outputs with caching strategy."
    assert phase_of(line) is Phase.CAPTIONS


LINES: dict[str, list[tuple[str, type[CopierError], str]]] = {
    "card memory": [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total "
            "capacity of 7.79 GiB of which 14.88 MiB is free.",
            OutOfMemory,
            "--set training.precision=fp16, --set training.gradient_checkpointing=true, "
            "--set training.fp8_base=true, --set training.resolution=384",
        ),
        (
            "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB (GPU 0; 8.00 GiB "
            "total capacity; 6.41 GiB already allocated; 0 bytes free)",
            OutOfMemory,
            "lower these, one after the other",
        ),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
         OutOfMemory, "close other programs"),
    ],
    "main memory": [
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate "
         "memory: you tried to allocate 26214400 bytes. Error code 12 (Cannot allocate memory)",
         TrainingFailed, "RAM"),
        ("OSError: [WinError 1455] The paging file is too small for this operation to complete. "
         'Error loading "C:\\torch\\lib\\cublas64_12.dll" or one of its dependencies.',
         TrainingFailed, "page file"),
        ("MemoryError", TrainingFailed, "unload the WebUI's own checkpoint"),
    ],
    "latents without numbers": [
        ("RuntimeError: NaN detected in latents: /run/pictures/0.png", TrainingFailed, "another autoencoder"),
        ("NaN found in latents, replacing with zeros", TrainingFailed, "another autoencoder"),
    ],
    "loss without number": [
        ("steps: 100%|##########| 4/4 [00:04<00:00,  1.00s/it, avr_loss=nan]", TrainingFailed,
         "the loss became nan: lower the learning rate"),
    ],
    "no pictures": [
        ("No data found. Please verify arguments (train_data_dir must be the parent of folders with images) "
         "/ 画像がありません。引数指定を確認してください", BadPicture, "found no picture"),
    ],
    "8-bit optimiser": [
        ("ImportError: No bitsandbytes / bitsandbytesがインストールされていないようです", TrainingFailed,
         "--set training.optimiser=adamw,"),
        ("ModuleNotFoundError: No module named 'bitsandbytes'", TrainingFailed, "training.optimiser=adamw"),
    ],
    "missing module": [
        ("ModuleNotFoundError: No module named 'voluptuous'", TrainingFailed,
         "lacks the package voluptuous: install the trainer's packages again"),
    ],
    "torchvision": [
        ("RuntimeError: operator torchvision::nms does not exist", TrainingFailed, "does not fit torch"),
    ],
    "hub": [
        ("OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them "
         "in the cached files.", TrainingFailed, "nothing is downloaded"),
        ("OSError: Can't load tokenizer for 'openai/clip-vit-large-patch14'. If you were trying to load it "
         "from 'https://huggingface.co/models', make sure you don't have a local directory with the same "
         "name.", TrainingFailed, "brings the tokenizers"),
        ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache "
         "and outgoing traffic has been disabled.", TrainingFailed, "nothing is downloaded"),
        ("requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): Max "
         "retries exceeded with url: /openai/clip-vit-large-patch14",
         TrainingFailed, "nothing is downloaded"),
    ],
    "no such checkpoint": [
        ('ValueError: The provided pretrained_model_name_or_path "/models/gone.safetensors" is neither a '
         "valid local path nor a valid repo id. Please check the parameter.", BadCheckpoint, "file is gone"),
    ],
    "damaged checkpoint": [
        ("safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
         BadCheckpoint, "download it again"),
        ("safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete "
         "metadata, file not fully covered", BadCheckpoint, "cut off or damaged"),
        ("RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
         BadCheckpoint, "cut off or damaged"),
    ],
    "start of another shape": [
        ("RuntimeError: Error(s) in loading state_dict for LoRANetwork:", BadInput, "same rank"),
    ],
    "wrong family": [
        ("KeyError: 'time_embed.0.weight'", BadCheckpoint, "of another family"),
        ("RuntimeError: Error(s) in loading state_dict for UNet2DConditionModel:", BadCheckpoint,
         "of another family"),
    ],
    "empty caption file": [
        ("AssertionError: caption file is empty / キャプションファイルが空です: /run/pictures/a b.txt",
         BadInput, "the caption file /run/pictures/a b.txt is empty"),
    ],
    "unreadable picture": [
        ("Error loading file: /run/pictures/a b.png", BadPicture, "picture /run/pictures/a b.png cannot"),
        ("PIL.UnidentifiedImageError: cannot identify image file '/run/pictures/0.png'", BadPicture,
         "the picture '/run/pictures/0.png' cannot"),
    ],
    "picture without size": [
        ("ZeroDivisionError: division by zero", BadPicture, "a picture cannot be read"),
        ("OSError: image file is truncated (17 bytes not processed)", BadPicture, "a picture cannot be read"),
    ],
    "disk full": [
        ("OSError: [Errno 28] No space left on device", TrainingFailed, "the disk is full"),
        ("safetensors_rust.SafetensorError: Error while serializing: IoError(Os { code: 28, kind: "
         'StorageFull, message: "No space left on device" })', TrainingFailed, "the disk is full"),
    ],
    "broken pipe": [("BrokenPipeError: [Errno 32] Broken pipe", TrainingFailed, "had ended")],
    "arguments": [
        ("train_network.py: error: unrecognized arguments: --no_such_thing", BadInput,
         r"(unrecognized arguments: --no_such_thing)"),
        ("train_network.py: error: argument --loss_type: invalid choice: 'l3' (choose from 'l1', 'l2')",
         BadInput, "leave out the extra argument"),
    ],
    "dataset": [
        ("voluptuous.error.MultipleInvalid: extra keys not allowed @ data['datasets'][0]['size']",
         TrainingFailed, "(extra keys not allowed @ data['datasets'][0]['size'])"),
    ],
    "no bf16": [
        ("ValueError: bf16 mixed precision requires PyTorch >= 1.10 and a supported device.", BadInput,
         "--set training.precision=fp16"),
    ],
    "no card": [
        ("ValueError: fp16 mixed precision requires a GPU (not 'cpu').", BadInput, "training.precision=fp32"),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", BadInput,
         "update the card's driver"),
    ],
}  # fmt: skip
"""Lines as they are printed, by the name of the failure that they tell, with the error and a part of it."""

CASES = [(name, *case) for name, cases in LINES.items() for case in cases]


def test_every_failure_has_a_real_line():
    assert list(LINES) == [failure.name for failure in FAILURES]


@pytest.mark.parametrize(("name", "line", "kind", "text"), CASES, ids=[f"{c[0]}-{c[1][:24]}" for c in CASES])
def test_a_failure_is_told_by_its_line_with_a_remedy(name, line, kind, text):
    lines = ["steps:   0%|          | 0/4 [00:00<?, ?it/s]", "Traceback (most recent call last):", line]
    found = failure_in(lines)
    assert found is not None and found[0].name == name
    error = explain(lines, 1, SPEC)
    assert type(error) is kind
    message, *quoted = str(error).split("\n")
    assert text in message
    assert "{" not in message
    assert not any("steps:" in one for one in quoted)


def test_the_settings_to_lower_are_offered_as_a_list_that_travels():
    lines = [LINES["card memory"][0][0]]
    spec = TrainingSpec(
        batch_size=4, optimiser=Optimiser.ADAMW, precision=Precision.FP16, text_encoder=True, resolution=1024
    )
    error = explain(lines, 1, spec)
    assert isinstance(error, OutOfMemory)
    assert error.settings == [
        "training.gradient_checkpointing=true",
        "training.batch_size=2",
        "training.optimiser=adamw8bit",
        "training.fp8_base=true",
        "training.text_encoder=false",
        "training.resolution=768",
    ]
    there = error_from_json(error_to_json(error))
    assert isinstance(there, errors.OutOfMemory)
    assert (there.settings, str(there)) == (error.settings, str(error))


def test_where_nothing_is_left_to_lower_smaller_pictures_are_advised():
    least = TrainingSpec(
        precision=Precision.FP16, gradient_checkpointing=True, fp8_base=True, rank=4, alpha=4.0, resolution=0
    )
    error = explain(["torch.OutOfMemoryError: CUDA out of memory."], 1, least)
    assert "use smaller pictures" in str(error)


def test_the_last_line_that_says_something_counts():
    warned = ["ModuleNotFoundError: No module named 'xformers'", "running training / 学習開始"]
    last = "torch.OutOfMemoryError: CUDA out of memory."
    assert type(explain([*warned, last, "model freed"], 1, SPEC)) is OutOfMemory
    assert failure_in(["ModuleNotFoundError: No module named 'triton.language'"]) is None


def test_a_line_that_names_the_picture_counts_before_one_that_does_not():
    lines = ["Error loading file: /a.png", "OSError: image file is truncated (17 bytes not processed)"]
    for order in (lines, lines[::-1]):
        assert "the picture /a.png cannot" in str(explain(order, 1, SPEC))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-9, "the system ended sd-scripts, probably because the main memory"),
        (137, "the system ended sd-scripts"),
        (-11, "was ended by SIGSEGV, a fault in torch or a driver"),
        (0xC0000005, "a fault in torch or a driver"),
        (-15, "was ended by SIGTERM: run it again"),
        (1, "ended with exit code 1: run it again"),
        (0, "without an error and without a LoRA"),
        (None, "printed nothing for too long and was ended"),
    ],
)
def test_where_no_line_says_anything_the_exit_code_does(code, text):
    error = explain(["model saved."], code, SPEC)
    assert type(error) is TrainingFailed
    assert text in str(error)
    assert str(error).endswith("\n    model saved.")


def test_no_pictures_is_told_although_the_exit_code_is_zero():
    line = LINES["no pictures"][0][0]
    assert type(explain(["preparing", line], 0, SPEC)) is BadPicture


def test_of_a_long_log_the_last_lines_are_quoted_and_no_states_of_the_bar():
    lines = [f"line {number}" for number in range(30)] + [SLOW, ""]
    quoted = str(explain(lines, 1, SPEC)).splitlines()[1:]
    assert [one.strip() for one in quoted] == [f"line {number}" for number in range(18, 30)]
