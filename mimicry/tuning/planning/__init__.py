"""What a call would do, and what forbids it; writes nothing."""

from mimicry.tuning.planning.one_recipe import recipe_problems, refuse_new_recipes
from mimicry.tuning.planning.plan import OVERWRITTEN, RETRAINED, Plan, plan_word
from mimicry.tuning.planning.planner import make_plan
from mimicry.tuning.planning.target import Action, Request, Target

__all__ = [
    "OVERWRITTEN",
    "RETRAINED",
    "Action",
    "Plan",
    "Request",
    "Target",
    "make_plan",
    "plan_word",
    "recipe_problems",
    "refuse_new_recipes",
]
