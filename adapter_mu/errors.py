"""Errors that say, in one sentence, what is wrong and what to do."""


class UserError(Exception):
    """Something the user can put right; the CLI prints its sentence and exits with code 2."""


class RecipeError(UserError):
    """A recipe, override or prompt list is wrong."""


class ModelError(UserError):
    """A checkpoint or adapter cannot be used: missing, truncated, a pickle, or another architecture."""
