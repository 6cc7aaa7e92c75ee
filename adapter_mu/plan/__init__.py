"""What a recipe will need before it runs: peak memory by stage and time, from the architecture alone."""

from adapter_mu.plan.advice import advice
from adapter_mu.plan.planning import Plan, plan
from adapter_mu.plan.table import GIB, as_table, card_bytes, fits, save

__all__ = ["GIB", "Plan", "advice", "as_table", "card_bytes", "fits", "plan", "save"]
