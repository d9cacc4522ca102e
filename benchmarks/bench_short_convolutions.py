"""What a U-Net gains on OpenVINO from convolutions over few positions that are written as matrix products.

    python benchmarks/bench_short_convolutions.py square

The network is compiled for each batch size as it was converted and with ``short_convolutions`` of
:mod:`specpolicy.speculative.compiled.openvino_network`; both take turns, in the process's own time and on one thread.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import torch
from side_by_side import ROOT, conditions, keep, ratio, shown, take_turns

from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.compiled import openvino_network
from specpolicy.speculative.compiled.openvino_network import OpenVINODenoiser
from specpolicy.speculative.denoiser import gather_rows, prepared

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--calls", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy, cpu = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / options.task), torch.device("cpu")
    rewrite = openvino_network.short_convolutions
    ways, most = dict[str, Any](), 0.0
    with torch.inference_mode():
        cond = prepared(policy, conditions(policy, 1))
        for rows in options.rows:
            x = torch.randn(rows, *policy.event_shape, generator=torch.Generator().manual_seed(rows))
            inputs = x, torch.arange(rows) % 100, gather_rows(cond, torch.zeros(rows, dtype=torch.long))
            outputs = []
            for name, change in (("convolution", lambda model: None), ("product", rewrite)):
                network = OpenVINODenoiser(policy)
                openvino_network.short_convolutions = change  # one network, compiled in both ways
                outputs.append(network(*inputs))
                ways[f"{name}, {rows}"] = partial(
                    lambda _, network, inputs: network(*inputs), network=network, inputs=inputs
                )
            most = max(most, float((outputs[0] - outputs[1]).abs().max()))
        times = take_turns(ways, options.calls, cpu, clock=time.process_time)
    found = {
        str(rows): {
            "milliseconds": [
                sorted(times[f"{name}, {rows}"])[options.calls // 2] for name in ("convolution", "product")
            ],
            "product_over_convolution": ratio(times[f"product, {rows}"], times[f"convolution, {rows}"]),
        }
        for rows in options.rows
    }
    table = [
        f"| rows | time as products / as convolutions [95 %], {options.task} | n |",
        "| ---: | ---: | ---: |",
        *(f"| {rows} | {shown(row['product_over_convolution'])} | {options.calls} |" for rows, row in found.items()),
    ]
    content = {"task": options.task, "clock": "process time", "largest_difference": most, "rows": found}
    keep("short_convolutions", "table", content, table, cpu)


if __name__ == "__main__":
    main()
