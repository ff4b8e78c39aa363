"""The host's install hook: runs at every launch of the WebUI, with the host's Python.

It installs nothing: what the extension needs in the host's process every host has already, and the trainer's
own packages never go into the host's environment.
"""
