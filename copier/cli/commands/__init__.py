"""The commands; each module adds its own to the parser and imports what they need when they run."""
