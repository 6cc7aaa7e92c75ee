"""Detectors, and scores with intervals over guidance scales."""
