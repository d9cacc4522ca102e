"""Images on the wire: bytes, remembered and refused like everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from serving_fakes import whole

from specpolicy import FreeDrafter, ReverseProcess, SpeculativeSampler
from specpolicy.control.inference import episode_generator
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.observations import ObservationSpec
from specpolicy.serving.batching import BatchedPolicy
from specpolicy.serving.protocol import RequestRefused, pack, unpack
from specpolicy.serving.session import StepCollector

SHAPE = (16, 20, 3)
SPEC = ObservationSpec({"front": 5, "eef": 2}, 2, {"front": SHAPE})


def image(value: int) -> np.ndarray[Any, Any]:
    return np.full(SHAPE, value, np.uint8)


def policy() -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(
        PolicyConfig(
            task="toy",
            observations=SPEC.keys,
            action_dim=2,
            network={"name": "mlp", "width": 16, "blocks": 1, "embed": 8, "timestep_dim": 8},
            scheduler={"num_train_timesteps": 10, "beta_schedule": "squaredcos_cap_v2"},
            cameras={"front": {"shape": [3, 16, 20], "backbone": "narrow", "keypoints": 4, "features": 5}},
        )
    ).eval()


def test_images_stay_bytes_and_are_remembered() -> None:
    history = StepCollector(SPEC)
    frame = pack({"front": image(7), "eef": [1.0, 2.0]})
    assert len(frame) < image(7).nbytes + 200
    history.add(unpack(frame))
    history.add({"front": image(8), "eef": np.zeros(2)})
    stacked = history.window()
    assert stacked["front"].dtype == np.uint8 and stacked["front"].shape == (2, *SHAPE)
    assert stacked["front"][:, 0, 0, 0].tolist() == [7, 8]
    history.add({"front": np.stack([image(1), image(2)]), "eef": np.zeros((2, 2))})
    assert history.window()["front"][:, 0, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"front": np.zeros(SHAPE, np.float32)}, "has type float32; expected uint8, an image's bytes from 0 to 255"),
        (
            {"front": np.zeros((20, 16, 3), np.uint8)},
            r"has shape \(20, 16, 3\); expected \(16, 20, 3\) for the present",
        ),
        ({"front": np.zeros((2, *SHAPE), np.uint8)}, "some parts are one step and some a history"),
        ({"front": [[1, 2], [3, 4]]}, r"has shape \(2, 2\); expected \(16, 20, 3\)"),
        ({"front": None}, "expected a numeric array"),
    ],
)
def test_other_images_are_refused(change: dict[str, Any], says: str) -> None:
    history = StepCollector(SPEC)
    with pytest.raises(RequestRefused, match=says):
        history.add({"front": image(0), "eef": np.zeros(2)} | change)
    with pytest.raises(RequestRefused, match=r"front \(16, 20, 3\) of uint8, eef \(2,\) for the present step"):
        history.add({"eef": np.zeros(2)})


def test_a_server_says_what_it_looks_at_and_answers() -> None:
    made = policy()
    engine = BatchedPolicy(
        made, SpeculativeSampler(ReverseProcess.from_scheduler(made.scheduler, 10), FreeDrafter(), window=4)
    )
    assert engine.describe()["observations"] == {"front": [16, 20, 3], "eef": 2}
    engine.warm_up([1, 2])
    history = StepCollector(engine.observations)
    history.add({"front": image(9), "eef": [0.5, 0.5]})
    alone = engine.run([whole(history.window(), 3)])[0]
    seen = {name: part[None] for name, part in history.window().items()}
    expected = made.predict_action(seen, engine.sampler, [episode_generator(3)]).actions[0]
    assert alone.error is None
    np.testing.assert_allclose(alone.actions, expected, rtol=1e-4, atol=1e-5)
