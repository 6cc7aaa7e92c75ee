"""Prompts, generated sets and their cache."""
