"""What the tab says outside its components: one place, so that translations can be complete.

Texts with numbers or names in them are made where they are shown; those here stand alone in the page.
"""

from __future__ import annotations

TITLE = "Make a LoRA that does one thing"
LEAD = "Show it one picture before and after a change. It learns the change, and nothing else."
STEPS = (
    ("Original", "Draw a picture, or drop one in."),
    ("Edited", "Choose what changes in it."),
    ("Start", "Minutes later there is a LoRA, with a preview and figures."),
)

ORIGINAL = "Original"
EDITED = "Edited"
RECIPE = "Recipe"
RUN = "Run"
RESULT = "Result"
HISTORY = "History"
ORIGINAL_LEAD = "The picture that the change is shown on. A plain one is best: one thing, quiet background."
EDITED_LEAD = "The same picture with one thing changed."
RECIPE_LEAD = "How it is trained. The recipe's own numbers are a good start."

NO_ORIGINAL = "No original yet: draw one, or drop a picture in."
NO_EDITED = "B appears here as soon as there is an original."
CHANGED = "changed"
DIFFERENCE = "What differs: black is unchanged"
DRAG = "Drag to compare A and B"
A, B = "A, the original", "B, edited"

READY = "Ready to start."
BUSY = "A job is at work: add this one to the queue."
BLOCKED = "Start is blocked:"
UNKNOWN_TIME = "time unknown: nothing like it was made on this machine so far"
NO_JOB = "Nothing runs. Press Start when the pair looks right."
NO_RESULT = "The result appears here when a run is done."
NO_REPORT = "This run has no report: its recipe measures nothing."
LOSS = "Loss"
SAMPLES = "Pictures on the way"
ALIKE = "The two runs have the same settings."

STATES = {
    "queued": "queued",
    "running": "running",
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
    "interrupted": "interrupted",
    "planned": "planned",
    "reused": "reused",
}

EFFECT, LEAKAGE, CONTROL = "Effect at +1", "Leakage at +1", "plain LoRA"
GATE, WEIGHTS = "Gate: is it A every time?", "Suggested weights"
PASSED, NOT_PASSED = "passed", "not passed"
CHANGE, CONSISTENCY = "Change at +1", "Consistency"

POCKET = "It draws simple shapes, and is there to try things out."
NO_CHECKPOINT = "no checkpoint is loaded: choose one from the list"
DONE = "Done."
STOPPING = "Stopping; finished stages are kept."
TRAINER_READY = "ready to train"

ROWS = (
    FILE, KIND, TENSORS, MODULES, ALPHA, CARRIES, WROTE, WRITTEN, LOST, SD_SCRIPTS, PACKAGES, PYTHON, ON_DISK,
    HOST, LORAS, OUTPUT, CHECKPOINTS, DATA, TRAINS, SCRIPTS_FOLDER, ACCELERATE,
) = (
    "File", "Kind", "Tensors", "Modules", "Alpha", "Recipe", "Wrote", "Changed", "Thrown away", "sd-scripts",
    "Packages", "Python", "On the disk", "Host", "LoRA folder (COPIER_LORAS)",
    "Output folder (COPIER_OUTPUT)", "Checkpoints (COPIER_CHECKPOINTS)", "Data directory (COPIER_DATA)",
    "Python that trains (COPIER_PYTHON)",
    "sd-scripts (COPIER_SD_SCRIPTS_DIR)", "accelerate (COPIER_ACCELERATE_CONFIG)",
)  # fmt: skip
"""Names of rows in tables of facts."""

EVERY = (
    POCKET, NO_CHECKPOINT, DONE, STOPPING, TRAINER_READY, *ROWS,
    TITLE, LEAD, *(part for step in STEPS for part in step), ORIGINAL, EDITED, RECIPE, RUN, RESULT, HISTORY,
    ORIGINAL_LEAD, EDITED_LEAD, RECIPE_LEAD, NO_ORIGINAL, NO_EDITED, CHANGED, DIFFERENCE, DRAG, A, B, READY,
    BUSY, BLOCKED, UNKNOWN_TIME, NO_JOB, NO_RESULT, NO_REPORT, LOSS, SAMPLES, ALIKE,
    *STATES.values(), EFFECT,
    LEAKAGE, CONTROL, GATE, WEIGHTS, PASSED, NOT_PASSED, CHANGE, CONSISTENCY,
)  # fmt: skip
"""All of them, for the translations."""
