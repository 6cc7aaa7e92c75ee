"""Stress tests on merged models."""
