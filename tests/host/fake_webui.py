"""Small fakes of a WebUI's ``modules.*``, with the habits of A1111 and Forge that our code must live with.

A1111: the model is loaded on the first use and kept in a list. Forge: a stand-in until the first generation,
a hash that says what is loaded, loading functions that do nothing, LoRAs that are remembered by file name.
reForge: A1111's list, but its models are held by a memory management, and are not sent to the trash.
All: a queue lock that is not reentrant.
"""

from __future__ import annotations

import sys
import threading
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

A1111, FORGE, REFORGE = "A1111", "Forge", "reForge"


class QueueLock:
    """Not reentrant: whoever takes it twice would wait for ever, which is an error here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.owner: int | None = None
        self.taken = 0

    def acquire(self, blocking: bool = True) -> bool:
        assert self.owner != threading.get_ident(), "the queue lock was taken by who has it already"
        if not self._lock.acquire(blocking):
            return False
        self.owner = threading.get_ident()
        self.taken += 1
        return True

    def release(self) -> None:
        self.owner = None
        self._lock.release()

    def __enter__(self) -> QueueLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    @property
    def mine(self) -> bool:
        return self.owner == threading.get_ident()


class State:
    def __init__(self) -> None:
        self.interrupted = False
        self.job, self.job_count, self.job_no = "", 0, 0
        self.textinfo: str | None = None
        self.sampling_step = self.sampling_steps = 0
        self.seen: list[tuple[str, str | None, int, int]] = []

    def begin(self, job: str) -> None:
        self.job, self.interrupted, self.job_count = job, False, -1

    def end(self) -> None:
        self.job, self.job_count = "", 0

    def interrupt(self) -> None:
        self.interrupted = True


class Options:
    """``freeze`` as ``--freeze-settings``."""

    def __init__(self, **data: Any) -> None:
        self.data = data
        self.restricted_opts: set[str] = set()
        self.labels: dict[str, Any] = {}
        self.freeze = False
        self.callbacks: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["data"].get(name, "")

    def set(self, key: str, value: Any, is_api: bool = False, run_callbacks: bool = True) -> bool:
        assert not self.freeze, "changing settings is disabled"
        self.data[key] = value
        if run_callbacks:
            self.callbacks.append(key)
        return True

    def add_option(self, key: str, option: Any) -> None:
        self.labels[key] = option


class OptionInfo:
    def __init__(self, default: Any = None, label: str = "", **more: Any) -> None:
        self.default, self.label, self.more = default, label, more

    def info(self, text: str) -> OptionInfo:
        return self

    def needs_restart(self) -> OptionInfo:
        return self


class Model:
    """``weights`` are gone once it was sent to the trash."""

    def __init__(self, checkpoint: Any, kind: str) -> None:
        self.sd_checkpoint_info = checkpoint
        self.weights = True
        self.hijacked = True
        self.layers = [SimpleNamespace(network_current_names=(("old", 1.0, 1.0, None),)), SimpleNamespace()]
        if kind == A1111:
            return
        self.current_lora_hash = "loaded"
        unet = SimpleNamespace(lora_loader=SimpleNamespace(loaded_hash="loaded"))
        clip = SimpleNamespace(patcher=SimpleNamespace(lora_loader=SimpleNamespace(loaded_hash="loaded")))
        self.forge_objects = SimpleNamespace(unet=unet, clip=clip)

    def modules(self) -> list[Any]:
        return self.layers


class DeepBooru:
    """A model whose weights cannot be fetched stays, without its tags, and is taken for loaded."""

    def __init__(self) -> None:
        self.model: Any = None
        self.files = ["model-resnet_custom_v3.pt"]

    def tag(self, image: Any) -> str:
        if self.model is None:
            self.model = SimpleNamespace(tags=[])
            self.model.tags = {"model-resnet_custom_v3.pt": ["1girl", "smile"]}[self.files[0]]
        return ", ".join(self.model.tags)


class FakeWebUi:
    """The modules of one host, in ``sys.modules`` while a test runs."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.lock, self.state = QueueLock(), State()
        self.works: list[Any] = []
        self.loads = 0
        self.fail: Callable[[Any], None] = lambda work: None
        self.callbacks: dict[str, list[Any]] = {}
        for name in ("Stable-diffusion", "VAE", "Lora"):
            (folder / "models" / name).mkdir(parents=True, exist_ok=True)
        self.modules: dict[str, types.ModuleType] = {}
        self._make()

    @property
    def loras(self) -> Path:
        return self.folder / "models" / "Lora"

    def module(self, name: str, **content: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(content)
        self.modules[name] = made
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(self.modules[parent], last, made)
        return made

    def _make(self) -> None:
        self.module("modules", __path__=[])
        self.module("modules.call_queue", queue_lock=self.lock)
        self.progress = self.module(
            "modules.progress",
            started=[],
            finished=[],
            start_task=lambda task: self.progress.started.append(task),
            finish_task=lambda task: self.progress.finished.append(task),
        )
        self.options = Options(outdir_samples="", outdir_grids="")
        self.cmd_opts = SimpleNamespace(
            share=False, listen=False, ngrok=None, server_name=None, hide_ui_dir_config=False,
            enable_insecure_extension_access=False, lora_dir=str(self.loras), ckpt_dir=None, vae_dir=None,
            api_auth=None, cors_allow_origins=None,
        )  # fmt: skip
        self.module(
            "modules.shared",
            state=self.state,
            opts=self.options,
            cmd_opts=self.cmd_opts,
            OptionInfo=OptionInfo,
            hide_dirs={"visible": True},
            total_tqdm=SimpleNamespace(clear=lambda: None),
            interrogator=SimpleNamespace(interrogate=lambda image: f"a picture of {image.width} px"),
        )
        self.module("modules.paths", data_path=str(self.folder), models_path=str(self.folder / "models"))
        self.module("modules.devices", torch_gc=lambda: None)
        self.module("modules.sd_samplers", visible_sampler_names=lambda: ["DPM++ 2M", "Euler"])
        vae = self.folder / "models" / "VAE"
        self.module(
            "modules.sd_vae", vae_path=str(vae), refresh_vae_list=lambda: None,
            delete_base_vae=lambda: None, clear_loaded_vae=lambda: None,
        )  # fmt: skip
        self.module("modules.initialize_util", get_gradio_auth_creds=lambda: [("ann", "secret")])
        self.module("modules.deepbooru", model=DeepBooru())
        self._make_models()
        self._make_processing()
        self._make_page()
        self._make_networks()

    def _make_models(self) -> None:
        self.checkpoints: dict[str, Any] = {}
        data = SimpleNamespace(sd_model=None, loaded_sd_models=[], forge_hash="")
        data.set_sd_model = lambda model: setattr(data, "sd_model", model)
        self.model_data = data
        self.models = self.module(
            "modules.sd_models",
            model_data=data,
            model_path=str(self.folder / "models" / "Stable-diffusion"),
            checkpoints_list=self.checkpoints,
            checkpoints_loaded={},
            select_checkpoint=self._selected,
            list_models=lambda: None,
            reload_model_weights=self._reload,
            send_model_to_trash=lambda model: setattr(model, "weights", False),
        )
        undo = SimpleNamespace(undo_hijack=lambda model: setattr(model, "hijacked", False))
        self.module("modules.sd_hijack", model_hijack=undo)
        if self.kind == REFORGE:
            self.models.send_model_to_trash = lambda model: None
            undo.undo_hijack = None
            held: list[Any] = []
            self.held = held
            self.module("modules_forge", __path__=[])
            self.module("ldm_patched", __path__=[])
            self.module("ldm_patched.modules", __path__=[])
            self.module(
                "ldm_patched.modules.model_management",
                unload_all_models=held.clear,
                soft_empty_cache=lambda: None,
            )
        if self.kind == FORGE:

            class FakeInitialModel:
                pass

            self.models.FakeInitialModel = FakeInitialModel
            data.sd_model = FakeInitialModel()
            self.models.reload_model_weights = lambda: None
            self.unloaded: list[str] = []
            self.module("backend", __path__=[])
            self.module(
                "backend.memory_management",
                unload_all_models=lambda: self.unloaded.append("all"),
                soft_empty_cache=lambda: None,
            )
            self.module("modules_forge", __path__=[])
            self.refreshed: list[str] = []
            self.module(
                "modules_forge.main_entry",
                refresh_model_loading_parameters=lambda: self.refreshed.append("yes"),
            )

    def _selected(self) -> Any:
        if not self.checkpoints:
            raise FileNotFoundError("No checkpoints found.")
        return self.checkpoints.get(self.options.sd_model_checkpoint) or next(iter(self.checkpoints.values()))

    def _reload(self) -> None:
        assert self.lock.mine, "a model was loaded without the queue lock"
        data, wanted = self.model_data, self._selected()
        if data.sd_model is None or data.sd_model.sd_checkpoint_info is not wanted:
            self.loads += 1
            data.sd_model = Model(wanted, self.kind)
            data.loaded_sd_models[:] = [data.sd_model]
            if self.kind == REFORGE:
                self.held.append(data.sd_model)

    def add_checkpoint(self, path: Path, sha256: str | None = None) -> Any:
        """A file that the host lists."""
        made = SimpleNamespace(
            filename=str(path), name=path.name, name_for_extra=path.stem, title=path.name, sha256=sha256
        )
        self.checkpoints[made.title] = made
        return made

    def _make_processing(self) -> None:
        class Work:
            def __init__(self, **values: Any) -> None:
                vars(self).update(values)
                self.scripts = self.script_args = None
                self.closed = False
                self.extra_generation_params: dict[str, Any] = {}
                self.all_prompts: list[str] | None = None

            def close(self) -> None:
                self.closed = True

        self.module(
            "modules.processing", StableDiffusionProcessingTxt2Img=Work, process_images=self._process
        )

        class Script:
            pass

        self.scripts = self.module(
            "modules.scripts",
            ScriptRunner=SimpleNamespace,
            Script=Script,
            AlwaysVisible=object(),
            scripts_data=[],
        )

    def _process(self, work: Any) -> Any:
        """Draw: a colour for each prompt and seed; with more than one picture a grid comes first."""
        assert self.lock.mine, "drawing without the queue lock"
        self.works.append(work)
        self._load_for(work)
        self.fail(work)
        assert work.script_args is not None, "without arguments the tags would be lost"
        images, texts = [], []
        for i in range(0 if self.state.interrupted else work.n_iter):
            colour = zlib.crc32(f"{work.prompt}{work.seed + i}".encode()).to_bytes(4, "big")[:3]
            images.append(Image.new("RGB", (work.width, work.height), tuple(colour)))
            texts.append(f"{work.prompt}\nSteps: {work.steps}, Seed: {work.seed + i}")
        grid = len(images) > 1
        return SimpleNamespace(
            images=[Image.new("RGB", (8, 8)), *images] if grid else images,
            infotexts=[texts[0], *texts] if grid else texts,
            index_of_first_image=int(grid),
        )

    def _load_for(self, work: Any) -> None:
        if self.kind != FORGE:
            self._reload()
            assert self.model_data.sd_model.weights, "the model has no weights any more"
        elif not self.model_data.forge_hash:
            self.loads += 1
            self.model_data.sd_model = Model(self._selected(), self.kind)
            self.model_data.forge_hash = "loaded"
        else:
            assert isinstance(self.model_data.sd_model, Model), "Forge took the stand-in for its model"

    def _make_page(self) -> None:
        def register(kind: str) -> Callable[..., None]:
            return lambda callback, **_: self.callbacks.setdefault(kind, []).append(callback)

        kinds = ("ui_settings", "before_ui", "after_component", "app_started", "ui_tabs", "script_unloaded")
        self.module("modules.script_callbacks", **{f"on_{kind}": register(kind) for kind in kinds})
        self.module("modules.ui_components", ToolButton=lambda label, **more: SimpleNamespace(**more))
        self.module(
            "modules.infotext_utils",
            paste_fields={"inpaint": {"init_img": "the inpaint picture"}},
            image_from_url_text=self._from_gallery,
            parse_generation_parameters=lambda text, skip: self.parsed,
        )
        self.parsed: dict[str, Any] = {}

    def _from_gallery(self, found: Any) -> Any:
        one = found[0] if found else None
        assert one != "elsewhere", "trying to open image file outside of allowed directories"
        return one

    def _make_networks(self) -> None:
        """The host's own extension for LoRAs: a module without a package."""
        networks = self.module(
            "networks", networks_in_memory={"old": 1}, loaded_networks=["old"], listed=[],
            list_available_networks=lambda: networks.listed.append(1),
        )  # fmt: skip
        if self.kind == FORGE:
            cleared: list[int] = []
            networks.cleared = cleared
            networks.load_lora_state_dict = SimpleNamespace(cache_clear=lambda: cleared.append(1))
        self.networks = networks

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeWebUi:
        """Put the modules where imports find them; another host's are not."""
        for name in [one for one in sys.modules if one.split(".")[0] in _HOSTS]:
            monkeypatch.delitem(sys.modules, name)
        for name, module in self.modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return self


_HOSTS = ("modules", "modules_forge", "backend", "ldm_patched", "networks")
