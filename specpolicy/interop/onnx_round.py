"""A round of speculation as one ONNX graph, for controllers without Python.

The graph is :class:`~specpolicy.speculative.compiled.round.FixedShapeRound` for one chain: from the state of the chain,
the condition and the random numbers of a round to the next state. Draft, network, verification, repair and step are in
it; what is left for the host is a loop until the chain has arrived, and the random numbers. Reflection needs no special
functions, so that the graph consists of standard operators.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks import SeparableNetwork
from specpolicy.policies.normalizer import AffineNormalizer, MinMaxNormalizer
from specpolicy.speculative.compiled.openvino_network import unchecked_annotations
from specpolicy.speculative.compiled.round import CompiledState, FixedShapeRound
from specpolicy.speculative.denoiser import PreparedCondition
from specpolicy.speculative.drafters.base import UnverifiedTail
from specpolicy.speculative.round import ChainState, RoundNoise
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.speculative.verifiers import ReflectionVerifier
from specpolicy.speculative.window import AdaptiveWindow
from specpolicy.utils.extras import require
from specpolicy.utils.files import atomic_path

ROUND, MANIFEST = "round.onnx", "manifest.json"
OPSET = 18
_BOOL, _INT64 = 9, 7  # of onnx.TensorProto
EXPORTABLE = "recycled, recycled20 and analytic10_recycled"
DRAWS = ("noise", "uniform", "fresh")


class ExportError(ValueError):
    """This policy or sampler cannot be written as a graph of rounds."""


class _Network:
    """The network with its table of timesteps; called with prepared conditions."""

    def __init__(self, network: SeparableNetwork, table: Tensor) -> None:
        self.network, self.table = network, table

    def __call__(self, x: Tensor, timestep: Tensor, cond: Any) -> Tensor:
        return self.network.forward_from(x, self.table[timestep], cond.rows)


class RoundGraph(nn.Module):
    """One round of one chain as a function of named tensors.

    Args:
        policy: on the CPU, in float32.
        sampler: of this policy.

    Raises:
        ExportError: there is no graph of them; the message says which samplers have one.

    Attributes:
        window: steps drafted in a round.
        names: of the tensors of the state, in their order.
    """

    def __init__(self, policy: DiffusionPolicy, sampler: Any) -> None:
        super().__init__()
        _check(policy, sampler)
        self.network = policy.network
        steps = policy.num_train_timesteps
        with torch.no_grad():
            table = self.network.timestep_table(torch.arange(steps))  # type: ignore[operator]
        self.register_buffer("table", table)
        self.sampler: SpeculativeSampler = sampler
        self.event, self.steps = policy.event_shape, sampler.process.num_steps
        self.window = int(sampler.table.max())
        self.cond_dim = policy.config.n_obs_steps * policy.observations.dim
        self.recycles = sampler.drafter.recycles
        self.names = [*_CHAIN, *(f"tail_{each}" for each in UnverifiedTail._fields if self.recycles), *_COUNTS]
        rounds = sampler.round_for(torch.device("cpu"), torch.float32)
        denoiser = _Network(self.network, table)  # type: ignore[arg-type]
        self.rounds = FixedShapeRound(rounds, denoiser, torch.float32, sampler.table)

    def start(self, noise: Tensor) -> dict[str, Tensor]:
        """Describe a chain at pure noise.

        Args:
            noise: shape ``(1, *event)``.

        Returns:
            The state by name; all but ``x`` and ``last_eval_x`` is the same for every chain.
        """
        return self._named(CompiledState.start(noise, self.steps, False, self.window if self.recycles else None))

    def draws(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the random numbers of a round.

        Args:
            generator: where from.

        Returns:
            Standard normal ``noise`` and ``fresh``, and ``uniform`` in [0, 1), by name.
        """
        return {
            "noise": torch.randn((1, self.window, *self.event), generator=generator),
            "uniform": torch.rand((1, self.window + 1), generator=generator, dtype=torch.float64),
            "fresh": torch.randn((1, *self.event), generator=generator),
        }

    def forward(
        self, cond: Tensor, noise: Tensor, uniform: Tensor, fresh: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the state after a round, from tensors in the order of :attr:`names`."""
        named = dict(zip(self.names, state, strict=True))
        before = self._state(named)
        ready = PreparedCondition(cond, self.network.condition(cond))  # type: ignore[operator]
        # A chain that starts drafts with the guess; the host need not tell.
        guessed = self.rounds.rounds.guess(before.chains, ready).last_eval_x0
        starts = (before.passes == 0).view(1, *[1] * len(self.event))
        x0 = torch.where(starts, guessed, before.chains.last_eval_x0)
        before = before._replace(chains=before.chains._replace(last_eval_x0=x0))
        after = self.rounds.advance(before, RoundNoise(noise, uniform, fresh), ready)
        return tuple(self._named(after).values())

    def _state(self, named: dict[str, Tensor]) -> CompiledState:
        tail = UnverifiedTail(*(named[f"tail_{each}"] for each in UnverifiedTail._fields)) if self.recycles else None
        begun = CompiledState.start(named["x"], self.steps, False, None)
        chains = ChainState(**{name: named[name] for name in _CHAIN}, tail=tail)
        return begun._replace(chains=chains, **{name: named[name] for name in _COUNTS})

    def _named(self, state: CompiledState) -> dict[str, Tensor]:
        found = {name: getattr(state.chains, name) for name in _CHAIN}
        if state.chains.tail is not None:
            found |= {f"tail_{name}": part for name, part in state.chains.tail._asdict().items()}
        return found | {name: getattr(state, name) for name in _COUNTS}


_CHAIN = ("k", "x", "last_eval_k", "last_eval_x", "last_eval_x0")
_COUNTS = ("passes", "evaluations", "finite")


def export_round(policy: DiffusionPolicy, sampler: Any, folder: str | Path) -> Path:
    """Write ``round.onnx`` and ``manifest.json``.

    Args:
        policy: on the CPU, in float32, of vectors alone.
        sampler: of this policy; one with reflection, a fixed window and a guess for the first round.
        folder: where to; it is made if need be.

    Returns:
        The folder.

    Raises:
        ExportError: there is no graph of policy and sampler, or ONNX Runtime computes something else with it.
        ImportError: the extra ``export`` is not installed.
    """
    require("onnx", "export")
    runtime: Any = require("onnxruntime", "export")
    graph, folder = RoundGraph(policy, sampler).eval(), Path(folder)
    generator = torch.Generator().manual_seed(0)
    cond = torch.rand((1, graph.cond_dim), generator=generator) * 2 - 1
    state = graph.start(torch.randn((1, *graph.event), generator=generator))
    draws = graph.draws(generator)
    names = ["cond", *DRAWS]
    inputs = (cond, *draws.values(), *state.values())
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder) as made,
        warnings.catch_warnings(),
        torch.no_grad(),
        unchecked_annotations(),
    ):
        warnings.simplefilter("ignore")
        path = Path(made, ROUND)
        # The tracing exporter takes seconds where the other one takes half a minute; what it gets wrong is found below.
        exporter: Any = torch.onnx
        exporter.register_custom_op_symbolic("aten::cumprod", _running_product, OPSET)
        exporter.export(
            graph, inputs, str(path), dynamo=False, opset_version=OPSET,
            input_names=[*names, *graph.names], output_names=[f"next_{name}" for name in graph.names],
        )  # fmt: skip
        _compare(runtime, path, graph, cond, generator)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest = _manifest(policy, graph, dict(zip([*names, *graph.names], inputs, strict=True)), digest)
        path.replace(folder / ROUND)
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def _check(policy: DiffusionPolicy, sampler: Any) -> None:
    """Refuse what has no graph, and say what has one."""
    config = policy.config
    if not isinstance(sampler, SpeculativeSampler):
        raise ExportError(f"{type(sampler).__name__} makes no rounds; samplers that can be exported: {EXPORTABLE}")
    if not isinstance(sampler.verifier, ReflectionVerifier):
        raise ExportError(
            f"{type(sampler.verifier).__name__} needs special functions that ONNX lacks; samplers that can be "
            f"exported: {EXPORTABLE}"
        )
    if isinstance(sampler.window, AdaptiveWindow):
        raise ExportError(f"adaptive windows have no fixed shape; samplers that can be exported: {EXPORTABLE}")
    if sampler.initial_guess is None or sampler.drafter.refreshes:
        raise ExportError(
            f"a round needs an evaluation of its own before it drafts; samplers that can be exported: {EXPORTABLE}"
        )
    wrong = {
        "cameras": config.cameras,
        "inpainted observations": config.inpainting,
        "rotations": config.rotations,
        "a prefix (max_delay)": config.max_delay,
    }
    if found := [name for name, value in wrong.items() if value]:
        raise ExportError(f"this policy has {found[0]}; policies of vectors without them can be exported")
    if policy.dtype != torch.float32 or policy.device.type != "cpu":
        raise ExportError(f"the policy is in {policy.dtype} on {policy.device}; float32 on the CPU can be exported")
    if not isinstance(policy.network, SeparableNetwork):
        raise ExportError(f"{type(policy.network).__name__} computes nothing ahead; networks of this package do")


def _running_product(graph: Any, factors: Any, dim: Any, dtype: Any) -> Any:
    """``cumprod``, which ONNX does not have; here it is of zeros and ones alone: one until the first zero."""
    zeros = graph.op("Cast", graph.op("Not", graph.op("Cast", factors, to_i=_BOOL)), to_i=_INT64)
    before = graph.op("CumSum", zeros, dim)
    none = graph.op("Equal", before, graph.op("Constant", value_t=torch.tensor(0)))
    return graph.op("Cast", none, to_i=_INT64)


def _compare(runtime: Any, path: Path, graph: RoundGraph, cond: Tensor, generator: torch.Generator) -> None:
    """Sample a chunk with ONNX Runtime beside PyTorch; refuse a graph that computes something else."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    state = graph.start(torch.randn((1, *graph.event), generator=generator))
    while int(state["k"]) < graph.steps:
        inputs = {"cond": cond, **graph.draws(generator), **state}
        got = session.run(None, {name: part.numpy() for name, part in inputs.items()})
        state = dict(zip(graph.names, graph(*inputs.values()), strict=True))
        for name, wanted, found in zip(graph.names, state.values(), got, strict=True):
            if not torch.allclose(wanted.double(), torch.from_numpy(found).double(), rtol=1e-3, atol=1e-3):
                raise ExportError(f"ONNX Runtime computes another {name} than PyTorch; this policy cannot be exported")


def _manifest(policy: DiffusionPolicy, graph: RoundGraph, inputs: dict[str, Tensor], digest: str) -> dict[str, Any]:
    config = policy.config
    start = graph.start(torch.zeros((1, *graph.event)))
    return {
        "format": "specpolicy round 1",
        "graph": ROUND,
        "sha256": digest,
        "sampler": repr(graph.sampler),
        "steps": graph.steps,
        "window": graph.window,
        "timesteps": graph.sampler.process.timesteps.tolist(),
        "inputs": {name: {"shape": list(part.shape), "dtype": _dtype(part)} for name, part in inputs.items()},
        "state": {name: f"next_{name}" for name in graph.names},
        "start": {name: int(part.flatten()[0]) for name, part in start.items() if name not in ("x", "last_eval_x")},
        "draws": {"noise": "standard normal", "fresh": "standard normal", "uniform": "uniform in [0, 1)"},
        "loop": [
            "observation: join parts in order, oldest step first; cond = (observation - center) / width + base, flat",
            "x and last_eval_x begin as one draw of standard normal noise; the rest of the state is filled with start",
            "until k = steps: draw noise, uniform and fresh anew, run the graph, take each next_NAME for NAME",
            "finite must stay true; then x is the sample: actions = (x - base) * width + center",
            "play n_action_steps actions from first_action on",
        ],
        "observation": {
            "parts": config.observations,
            "n_obs_steps": config.n_obs_steps,
            **_affine(policy.observation_normalizer),
        },
        "action": {
            "horizon": config.horizon,
            "first_action": config.first_executed,
            "n_action_steps": config.n_action_steps,
            **_affine(policy.action_normalizer),
        },
    }


def _affine(normalizer: nn.Module) -> dict[str, list[float]]:
    """Any normalizer as x′ = (x − center) / width + base."""
    if isinstance(normalizer, AffineNormalizer):
        center, width, base = normalizer.center, normalizer.width, normalizer.base
    elif isinstance(normalizer, MinMaxNormalizer):
        center, width = normalizer._centre_and_scale()
        base = torch.zeros_like(center)
    else:
        raise ExportError(f"{type(normalizer).__name__} is no affine normalizer")
    return {"center": center.tolist(), "width": width.tolist(), "base": base.tolist()}


def _dtype(part: Tensor) -> str:
    return str(part.dtype).removeprefix("torch.")
