"""Each shipped policy has a recipe, and a recipe makes a policy of the shipped configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specpolicy.config import available, compose, to_container
from specpolicy.policies.config import PolicyConfig
from specpolicy.training.loop import TrainingSettings

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
POLICIES = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))
FIRST_STAGES = {"pusht_image_encoder": "pusht_image"}


def test_every_policy_has_a_recipe() -> None:
    assert POLICIES and sorted(set(available("recipe")) - set(FIRST_STAGES)) == POLICIES


@pytest.mark.parametrize("recipe", [*POLICIES, *FIRST_STAGES])
def test_a_recipe_is_of_the_shipped_policy(recipe: str) -> None:
    folder = CHECKPOINTS / FIRST_STAGES.get(recipe, recipe)
    cfg = compose("train", [f"recipe={recipe}"])
    shipped = PolicyConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    made = PolicyConfig.for_task(to_container(cfg.task), to_container(cfg.policy))
    assert {**made.to_dict(), "network": None} == {**shipped.to_dict(), "network": None}
    unsaid = {"octaves": 0}  # what an older configuration leaves out
    assert {**unsaid, **made.network} == {**unsaid, **shipped.network}
    if recipe not in FIRST_STAGES:
        log = [json.loads(line) for line in (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()]
        settings = TrainingSettings(**to_container(cfg.training))
        assert log[-1]["step"] == settings.steps
        assert max(line["learning_rate"] for line in log) <= settings.learning_rate


def test_options_change_a_recipe() -> None:
    cfg = compose("train", ["recipe=tool_hang", "training.steps=5", "policy.n_action_steps=8"])
    assert (cfg.training.steps, cfg.policy.n_action_steps, cfg.policy.network.octaves) == (5, 8, 4)
