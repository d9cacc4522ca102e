"""A network as OpenVINO models of fixed batch sizes: several times as fast as PyTorch on a CPU, the same numbers.

The torch module is traced and converted once by OpenVINO itself, with a free number of rows, and kept as a file beside
the checkpoint. From that file a model is compiled for each batch size of :data:`BATCH_SIZES` that is asked for; a batch
in between is filled up, a larger one is split. Compiled blobs are not kept: most of the time is spent on generating
kernels, which OpenVINO's ``CACHE_DIR`` does not store (Square's U-Net: 1.0 s without, 0.8 s with a cache of 17 MB a
size).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

import jaxtyping
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from specpolicy.speculative.compiled import openvino_rewrites
from specpolicy.speculative.compiled.openvino_rewrites import rational_mish, short_convolutions
from specpolicy.speculative.denoiser import Cond, Denoiser, prepared
from specpolicy.speculative.single_chain import ChainNetwork
from specpolicy.utils.digests import CONVERTED, source_digest
from specpolicy.utils.errors import one_line
from specpolicy.utils.extras import require
from specpolicy.utils.progress import progress_bar

BATCH_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64)
"""Rows that models are compiled for. Beyond some thirty rows time is proportional to them: larger batches are split."""

Precision = Literal["f32", "bf16"]
"""``bf16`` computes products in bfloat16: another network, which is then what is sampled exactly."""

_TOLERANCE = {"f32": 1e-4, "bf16": 0.2}
_TRACED_ROWS = 2


class ConversionError(RuntimeError):
    """OpenVINO cannot take over this network."""


class _Traced(nn.Module):
    """A denoiser whose condition is spread over its arguments."""

    def __init__(self, denoiser: Denoiser, form: TreeSpec) -> None:
        super().__init__()
        self.denoiser, self.form = denoiser, form

    def forward(self, x: Tensor, timestep: Tensor, *leaves: Tensor) -> Tensor:
        return self.denoiser(x, timestep, tree_unflatten(list(leaves), self.form))


class OpenVINODenoiser:
    """A denoiser that is evaluated by OpenVINO on the CPU.

    Models are converted and compiled when a batch size is first seen, with as many threads as torch has then; each is
    compared with the network itself before it is used. :meth:`prepare` does so ahead of time.

    Args:
        denoiser: a network in float32 on the CPU, as torch can trace it: without decisions that depend on numbers.
        precision: ``f32``, or ``bf16`` for a reduced network.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: no such precision, or the processor does not compute in it.
    """

    def __init__(self, denoiser: Denoiser, precision: Precision = "f32") -> None:
        self._openvino: Any = require("openvino", "openvino")
        self._core: Any = self._openvino.Core()
        check_precision(precision)
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in able:
            raise ValueError("precision=bf16: OpenVINO does not compute in bfloat16 on this processor; take f32")
        self.denoiser, self.precision = denoiser, precision
        self._converted: dict[Any, Any] = {}
        self._models: dict[tuple[Any, int, int], _StaticModel] = {}
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        """Name network and precision."""
        return f"OpenVINODenoiser({type(self.denoiser).__name__}, {self.precision})"

    def __call__(self, x: Float[Tensor, "n ..."], timestep: Tensor, cond: Cond) -> Float[Tensor, "n ..."]:
        """Evaluate the network.

        Args:
            x: noisy points in float32, shape ``(n, *event)``.
            timestep: of each, shape ``(n,)``.
            cond: conditions in float32 with leading dimension n.

        Returns:
            The network's output.

        Raises:
            ConversionError: the network or its inputs cannot be taken over.
        """
        leaves, form = ([cond], _ONE_TENSOR) if isinstance(cond, Tensor) else _flat(cond)
        inputs, rows = (x, timestep, *leaves), x.shape[0]
        with self.lock:
            if rows <= BATCH_SIZES[-1]:
                return torch.from_numpy(self.model(rows, inputs, form).run(inputs))
            parts = zip(*(torch.split(part, BATCH_SIZES[-1]) for part in inputs), strict=True)
            return torch.from_numpy(np.concatenate([self.model(len(part[0]), part, form).run(part) for part in parts]))

    def prepare_condition(self, cond: Cond) -> Cond:
        """Prepare a condition as the network itself does, in PyTorch and once a chunk.

        Args:
            cond: conditions with leading dimension B.

        Returns:
            What to call this denoiser with, row by row.
        """
        return prepared(self.denoiser, cond)

    def for_chain(self, event: tuple[int, ...], cond: Cond) -> ChainNetwork:
        """Evaluate states of one chain, handed in as arrays: its condition is written into each model once.

        Args:
            event: shape of one state.
            cond: condition of the chain, with leading dimension 1.

        Returns:
            From states ``(n, d)`` and timesteps ``(n,)`` to outputs ``(n, *event)``.

        Raises:
            ConversionError: as in a call.
        """
        return _OneChain(self, event, prepared(self.denoiser, cond))

    def model(self, rows: int, inputs: tuple[Tensor, ...], form: TreeSpec) -> _StaticModel:
        """Return the model for so many rows of inputs like these; made if it is new. The caller has the lock."""
        kind = (form.type, *((part.shape[1:], part.dtype) for part in inputs))
        key = (kind, _BUCKET[rows], torch.get_num_threads())
        found = self._models.get(key)
        if found is None or (found.form is not form and found.form != form):
            found = self._models[key] = self._compile(kind, key[1], inputs, form)
        return found

    def prepare(self, x: Float[Tensor, "n ..."], timestep: Tensor, cond: Cond, rows: Sequence[int]) -> None:
        """Compile the models for batches of some sizes.

        Args:
            x: inputs like those that will come, of at least one row.
            timestep: of them.
            cond: of them.
            rows: sizes of batches.

        Raises:
            ConversionError: as in a call.
        """
        leaves, form = _flat(prepared(self.denoiser, cond))
        sizes = sorted({size for each in rows for size in _sizes_of(each)})
        with progress_bar("compiling for OpenVINO", len(sizes)) as bar:
            for size in sizes:
                which = torch.arange(size) % len(x)
                with self.lock:
                    self.model(size, tuple(part[which] for part in (x, timestep, *leaves)), form)
                bar.advance()

    def _compile(self, kind: Any, size: int, inputs: tuple[Tensor, ...], form: TreeSpec) -> _StaticModel:
        if (kind, form) not in self._converted:
            _check_inputs(inputs)
            self._converted[kind, form] = self._load(inputs, form)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
            "ENABLE_CPU_PINNING": False,  # processes beside one another must not share a core
        }
        try:
            model = self._converted[kind, form].clone()
            model.reshape({index: [size, *part.shape[1:]] for index, part in enumerate(inputs)})
            if size > 1:
                short_convolutions(model)
            compiled = self._core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            self._refuse(f"cannot be compiled for {size} rows", error)
        found = _StaticModel(self._openvino, compiled, size, inputs, form)
        self._compare(found, inputs, form)
        return found

    def _load(self, inputs: tuple[Tensor, ...], form: TreeSpec) -> Any:
        """Read the converted network, or convert it and keep it."""
        name, folders = self._file_name(inputs), _folders(self.denoiser)
        for path in (folder / f"{name}.xml" for folder in folders) if name else ():
            if path.is_file() and path.with_suffix(".bin").is_file():
                with suppress(RuntimeError):  # damaged: it is made anew
                    return self._core.read_model(path)
        which = torch.arange(_TRACED_ROWS) % len(inputs[0])
        module = _Traced(self.denoiser, form)
        try:
            with warnings.catch_warnings(), unchecked_annotations(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # of the tracer; what it gets wrong is found by comparing
                example = tuple(part[which].clone() for part in inputs)
                with _unreported():
                    model = self._openvino.convert_model(module, example_input=example)
        except Exception as error:
            self._refuse("cannot be converted", error)
        rational_mish(model)
        for folder in folders if name else ():
            with suppress(OSError):
                _save(self._openvino, model, folder, str(name))
                break
        return model

    def _file_name(self, inputs: tuple[Tensor, ...]) -> str | None:
        """A name that tells this network from others; None if its weights are not known."""
        if not isinstance(self.denoiser, nn.Module):
            return None
        digest = hashlib.sha256()
        for key, value in sorted(self.denoiser.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        shapes = hashlib.sha256(str([tuple(part.shape[1:]) for part in inputs]).encode()).hexdigest()
        modules = {type(module).__module__ for module in self.denoiser.modules()}
        source = source_digest(
            __name__, openvino_rewrites.__name__, *sorted(each for each in modules if each.split(".")[0] != "torch")
        )
        versions = f"{self._openvino.__version__} {torch.__version__} {source} {self.denoiser!r}"
        made = hashlib.sha256(versions.encode()).hexdigest()
        return f"{CONVERTED}{digest.hexdigest()[:16]}-{shapes[:8]}-{made[:8]}"

    def _compare(self, model: _StaticModel, inputs: tuple[Tensor, ...], form: TreeSpec) -> None:
        """Refuse a model that does not compute what the network does."""
        with torch.no_grad():
            wanted = _Traced(self.denoiser, form)(*inputs).numpy()
        got, scale = model.run(inputs), max(1.0, float(np.nan_to_num(np.abs(wanted)).max()))
        if got.shape != wanted.shape or not np.allclose(
            got, wanted, rtol=0, atol=_TOLERANCE[self.precision] * scale, equal_nan=True
        ):
            where = f"{got.shape} for {wanted.shape}" if got.shape != wanted.shape else f"for {len(inputs[0])} rows"
            self._refuse(f"computes something else in OpenVINO than in PyTorch ({where})", None)

    def _refuse(self, what: str, error: BaseException | None) -> None:
        why = "" if error is None else f": {one_line(error)[:200]}"
        raise ConversionError(
            f"{type(self.denoiser).__name__} {what}{why}; take compile=inductor, or null for PyTorch as it is"
        ) from error


class _StaticModel:
    """A compiled model of one batch size with its own input and output buffers."""

    def __init__(self, openvino: Any, compiled: Any, size: int, inputs: tuple[Tensor, ...], form: TreeSpec) -> None:
        self.form = form
        self._request = compiled.create_infer_request()
        self._buffers = [np.zeros((size, *part.shape[1:]), part[:0].numpy().dtype) for part in inputs]
        for index, buffer in enumerate(self._buffers):
            self._request.set_input_tensor(index, openvino.Tensor(buffer, shared_memory=True))
        self._infer()
        self._output = self._request.get_output_tensor(0).data
        self._states = self._buffers[0].reshape(size, -1)
        self._filled_for: _OneChain | None = None

    def _infer(self) -> None:
        self._request.infer(share_outputs=True)  # in its own buffers: nothing is copied

    def run(self, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
        """Evaluate it on no more rows than it has; what fills the batch up is what was there before."""
        rows, self._filled_for = inputs[0].shape[0], None
        for buffer, part in zip(self._buffers, inputs, strict=True):
            buffer[:rows] = part.numpy()
        self._infer()
        return self._output[:rows].copy()

    def run_chain(
        self, states: NDArray[np.float64], timesteps: NDArray[np.integer[Any]], chain: _OneChain
    ) -> NDArray[np.float32]:
        """The same for states of one chain, whose condition is written once."""
        rows = len(states)
        self._states[:rows] = states
        self._buffers[1][:rows] = timesteps
        if self._filled_for is not chain:
            for buffer, leaf in zip(self._buffers[2:], chain.arrays, strict=True):
                buffer[:] = leaf
            self._filled_for = chain
        self._infer()
        return self._output[:rows].copy()


class _OneChain:
    """The network for the states of one chain; see :meth:`OpenVINODenoiser.for_chain`."""

    def __init__(self, owner: OpenVINODenoiser, event: tuple[int, ...], cond: Cond) -> None:
        self._owner, self._event = owner, event
        self._leaves, self._form = _flat(cond)
        self.arrays = [leaf.detach().numpy() for leaf in self._leaves]
        self._models: dict[int, _StaticModel] = {}

    def __call__(self, states: NDArray[np.float64], timesteps: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        rows, largest = len(states), BATCH_SIZES[-1]
        if rows > largest:
            parts = range(0, rows, largest)
            return np.concatenate([self(states[at : at + largest], timesteps[at : at + largest]) for at in parts])
        with self._owner.lock:
            model = self._models.get(_BUCKET[rows])
            if model is None:
                model = self._models[_BUCKET[rows]] = self._model(states, timesteps)
            return model.run_chain(states, timesteps, self)

    def _model(self, states: NDArray[np.float64], timesteps: NDArray[np.integer[Any]]) -> _StaticModel:
        x = torch.from_numpy(states).float().view(-1, *self._event)
        leaves = (leaf.expand(len(x), *leaf.shape[1:]) for leaf in self._leaves)
        return self._owner.model(len(x), (x, torch.from_numpy(timesteps), *leaves), self._form)


def check_precision(precision: str) -> None:
    """Refuse an unknown precision.

    Args:
        precision: see :data:`Precision`.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}; expected {' or '.join(get_args(Precision))}")


