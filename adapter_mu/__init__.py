"""adapter_mu: adapter-based, memory-efficient meta-unlearning for SD 1.x and SDXL."""

__version__ = "0.1.0"
