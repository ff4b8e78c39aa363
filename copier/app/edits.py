"""The built-in edits as plain data, for front ends that offer them; light to import."""

from __future__ import annotations

from typing import Any

from copier.images.effects import EFFECTS


def edits_json() -> list[dict[str, Any]]:
    """Every built-in edit with its parameters and their bounds."""
    return [
        {
            "name": effect.name,
            "label": effect.label,
            "explanation": effect.explanation,
            "parameters": [
                {
                    "name": one.name,
                    "label": one.label,
                    "default": one.default,
                    "minimum": one.minimum,
                    "maximum": one.maximum,
                    "whole": one.whole,
                }
                for one in effect.parameters
            ],
        }
        for effect in EFFECTS.values()
    ]
