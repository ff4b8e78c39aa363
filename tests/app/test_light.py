"""What a front end imports to list and submit jobs brings nothing heavy: a WebUI starts with it."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "gradio", "fastapi")


def test_jobs_and_ports_are_light_to_import() -> None:
    code = (
        "import json, sys; import copier.app.jobs, copier.app.ports, copier.app.names; "
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
