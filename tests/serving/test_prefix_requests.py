"""Requests with actions under way: continued by a policy that can, refused in one line by others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving_fakes import observation, running, tiny_policy

from specpolicy import samplers
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.serving.batching import BatchedPolicy
from specpolicy.serving.client import Client
from specpolicy.serving.protocol import RequestRefused


def engine(max_delay: int) -> BatchedPolicy:
    policy: DiffusionPolicy = tiny_policy(max_delay=max_delay)
    return BatchedPolicy(policy, samplers.sequential(policy.scheduler, 20))


def test_a_reply_begins_with_the_actions_under_way() -> None:
    prefix = np.array([[0.5, -0.5, 0.25], [0.25, 0.0, -1.0]])
    with running(engine(3)) as server, Client(server.url) as client:
        assert client.metadata["policy"]["max_delay"] == 3
        plain = client.infer(observation()).actions
        reply = client.infer(observation(), prefix=prefix).actions
        np.testing.assert_allclose(reply[:2], prefix, atol=1e-5)
        assert plain.shape == (4, 3) and reply.shape == (5, 3), "the chunk has no sixth"
        np.testing.assert_allclose(client.infer(observation(), prefix=prefix.tolist()).actions[:2], prefix, atol=1e-5)


@pytest.mark.parametrize(
    ("max_delay", "prefix", "message"),
    [
        (0, np.zeros((1, 3)), "prefix: this policy takes no prefix of actions under way"),
        (3, np.zeros((4, 3)), "prefix: 4 actions under way; this policy was trained for at most max_delay=3"),
        (3, np.zeros((1, 2)), "prefix: a prefix of shape"),
        (3, np.full((1, 3), np.inf), "prefix: a prefix contains NaN, infinity"),
        (3, [[1.0, 2.0, 3.0], [1.0]], "prefix is not an array"),
        (3, "now", "prefix is 'now'; expected a numeric array"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(max_delay: int, prefix: Any, message: str) -> None:
    with running(engine(max_delay)) as server, Client(server.url) as client:
        with pytest.raises(RequestRefused, match=message):
            client.infer(observation(), prefix=prefix)
        assert client.infer(observation()).actions.shape == (4, 3), "the connection stays"
