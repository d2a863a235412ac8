"""Nodes × edit × metric → a frame: exact sweeps over what an intervention can change."""
