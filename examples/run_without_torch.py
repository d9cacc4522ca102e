"""Sample action chunks with onnxruntime and numpy alone, from what `specpolicy export` has written.

    python examples/run_without_torch.py square_round

The distribution is exactly that of the policy's DDPM chain. A controller in another language does the same: read the
manifest, run the graph until the chain has arrived, with new random numbers each time.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime


class RoundPolicy:
    """An exported policy. `normal(shape)` and `uniform(shape)` draw random numbers."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self.manifest = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))
        graph = Path(folder, self.manifest["graph"]).read_bytes()
        if hashlib.sha256(graph).hexdigest() != self.manifest["sha256"]:
            raise ValueError(f"{folder}: graph and manifest are not of one export; export again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def act(self, observation: np.ndarray, normal: Callable, uniform: Callable) -> np.ndarray:
        """From observations (n_obs_steps, dim), oldest first, to the actions to play, (n_action_steps, action_dim)."""
        seen, does = self.manifest["observation"], self.manifest["action"]
        center, width, base = (np.array(seen[name], np.float32) for name in ("center", "width", "base"))
        cond = ((observation.astype(np.float32) - center) / width + base).reshape(1, -1)
        sample = self.sample(cond, normal, uniform)
        center, width, base = (np.array(does[name], np.float32) for name in ("center", "width", "base"))
        actions = (sample[0] - base) * width + center
        return actions[does["first_action"] : does["first_action"] + does["n_action_steps"]]

    def sample(self, cond: np.ndarray, normal: Callable, uniform: Callable) -> np.ndarray:
        """Run rounds until the chain has arrived."""
        inputs, begin = self.manifest["inputs"], self.manifest["start"]
        state = {
            name: np.full(inputs[name]["shape"], begin.get(name, 0), inputs[name]["dtype"])
            for name in self.manifest["state"]
        }
        state["x"] = state["last_eval_x"] = normal(inputs["x"]["shape"]).astype(np.float32)
        while state["k"][0] < self.manifest["steps"]:
            draws = {
                "noise": normal(inputs["noise"]["shape"]).astype(np.float32),
                "uniform": uniform(inputs["uniform"]["shape"]).astype(np.float64),
                "fresh": normal(inputs["fresh"]["shape"]).astype(np.float32),
            }
            outputs = self.session.run(list(self.manifest["state"].values()), {"cond": cond, **draws, **state})
            state = dict(zip(self.manifest["state"], outputs, strict=True))
        if not state["finite"].all():
            raise FloatingPointError("the network returned NaN or infinity; look at the observation")
        self.evaluations = int(state["passes"][0])
        return state["x"]


if __name__ == "__main__":
    policy, random = RoundPolicy(sys.argv[1]), np.random.default_rng(0)
    seen = policy.manifest["observation"]
    resting = np.tile(np.array(seen["center"], np.float32), (seen["n_obs_steps"], 1))
    print(policy.act(resting, random.standard_normal, random.random))
    print(f"{policy.evaluations} network evaluations for {policy.manifest['steps']} denoising steps")