_BUCKET = [next(size for size in BATCH_SIZES if size >= rows) for rows in range(BATCH_SIZES[-1] + 1)]
_ONE_TENSOR = tree_flatten(torch.zeros(0))[1]


def bucket(rows: int) -> int:
    """The least batch size that holds ``rows``, which are at most the largest."""
    return _BUCKET[rows]


def _sizes_of(rows: int) -> set[int]:
    """The batch sizes that a batch of so many rows takes."""
    largest = BATCH_SIZES[-1]
    whole, rest = divmod(rows, largest)
    return ({largest} if whole else set()) | ({bucket(rest)} if rest else set())


def _flat(cond: Cond) -> tuple[list[Tensor], TreeSpec]:
    leaves, form = tree_flatten(cond)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise ConversionError(f"the condition holds a {type(leaf).__name__}; OpenVINO takes tensors")
    return leaves, form


def _check_inputs(inputs: tuple[Tensor, ...]) -> None:
    for part in inputs:
        if part.device.type != "cpu":
            raise ConversionError(f"OpenVINO computes on the CPU here, not on {part.device}; take device=cpu")
        if part.dtype not in (torch.float32, torch.int64, torch.int32):
            raise ConversionError(f"the network takes {part.dtype}; OpenVINO takes over float32 networks here")


