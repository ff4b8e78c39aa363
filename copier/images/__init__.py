"""Pictures: edits, pairs and their difference map, distances, contact sheets. No torch."""
