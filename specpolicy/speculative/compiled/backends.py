"""What makes static functions fast: a compiler, or a CUDA graph. They change time, never numbers beyond rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from specpolicy.speculative.denoiser import Cond, gather_rows


def check_sizes(sizes: Sequence[int] | None) -> list[int] | None:
    """A list of its own.

    Raises:
        ValueError: not rising numbers from 1 on.
    """
    if sizes is None:
        return None
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"batches={list(sizes)}; expected rising batch sizes from 1 on, such as [1, 4, 16]")
    return list(sizes)


def pad_to_bucket(noise: Tensor, cond: Cond, sizes: Sequence[int] | None) -> tuple[Tensor, Cond]:
    """Both with as many rows as the least of ``sizes`` that is enough; larger batches, and None, stay as they are.

    The rows that are added repeat the first one, which is something that the network can be asked about.
    """
    here = len(noise)
    size = next((size for size in sizes or () if size >= here), here)
    if size == here or here == 0:
        return noise, cond
    row = torch.arange(size, device=noise.device)
    row = torch.where(row < here, row, 0)
    return noise[row], gather_rows(cond, row)


def pad_rows(numbers: Tensor, rows: int) -> Tensor:
    """Numbers of the first chains, and zeros for those that fill the batch up to ``rows``."""
    return torch.cat([numbers, numbers.new_zeros((rows - len(numbers), *numbers.shape[1:]))])


def batch_buckets(most: int) -> list[int]:
    """1, 2, 4 and so on, and ``most``: no batch up to it is more than doubled."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


Backend = Literal["plain", "inductor", "graph", "graph+inductor", "openvino"]
"""``plain`` runs the static functions as they are; ``inductor`` compiles them (torch.compile); ``graph`` captures them
as CUDA graphs; ``graph+inductor`` compiles, then captures. ``openvino`` evaluates the network alone by OpenVINO, and
leaves the steps around it to PyTorch."""

_FORMS = 128

State = TypeVar("State")
Function = Callable[[State, Any, Any], State]
"""From state, inputs of this call and condition to the next state; all of them nested tensors."""


@runtime_checkable
class Runner(Protocol, Generic[State]):
    """Holds a state and applies static functions to it."""

    def start(self, state: State, cond: Any) -> None:
        """Begin with ``state`` and ``cond``; shapes that were seen before cost no preparation."""
        ...

    def apply(self, function: Function[State], inputs: Any) -> State:
        """Replace the state by ``function(state, inputs, cond)``, and show it: it may be written over by the next."""
        ...


class CallingRunner(Generic[State]):
    """Calls the functions, compiled or not."""

    def __init__(self, compiled: bool) -> None:
        self._compiled = compiled
        self._functions: dict[Function[State], Function[State]] = {}
        self._state: State | None = None
        self._cond: Any = None

    def start(self, state: State, cond: Any) -> None:
        """See :class:`Runner`."""
        self._state, self._cond = state, cond

    def apply(self, function: Function[State], inputs: Any) -> State:
        """See :class:`Runner`."""
        if self._state is None:
            raise RuntimeError("nothing to go on from: start() comes first")
        if function not in self._functions:
            self._functions[function] = compiled_function(function) if self._compiled else function
        self._state = self._functions[function](self._state, inputs, self._cond)
        return self._state


Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""From a piece of work on fixed buffers to what does it again."""


class GraphRunner(Generic[State]):
    """Records each function once for each shape and replays it: one launch, whatever is in it.

    State, condition and inputs live in buffers that belong to the records; a record ends by writing the next state over
    the present one, so that nothing is copied between rounds but the inputs. What leaves the runner must be cloned.

    Args:
        compiled: compile the functions before they are recorded.
        record: how; by default as a CUDA graph.
    """

    def __init__(self, compiled: bool, record: Recorder | None = None) -> None:
        self._compiled, self._record = compiled, record or cuda_graph
        self._buffers: dict[Any, tuple[State, Any]] = {}
        self._recorded: dict[Any, tuple[Callable[[], None], list[Any]]] = {}
        self._key: Any = None

    def start(self, state: State, cond: Any) -> None:
        """See :class:`Runner`."""
        self._key = _shapes((state, cond))
        if self._key not in self._buffers:
            self._buffers[self._key] = _own((state, cond))
            return
        _copy(self._buffers[self._key], (state, cond))

    def apply(self, function: Function[State], inputs: Any) -> State:
        """See :class:`Runner`."""
        key = (self._key, function, _shapes(inputs))
        if key not in self._recorded:
            self._recorded[key] = self._recording(function, inputs)
        replay, buffers = self._recorded[key]
        _copy(buffers, tree_flatten(inputs)[0])
        replay()
        return self._buffers[self._key][0]

    def _recording(self, function: Function[State], inputs: Any) -> tuple[Callable[[], None], list[Any]]:
        call = compiled_function(function) if self._compiled else function
        state, cond = self._buffers[self._key]
        leaves, form = tree_flatten(_own(inputs))
        mine, before = tree_unflatten(leaves, form), _own(state)
        replay = self._record(lambda: _copy(state, call(state, mine, cond)))
        _copy(state, before)
        return replay, leaves


def cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture ``work`` as a CUDA graph."""
    # Libraries choose their kernels and workspaces in the first calls, which must not be captured.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def make_runner(backend: Backend) -> Runner[Any]:
    """A runner for ``backend``.

    Raises:
        ValueError: no such backend, or CUDA graphs without CUDA.
    """
    if backend == "openvino":
        raise ValueError("backend='openvino' compiles the network alone; compile_sampler(sampler, 'openvino') takes it")
    if backend not in get_args(Backend):
        raise ValueError(
            f"backend={backend!r}; expected {', '.join(get_args(Backend)[:-1])} or {get_args(Backend)[-1]}"
        )
    if backend.startswith("graph") and not torch.cuda.is_available():
        raise ValueError(f"backend={backend!r} needs CUDA, which torch does not find here; take inductor or plain")
    compiled = backend.endswith("inductor")
    return GraphRunner(compiled) if backend.startswith("graph") else CallingRunner(compiled)


def compiled_function(function: Function[State]) -> Function[State]:
    """``function`` compiled as one piece for the shapes that it is called with."""
    # Torch counts by the text of a function, and every sampler and width shares that of the static round.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _FORMS)
    return torch.compile(function, fullgraph=True, dynamic=False)


def _shapes(nested: Any) -> Any:
    leaves, form = tree_flatten(nested)
    return form, tuple((tuple(leaf.shape), leaf.dtype, leaf.device) for leaf in leaves if isinstance(leaf, Tensor))


def _own(nested: Any) -> Any:
    """Copies that can be written to in and out of inference mode."""
    with torch.inference_mode(False):
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, nested)


def _copy(to: Any, values: Any) -> None:
    pairs = zip(tree_flatten(to)[0], tree_flatten(values)[0], strict=True)
    moved = [(mine, value) for mine, value in pairs if isinstance(mine, Tensor) and mine is not value]
    if moved:
        torch._foreach_copy_([mine for mine, _ in moved], [value for _, value in moved])
