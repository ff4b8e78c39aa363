"""What the tab says outside its components: one place, so that translations can be complete.

Texts with numbers or names in them are made where they are shown; those here stand alone in the page.
"""

from __future__ import annotations

TITLE = "Make a LoRA that does one thing"
LEAD = "Show it one picture before and after a change. It learns the change, and nothing else."
STEPS = (
    ("Original", "Draw a picture, or drop one in."),
    ("Edited", "Choose what changes in it."),
    ("Start", "Press the button. Minutes later there is a LoRA, with pictures of what it does."),
)

ORIGINAL = "Original"
EDITED = "Edited"
RECIPE = "Recipe"
RUN = "Run"
RESULT = "Result"
HISTORY = "History"
ORIGINAL_LEAD = (
    "A, the picture that the change is shown on. A plain one is best: one thing, quiet background."
)
EDITED_LEAD = "B, the same picture with one thing changed. Whatever else differs is learnt too."
RECIPE_LEAD = "How it is trained. Leave it as it is for the first time."

NO_ORIGINAL = "No original yet: draw one, or drop a picture in."
NO_EDITED = "B appears here as soon as there is an original."
CHANGED = "changed"
DIFFERENCE = "What differs: black is unchanged"
DRAG = "Drag to compare A and B"
A, B = "A, the original", "B, edited"

READY = "Ready to start."
BUSY = "A job is at work: add this one to the queue."
BLOCKED = "Start waits for this:"
UNKNOWN_TIME = "time unknown: nothing like it was made on this machine so far"
NO_JOB = (
    "Nothing runs yet. Start trains on A until nothing but A comes out, then learns what B changes. "
    "You may close the page meanwhile."
)
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

SET_A, SET_B = "the original", "the edited picture"
LEARNS_A, LEARNS_B = "learns the original by heart", "learns the edited picture by heart"
LEARNS_CHANGE = "learns what the edit changes"
LEARNS_CONCEPT = "learns to draw a prompt differently"
CHECKS_A, CHECKS_B = "is it the original every time?", "is it the edited picture every time?"
DRAWS, MEASURES = "draws pictures for it", "measures what the LoRA does"
GIVEN, SUBTRACTS, ADDS, RESIZES = "a LoRA file that was chosen", "subtracts", "adds", "keeps fewer ranks"

EFFECT, LEAKAGE, CONTROL = "Effect at +1", "Leakage at +1", "plain LoRA"
GATE, WEIGHTS = "Gate: is it A every time?", "Suggested weights"
PASSED, NOT_PASSED = "passed", "not passed"
CHANGE, CONSISTENCY = "Change at +1", "Consistency"
EFFECT_HINT, LEAKAGE_HINT = "1: all of the change; 0: none", "what else changed; 0: nothing"
CHANGE_HINT, CONSISTENCY_HINT = "how much the pictures change", "1: always the same change"
WEIGHTS_HINT = "the last number in <lora:name:1>"
GATE_ADVICE = "The copier does not draw A every time, so the change is not learnt alone: give it more steps."

POCKET = "It draws simple shapes, and is there to try things out."
NO_CHECKPOINT = "no checkpoint is loaded: choose one from the list"
CAPTIONS_LEAD = (
    "What is on each original, for recipes that train with prompts of their own. Most recipes need none."
)
WD14, NO_CAPTION = "WD14 tagger", "(empty)"
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
    CAPTIONS_LEAD, NO_CAPTION, POCKET, NO_CHECKPOINT, DONE, STOPPING, TRAINER_READY, *ROWS,
    TITLE, LEAD, *(part for step in STEPS for part in step), ORIGINAL, EDITED, RECIPE, RUN, RESULT, HISTORY,
    ORIGINAL_LEAD, EDITED_LEAD, RECIPE_LEAD, NO_ORIGINAL, NO_EDITED, CHANGED, DIFFERENCE, DRAG, A, B, READY,
    BUSY, BLOCKED, UNKNOWN_TIME, NO_JOB, NO_RESULT, NO_REPORT, LOSS, SAMPLES, ALIKE,
    *STATES.values(), EFFECT,
    SET_A, SET_B, LEARNS_A, LEARNS_B, LEARNS_CHANGE, LEARNS_CONCEPT, CHECKS_A, CHECKS_B, DRAWS, MEASURES,
    GIVEN, SUBTRACTS,
    ADDS, RESIZES, EFFECT_HINT, LEAKAGE_HINT, CHANGE_HINT, CONSISTENCY_HINT, WEIGHTS_HINT, GATE_ADVICE,
    LEAKAGE, CONTROL, GATE, WEIGHTS, PASSED, NOT_PASSED, CHANGE, CONSISTENCY,
)  # fmt: skip
"""All of them, for the translations."""
