"""Read checkpoint files that others wrote, without running anything that is in them.

A torch archive is a zip file around a pickle, and a pickle is a program. Three things keep it from running here: the
zip container is checked (complete, uncompressed, checksums), the pickle is scanned for every name that it refers to
before anything is unpickled, and torch's ``weights_only`` unpickler then sees harmless stand-ins for the few names of
other packages that such files hold. No package of theirs is imported.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from specpolicy.policies.checkpoint import CheckpointError

_LARGEST_JSON = 16 << 20
_LARGEST_PICKLE = 256 << 20  # the program only; tensors lie beside it

_STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "Untyped")
_TORCH_NAMES = {
    "collections.OrderedDict",
    "_codecs.encode",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    *(f"torch.{name}Storage" for name in _STORAGES),
    *(f"torch.storage.{name}Storage" for name in ("Untyped", "Typed")),
}
"""Names that torch's own restricted unpickler admits and that state dicts need; all of them are harmless."""


class _Node:
    """Stand in for an object of another package: it keeps the attributes that were pickled and has no behaviour."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.__dict__.update(state)


class _MappingNode(_Node):
    """OmegaConf's DictConfig."""


class _SequenceNode(_Node):
    """OmegaConf's ListConfig."""


class _ValueNode(_Node):
    """OmegaConf's AnyNode."""


class _Ignored(_Node):
    """Metadata and numpy's dtypes: nothing of them is needed."""


def _no_scalar(*_: Any) -> None:
    """Stand in for numpy's scalars: losses and success rates, which a policy does not need."""


def _empty_mapping(*_: Any) -> dict[Any, Any]:
    """Stand in for ``defaultdict``, a real one of which ``weights_only`` would not fill."""
    return {}


_TYPES: dict[str, type] = {"dict": dict, "list": list, "int": int, "str": str, "float": float, "bool": bool}


def _named_type(name: str) -> type:
    """Stand in for dill's look-up of a type by its name, for six plain types."""
    if name not in _TYPES:
        raise pickle.UnpicklingError(f"dill names the type {name!r}, which no configuration needs")
    return _TYPES[name]


_DTYPES = ("Float64DType", "Float32DType", "Int64DType", "Int32DType", "BoolDType")
_STAND_INS: dict[str, Any] = {
    "omegaconf.dictconfig.DictConfig": _MappingNode,
    "omegaconf.listconfig.ListConfig": _SequenceNode,
    "omegaconf.nodes.AnyNode": _ValueNode,
    "omegaconf.base.ContainerMetadata": _Ignored,
    "omegaconf.base.Metadata": _Ignored,
    "dill._dill._load_type": _named_type,
    "typing.Any": Any,
    "collections.defaultdict": _empty_mapping,
    "numpy.core.multiarray.scalar": _no_scalar,
    "numpy._core.multiarray.scalar": _no_scalar,
    "numpy.dtype": _Ignored,
    **{f"numpy.dtypes.{name}": _Ignored for name in _DTYPES},
    **{f"{module}.{name}": kind for module in ("builtins", "__builtin__") for name, kind in _TYPES.items()},
}


def refuse(file: Path, message: str, cause: BaseException | None = None) -> NoReturn:
    """Raise a :class:`CheckpointError` of one line that begins with the file.

    Args:
        file: the file or folder at fault.
        message: what was wrong, what was expected, and what to do.
        cause: the error that showed it; its first line is no part of the message unless ``message`` says so.
    """
    raise CheckpointError(shortened(f"{file}: {message}")) from cause


