"""Attacks by words alone: no weight moves, only the prompt."""