def _folders(denoiser: Denoiser) -> list[Path]:
    """Where to keep a converted network: its checkpoint's folder, or the user's cache where that is not to be had."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specpolicy"
    own = getattr(denoiser, "folder", None)
    return [own, home] if isinstance(own, Path) and own.is_dir() and os.access(own, os.W_OK) else [home]


@contextmanager
def _unreported() -> Iterator[None]:
    """Keep OpenVINO's converter from reporting its use over the network, as it does outside of CI.

    It forks this process for each of its messages, which must not happen to one that controls a robot.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


@contextmanager
def unchecked_annotations() -> Iterator[None]:
    """Where annotations are checked at run time, a tracer's sizes are no ints."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def _save(openvino: Any, model: Any, folder: Path, name: str) -> None:
    """Write ``name.bin``, then ``name.xml``, which tells that both are whole.

    Older conversions of this network for these inputs go; those for other inputs, such as a plain condition beside a
    prepared one, stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        openvino.serialize(model, Path(made, f"{name}.xml"), Path(made, f"{name}.bin"))
        for old in folder.glob(f"{name.rpartition('-')[0]}-*"):
            old.unlink(missing_ok=True)
        for suffix in ("bin", "xml"):
            os.replace(Path(made, f"{name}.{suffix}"), folder / f"{name}.{suffix}")