def shortened(text: str, longest: int = 500) -> str:
    """Join the lines of a text and cut it to ``longest`` characters."""
    joined = " ".join(text.split())
    return joined if len(joined) <= longest else joined[: longest - 1] + "…"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file, at most 16 MiB.

    Raises:
        CheckpointError: the file is missing, too large, nested too deeply, no JSON, or holds something else than an
            object or a number that is not finite.
    """

    def not_finite(name: str) -> NoReturn:
        raise ValueError(f"it holds {name}")

    try:
        if path.stat().st_size > _LARGEST_JSON:
            refuse(path, f"larger than {_LARGEST_JSON >> 20} MiB, which no configuration is")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=not_finite)
    except OSError as error:
        refuse(path, f"cannot be read ({error.strerror or type(error).__name__})", error)
    except (ValueError, RecursionError) as error:
        refuse(path, f"is no JSON that can be read ({error}); copy it again", error)
    if not isinstance(value, dict):
        refuse(path, f"holds a {type(value).__name__}; expected a JSON object")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file onto the CPU, as they are stored.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    if not path.is_file():
        refuse(path, "is missing; copy the whole folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        refuse(path, f"is damaged or truncated ({error}); copy it again", error)


def read_torch_archive(path: Path) -> Any:
    """Read what ``torch.save`` wrote, tensors onto the CPU, running nothing that the file names.

    Returns:
        Dicts, lists, tensors and plain values; objects of other packages as stand-ins, see :func:`plain_values`.

    Raises:
        CheckpointError: no zip archive of torch, truncated, compressed, with a wrong checksum, or with a pickle that
            refers to a name which no policy needs.
    """
    _scan(path, _checked_pickle(path))
    stand_ins = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
    try:
        with torch.serialization.safe_globals([*stand_ins, *_TYPES.values()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a malformed pickle or tensor leads to
        # torch advises to read the file without protection; only its reason is passed on
        reason = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        reason = shortened(reason.partition("Please file an issue")[0].partition("Check the documentation")[0], 200)
        refuse(path, f"cannot be unpickled safely ({reason}); copy or save it again", error)


def _checked_pickle(path: Path) -> bytes:
    """The program of a torch archive, after checks of its container."""
    if not path.is_file():
        refuse(path, "there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED:
                    refuse(path, f"entry {entry.filename!r} is compressed, which torch never does: not its file")
            programs = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            if len(programs) != 1:
                refuse(path, f"is a zip file with {len(programs)} data.pkl in it; expected one, as torch.save writes")
            if programs[0].file_size > _LARGEST_PICKLE:
                refuse(path, f"its data.pkl is larger than {_LARGEST_PICKLE >> 20} MiB: no checkpoint of a policy")
            damaged = archive.testzip()
            if damaged is not None:
                refuse(path, f"the checksum of {damaged!r} is wrong: damaged or tampered with; copy it again")
            return archive.read(programs[0])
    except zipfile.BadZipFile as error:
        with open(path, "rb") as file:
            begins_like_zip = file.read(4) == b"PK\x03\x04"
        if begins_like_zip:
            refuse(path, "is truncated: the end of the archive is missing; copy it again", error)
        refuse(
            path,
            "is no torch archive. Bare pickles (such as workspace snapshots .pkl) run code when they are read and are "
            "refused; give the .ckpt, .pth or folder that training saved",
            error,
        )
    except CheckpointError:
        raise
    except (OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        refuse(path, f"cannot be read ({error}); copy it again", error)


def _scan(path: Path, program: bytes) -> None:
    """Refuse a pickle that refers to anything but :data:`_TORCH_NAMES` and the stand-ins."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "GLOBAL":
                name = str(argument).replace(" ", ".")
                if name.startswith("diffusion_policy.workspace."):
                    refuse(
                        path,
                        "is a snapshot of diffusion_policy's whole workspace (.pkl), a pickle of live objects that "
                        "runs code when it is read; nothing was executed. Give checkpoints/latest.ckpt of that run",
                    )
                if name not in _TORCH_NAMES and name not in _STAND_INS:
                    refuse(
                        path,
                        f"its pickle refers to {name}, which no weights need and which could run code; nothing was "
                        "executed. Do not use this file unless you know where it comes from",
                    )
            elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
                refuse(path, f"its pickle uses {opcode.name}, which torch.save never writes; nothing was executed")
    except CheckpointError:
        raise
    except Exception as error:  # pickletools raises various errors on malformed programs
        refuse(path, f"its data.pkl is no complete pickle ({error}); copy it again", error)


def plain_values(value: Any) -> Any:
    """Turn OmegaConf's stand-ins into dicts, lists and plain values, without resolving interpolations."""
    if isinstance(value, _MappingNode):
        content = getattr(value, "_content", None)
        return {str(k): plain_values(v) for k, v in content.items()} if isinstance(content, Mapping) else content
    if isinstance(value, _SequenceNode):
        content = getattr(value, "_content", None)
        return [plain_values(part) for part in content] if isinstance(content, list) else content
    if isinstance(value, _ValueNode):
        return getattr(value, "_val", None)
    if isinstance(value, Mapping):
        return {k: plain_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(part) for part in value]
    return value


def tensors_of(file: Path, state: Any, field: str) -> dict[str, Tensor]:
    """Check a state dict and return its tensors.

    Args:
        file: where it comes from.
        state: what should be a mapping of names to tensors.
        field: its name in the file.

    Raises:
        CheckpointError: it is no such mapping.
    """
    if not isinstance(state, Mapping) or not state:
        refuse(file, f"{field} is {'empty' if state == {} else f'a {type(state).__name__}'}; expected a state dict")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            refuse(file, f"{field}.{name} is a {type(tensor).__name__}; expected a tensor")
    return dict(state)


def finite(file: Path, tensors: Mapping[str, Tensor], field: str = "") -> dict[str, Tensor]:
    """Return the tensors in float32, after checking that they are whole and finite.

    Args:
        file: where they come from.
        tensors: by name.
        field: what the names begin with in the file.

    Raises:
        CheckpointError: a tensor claims more numbers than are stored, or holds NaN or infinity.
    """
    checked: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        where = f"{field}.{name}" if field else name
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            refuse(file, f"{where} has shape {tuple(tensor.shape)} but fewer numbers are stored: tampered with")
        if tensor.is_floating_point():
            tensor = tensor.float().contiguous()
            if not bool(torch.isfinite(tensor).all()):
                refuse(file, f"{where} contains NaN or infinity; training diverged, or the file is damaged")
        checked[name] = tensor
    return checked


def file_within(folder: Path, name: Any, field: str, file: Path) -> Path:
    """Find a file of a checkpoint's folder that another file names.

    Args:
        folder: of the checkpoint.
        name: as it was given.
        field: that gave it.
        file: in which the field is.

    Raises:
        CheckpointError: the name is no plain file name: it would leave the folder.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        refuse(file, f"{field} is {name!r}; expected the plain name of a file in {folder}: paths are refused")
    return folder / name


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names begin with ``prefix``, and drop it from the names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def comma_list(names: Iterable[Any], most: int = 4) -> str:
    """Join names for a message, cut after ``most``."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
