"""What the tab says outside its components: one place, so that translations can be complete.

Texts with numbers or names in them are made where they are shown; those here stand alone in the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SetWords:
    """What the page says of a place for pictures: its title, what belongs there, and that it is empty."""

    title: str
    lead: str
    none: str


TITLE = "Make a LoRA that does one thing"
LEAD = "Show it one picture before and after a change. It learns the change, and nothing else."
STEPS = (
    ("Original", "Draw a picture, or drop one in."),
    ("Edited", "Choose what changes in it."),
    ("Start", "Press the button. Minutes later there is a LoRA, with pictures of what it does."),
)

RECIPE = "Recipe"
SETTINGS = "Settings"
RUN = "Run"
RESULT = "Result"
HISTORY = "History"
RECIPE_LEAD = "What is made, and of which pictures. Leave it as it is for the first time."
SETTINGS_LEAD = "How it is trained, stage by stage. Nothing here has to be changed."

NO_PICTURE, NO_PICTURE_DROPPED = (
    "No picture yet: draw some, or drop them in.",
    "No picture yet: drop them in, all at once.",
)
AN_ORIGINAL = SetWords(
    "Original",
    "A, the picture that the change is shown on. A plain one is best: one thing, quiet background.",
    "No original yet: draw one, or drop a picture in.",
)
EACH_ORIGINAL = SetWords(
    "Originals",
    "Several pictures that the same change is shown on. Each goes through the method by itself.",
    "No original yet: draw some, or drop them in.",
)
AN_EDITED = SetWords(
    "Edited",
    "B, the same picture with one thing changed. Whatever else differs is learnt too.",
    "B appears here as soon as there is an original.",
)
NO_PICTURES_WANTED = SetWords(
    "Checkpoint",
    "This recipe works by text alone and needs no pictures: its prompts are below, under Settings.",
    "",
)
_SETS: Mapping[str, SetWords] = {
    "base": SetWords(
        "Base set",
        "About five different characters in one look: plain background, upright pose. What varies belongs "
        "into their captions.",
        NO_PICTURE,
    ),
    "character": SetWords(
        "Character",
        "The wanted character, in the same look. Captions name what is constant: background, pose, framing.",
        NO_PICTURE_DROPPED,
    ),
    "style": SetWords("Style", "Many pictures in the style, of anything but the subject.", NO_PICTURE),
    "subject": SetWords("Subject", "The wanted subject, in the same style.", NO_PICTURE_DROPPED),
    "set": SetWords(
        "Pictures",
        "What is to be learnt. To distil a LoRA: draw with it, under Sampling, and click the good pictures.",
        NO_PICTURE,
    ),
}
"""Of the sets of built-in recipes that are no pairs, by name."""


def set_words(name: str) -> SetWords:
    """What is said of a set of originals of that name; of none, that no pictures are wanted."""
    if not name:
        return NO_PICTURES_WANTED
    return _SETS.get(name) or SetWords(name, OTHER_SET, NO_PICTURE)


OTHER_SET = "A set of pictures that the recipe trains on."
VIEWS = "A above B, as the recipe trains on them: crops and zooms of the first pair"
VIEWS_OF_A = "A, as the recipe trains on it: crops and zooms"
PLACE_LABELS = PICTURES_LABEL, B_LABEL = (
    "Pictures; with their caption files (.txt), where there are some",
    "B: the original with your edit; of several, each under its original's name",
)

TAKE_OUT = "Take this picture out"
CHOOSE = "Choose by clicking"
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
NO_REPORT = (
    "This run has no report: its recipe measures nothing. Measure, below, draws with the LoRA at several "
    "weights."
)
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
LEARNS_SET = "learns the pictures of its set"
PICTURES_GIVEN = "the pictures of a set"
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
    "What is on each picture, where trainings read it. Have it said, or type it into the table; caption "
    "files may be dropped in together with the pictures."
)
CAPTIONS_READ, CAPTIONS_MISSING, CAPTIONS_UNREAD = (
    "The trainings read them.",
    "The trainings read them. A picture without one is trained with the empty caption.",
    "The trainings do not read them: choose files under Captions of a training, or press the button above.",
)
NO_CAPTIONED = "The pictures appear here with a field for each caption."
CAPTION_HEADS = ("Picture", "Caption", "What the training is told")
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

_EVERY_SET = (
    AN_ORIGINAL, EACH_ORIGINAL, AN_EDITED, NO_PICTURES_WANTED, *_SETS.values(),
)  # fmt: skip
EVERY = (
    CAPTIONS_LEAD, CAPTIONS_READ, CAPTIONS_MISSING, CAPTIONS_UNREAD, NO_CAPTIONED, *CAPTION_HEADS, NO_CAPTION,
    *(text for one in _EVERY_SET for text in (one.title, one.lead, one.none) if text), OTHER_SET, VIEWS,
    VIEWS_OF_A, *PLACE_LABELS, SETTINGS, SETTINGS_LEAD, LEARNS_SET, PICTURES_GIVEN, TAKE_OUT,
    POCKET, NO_CHECKPOINT, DONE, STOPPING, TRAINER_READY, *ROWS,
    TITLE, LEAD, *(part for step in STEPS for part in step), RECIPE, RUN, RESULT, HISTORY,
    RECIPE_LEAD, CHANGED, DIFFERENCE, DRAG, A, B, READY,
    BUSY, BLOCKED, UNKNOWN_TIME, NO_JOB, NO_RESULT, NO_REPORT, LOSS, SAMPLES, ALIKE,
    *STATES.values(), EFFECT,
    SET_A, SET_B, LEARNS_A, LEARNS_B, LEARNS_CHANGE, LEARNS_CONCEPT, CHECKS_A, CHECKS_B, DRAWS, MEASURES,
    GIVEN, SUBTRACTS,
    ADDS, RESIZES, EFFECT_HINT, LEAKAGE_HINT, CHANGE_HINT, CONSISTENCY_HINT, WEIGHTS_HINT, GATE_ADVICE,
    LEAKAGE, CONTROL, GATE, WEIGHTS, PASSED, NOT_PASSED, CHANGE, CONSISTENCY,
)  # fmt: skip
"""All of them, for the translations."""
