"""The ports inside a WebUI: A1111 1.10, Forge, and their like. The only place of ``modules.*``.

    registration   what the host calls, and when
    services       ``HostServices``
    flavour        which of these WebUIs it is
    turns          the host's queue lock, its progress and its Interrupt
    memory         the host's model out of memory, and back
    drawing        pictures by the host's own pipeline
    interrogation  the host's interrogators
    loras          the host's list of LoRAs
    page           buttons in the host's own tabs
    axes           what is added to the X/Y/Z plot
    infotext       the recipe in the text of pictures
    options        the host's Settings page

``modules.*`` is imported inside functions: the tests put small fakes in its place, and nothing works at
import time.
"""
