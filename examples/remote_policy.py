"""A policy server and a robot that asks it, side by side. Needs the extra ``serving``.

    python examples/remote_policy.py [checkpoint]

On a real robot only the part below the server runs, with ``Client("wss://gpu-machine:8000", token=...)``.
"""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np

from specpolicy.serving.client import Client


def main(checkpoint: str = "checkpoints/square") -> None:
    command = [sys.executable, "-m", "specpolicy.cli", "serve", f"checkpoint={checkpoint}", "port=0", "max_batch=1"]
    server = subprocess.Popen([*command, "sampler=free_block20"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.search(r"wss?://[^;]+", server.stdout.readline())
        if address is None:
            sys.exit("the server did not start")
        with Client(address[0]) as client:
            policy = client.metadata["policy"]
            print(f"{policy['task']}: {policy['sampler']}")
            client.reset(seed=0)  # an episode begins; the seed makes it repeatable
            numbers = np.random.default_rng(0)  # in place of sensors
            for _ in range(3):
                observation = {name: numbers.normal(size=dim) for name, dim in policy["observations"].items()}
                reply = client.infer(observation)
                timing = reply.timing
                print(
                    f"{len(reply.actions)} actions in {reply.passes} evaluations, {timing.round_trip_ms:.0f} ms: "
                    f"{timing.infer_ms:.0f} sampling, {timing.queue_ms:.1f} queue, {timing.network_ms:.1f} network"
                )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
