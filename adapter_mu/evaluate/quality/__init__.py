"""Quality of pictures that have nothing to do with the concept: CLIP score, FID, KID, LPIPS."""

from adapter_mu.evaluate.quality.measure import check_quality, quality

__all__ = ["check_quality", "quality"]
