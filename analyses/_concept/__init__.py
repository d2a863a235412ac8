"""Parts of `concept_direction`."""
