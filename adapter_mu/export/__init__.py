"""Merged checkpoints: the only form in which a defence cannot be unplugged."""
