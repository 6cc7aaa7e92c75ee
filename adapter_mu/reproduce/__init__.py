"""The paper's tables and figures on a world at hand, beside the paper's own numbers."""
