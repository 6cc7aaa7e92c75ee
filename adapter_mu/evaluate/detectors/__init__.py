"""Detectors behind one protocol, one file each, registered by name; a third party registers its own the same way."""

from adapter_mu.evaluate.detectors.registry import Detector, detector_names, new_detector, register
from adapter_mu.evaluate.detectors.shapes import ShapesWorld

__all__ = ["Detector", "ShapesWorld", "detector_names", "new_detector", "register"]
