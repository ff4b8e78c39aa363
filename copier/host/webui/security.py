"""Who can reach the host, by the options that it was started with."""

from __future__ import annotations

from copier.app.ports import Security


def security_of_host() -> Security:
    """The switches of ``modules.shared.cmd_opts``."""
    from modules import shared

    options = shared.cmd_opts
    return Security(
        shared=bool(options.share or getattr(options, "ngrok", None)),
        listening=bool(options.listen or getattr(options, "server_name", None)),
        insecure_access=bool(options.enable_insecure_extension_access),
        hidden_folders=bool(options.hide_ui_dir_config),
    )
