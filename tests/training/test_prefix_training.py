"""Training with clean first actions: they are given, nothing is learned of them, and old checkpoints go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor
from training_files import config, settings, write_file

from specpolicy.datasets.action_chunks import ActionChunkDataset, cut_action_chunks
from specpolicy.datasets.demonstrations import read_demonstrations
from specpolicy.datasets.robomimic import DemonstrationError
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.training.train import diffusion_objective, train_policy
from specpolicy.training.warm_start import widen_prefix

D = 5
NETWORKS: list[dict[str, Any]] = [
    {"name": "unet1d", "channels": [8, 16], "timestep_dim": 8},
    {"name": "mlp", "width": 16, "blocks": 1, "embed": 8, "timestep_dim": 8, "octaves": 2},
    {"name": "transformer", "width": 16, "layers": 1, "heads": 2},
]


def delayed(base: PolicyConfig, max_delay: int = D) -> PolicyConfig:
    return replace(base, max_delay=max_delay)


def test_first_actions_are_given_clean_and_not_learned() -> None:
    torch.manual_seed(0)
    policy = DiffusionPolicy(delayed(config()))
    assert policy.prefix is not None
    actions = torch.rand(400, 16, 4) * 2 - 1
    executed = actions + 0.1 * torch.randn(actions.shape)  # with the disturbances that the labels correct
    moments = torch.zeros(400, 2, dtype=torch.long)
    chunks = ActionChunkDataset(torch.randn(400, 2, 5), actions, moments, executed=executed)
    objective, seen = diffusion_objective(policy, chunks, chunks), dict[str, Tensor]()

    def listen(x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        seen["cond"], seen["output"] = cond, torch.zeros_like(x).requires_grad_()
        return seen["output"]

    policy.forward = listen  # type: ignore[method-assign]
    loss = objective.loss(policy, torch.arange(400), torch.Generator().manual_seed(0))
    loss.backward()
    known_actions, known = policy.prefix.split(seen["cond"])
    lengths = known.sum(dim=(1, 2))
    assert torch.bincount(lengths, minlength=D + 1).tolist() == pytest.approx([400 / 6] * 6, abs=30)
    place = torch.arange(D)
    assert (known[..., 0] == (place < lengths[:, None])).all(), "a prefix has no gaps"
    torch.testing.assert_close(known_actions, torch.where(known, executed[:, 1 : 1 + D], 0.0))
    learned = seen["output"].grad.abs().amax(dim=2) > 0  # type: ignore[union-attr]
    steps = torch.arange(16)
    assert (learned == ~((steps >= 1) & (steps < 1 + lengths[:, None]))).all()
    # with an output of zero, its gradient is −2 · target / count
    target = 0.5 * seen["output"].grad[learned] * -(learned.sum() * 4)  # type: ignore[index]
    assert loss.item() == pytest.approx(target.square().mean().item(), rel=1e-4), "a mean over what is learned"


def test_what_was_played_is_cut_as_the_actions_are(tmp_path: Path) -> None:
    file = write_file(tmp_path / "demos.hdf5")
    with h5py.File(file, "a") as opened:
        for name, group in opened["data"].items():
            if name != "demo_0":
                group["executed_actions"] = group["actions"][:] + 1.0
    episodes = read_demonstrations(file, {"object": 3, "eef": 2}, 0).train
    chunks = cut_action_chunks(episodes, 2, 16, 8)
    assert chunks.executed is not None
    own = len(cut_action_chunks(episodes[:1], 2, 16, 8))
    assert episodes[0].name == "demo_0"
    torch.testing.assert_close(chunks.executed[:own], chunks.actions[:own])
    torch.testing.assert_close(chunks.executed[own:], chunks.actions[own:] + 1.0)
    with h5py.File(file, "a") as opened:
        del opened["data/demo_2/executed_actions"]
        opened["data/demo_2/executed_actions"] = np.zeros((3, 4))
    with pytest.raises(
        DemonstrationError, match=r"demo_2/executed_actions has shape \(3, 4\); expected that of actions"
    ):
        read_demonstrations(file, {"object": 3, "eef": 2}, 0)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["name"])
@torch.no_grad()
def test_a_widened_policy_does_what_it_did_without_a_prefix(network: dict[str, Any]) -> None:
    torch.manual_seed(0)
    old = DiffusionPolicy(replace(config(), network=network)).eval()
    for parameter in old.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    observation, x, timestep = torch.randn(3, 2, 5), torch.randn(3, 16, 4), torch.tensor([0, 7, 19])
    wanted = old(x, timestep, old.condition(observation))
    for max_delay in (2, D):  # a second time from a policy that has a prefix
        wider = DiffusionPolicy(delayed(old.config, max_delay)).eval()
        wider.load_state_dict(widen_prefix(old, wider))
        torch.testing.assert_close(wider(x, timestep, wider.condition(observation)), wanted, rtol=1e-4, atol=1e-5)
        old = wider


def test_a_checkpoint_without_a_prefix_is_trained_on(tmp_path: Path) -> None:
    file = write_file(tmp_path / "demos.hdf5")
    first = train_policy(config(), file, settings(), tmp_path / "first", validation_demos=2)
    more = train_policy(
        delayed(config()),
        file,
        settings(steps=10),
        tmp_path / "more",
        validation_demos=2,
        init=DiffusionPolicy.from_pretrained(tmp_path / "first"),
    )
    assert more.config.max_delay == D
    entry = next(each for name, each in more.state_dict().items() if name.endswith("film.weight"))
    assert entry[:, -1].abs().max() > 0, "the new inputs are used"
    assert DiffusionPolicy.from_pretrained(tmp_path / "more").config == more.config
    with pytest.raises(ValueError, match="init is a policy of another configuration"):
        train_policy(first.config, file, settings(), tmp_path / "back", validation_demos=2, init=more)
