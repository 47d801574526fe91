"""What a call would do, and what forbids it; writes nothing."""

from mimicry.tuning.planning.display import BatchDisplay, StepDisplay, duration, eval_change, is_terminal
from mimicry.tuning.planning.one_recipe import recipe_problems, refuse_new_recipes
from mimicry.tuning.planning.plan import OVERWRITTEN, RETRAINED, Plan, batch_problems, plan_word, training_of
from mimicry.tuning.planning.planner import make_plan
from mimicry.tuning.planning.target import Action, Request, Target

__all__ = ["OVERWRITTEN", "RETRAINED", "Action", "BatchDisplay", "Plan", "Request", "StepDisplay", "Target"]
__all__ += ["batch_problems", "duration", "eval_change", "is_terminal", "make_plan", "plan_word"]
__all__ += ["recipe_problems", "refuse_new_recipes", "training_of"]
