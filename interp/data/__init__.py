"""Prompts, texts and activations, in memory and on disk."""
