"""Put an environment behind ROS 2 topics, and a policy's node to the test (extra: ros).

    specpolicy ros checkpoints/pusht config=pusht autostart=false rate_hz=10 &
    python examples/simulate_over_ros.py pusht --rate 10 --seeds 100000 100001

Prints a line of JSON for each episode. With --lockstep (and lockstep=true reliable=true on the other side) the world
waits for each action, and the episode is the same as in one process, number by number.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import gymnasium
import numpy as np

from specpolicy.config import compose
from specpolicy.ros.environment import TopicError
from specpolicy.ros.interface import load_interface
from specpolicy.ros.simulator import SimulatorNode, TopicFault


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help="one of this library's tasks; its topics are those of configs/ros")
    parser.add_argument("--config", help="another file of topics")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100000])
    parser.add_argument("--rate", type=float, default=20.0, help="steps a second")
    parser.add_argument("--lockstep", action="store_true", help="step when an action has come")
    parser.add_argument("--node", default="specpolicy", help="the policy's node, which is activated for each episode")
    parser.add_argument("--no-node", action="store_true", help="somebody else activates it; says when it has begun")
    parser.add_argument("--fault", action="append", default=[], help='{"topic": ..., "kind": "mute", "first": 20, ...}')
    parser.add_argument("--max-ticks", type=int, help="end episodes after so many steps")
    parser.add_argument("--out", type=Path, help="a file .npz for the actions of each seed")
    options = parser.parse_args()
    task = compose("rollout", [f"task={options.task}"]).task
    faults = [TopicFault(**json.loads(text)) for text in options.fault]
    env = gymnasium.make(task.env, **({} if options.max_ticks is None else {"max_episode_steps": options.max_ticks}))
    try:
        node = SimulatorNode(
            env, load_interface(options.config or options.task), options.rate, options.lockstep,
            None if options.no_node else options.node, faults, begun=lambda: print("begun", flush=True),
        )  # fmt: skip
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    actions = {}
    try:
        for episode in node.play(options.seeds):
            actions[str(episode.seed)] = episode.actions
            summary = asdict(episode) | {"actions": len(episode.actions)}
            print(json.dumps(summary), flush=True)
    except TopicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        node.close()
        env.close()
        if options.out is not None:
            np.savez(options.out, **actions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
