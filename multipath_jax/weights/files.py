"""Reading files of weights: safetensors, PyTorch state dicts, folders of the Hugging Face hub."""

import dataclasses
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
import ml_dtypes
import numpy as np
import safetensors

from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem
from multipath_jax.weights.layouts import ARCHITECTURES, UNUSED

SAFETENSORS = ".safetensors"
PYTORCH = (".pth", ".pt", ".th", ".bin")
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")  # the first one that exists is read
CONFIG_FILE = "config.json"
ABOUT = "multipath_jax"  # key of our metadata in safetensors files
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "C64": np.complex64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# Keys of the state dict in files of training programs, and prefixes that wrappers add to names.
_WITHIN = ("state_dict", "model_state_dict", "model_state", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclasses.dataclass(frozen=True)
class StateDict:
    """The content of a file.

    Metadata that the file does not have are empty.

    Attributes:
      place: the file, for messages.
      arrays: the arrays by name, without counters of batches.
      model: name of the network, for `create_model`.
      options: options of the network by name; None if unknown. Only in files of this package.
      mean, std: mean and standard deviation of the pixels in [0, 1], by channel.
      class_names: names of the classes in the order of the outputs.
      image_shape: height, width and channels of the network's input. Only in files of this package.
    """

    place: str
    arrays: dict[str, np.ndarray]
    model: str = ""
    options: dict[str, Any] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, ...] = ()


def is_weights(text: str | os.PathLike) -> bool:
    """Whether a path or an address is a file of weights, or a folder with one.

    Raises:
      UserError: the address cannot be accessed.
    """
    text = os.fspath(text)
    if text.endswith((SAFETENSORS, *PYTORCH)):
        return not os.path.isdir(os.path.expanduser(text))
    return _in_folder("", text) is not None


def read(name: str, text: str | os.PathLike) -> StateDict:
    """Reads the arrays and the metadata of a file.

    Args:
      name: the flag or config key of the file, for errors.
      text: path of a file or folder, or an address that fsspec supports.

    Raises:
      UserError: the file cannot be read, is truncated, or is not a state dict.
    """
    place = filesystem.anywhere(name, text)
    file = place if place.endswith((SAFETENSORS, *PYTORCH)) else _in_folder(name, place)
    if file is None:
        raise UserError(
            f"{name}={text} is no file of weights ({SAFETENSORS}, {', '.join(PYTORCH)}) and no "
            f"folder with one ({' or '.join(IN_FOLDER)})"
        )
    content = _bytes(name, file)
    try:
        if file.endswith(SAFETENSORS):
            arrays, about = _from_safetensors(content)
        else:
            arrays, about = _from_pytorch(name, file, content), {}
    except UserError:
        raise
    except Exception as error:  # readers raise many types of errors for damaged files
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}={text} is no whole file of its kind ({first[:200]}); get it anew"
        ) from error
    if file != place:
        about = _about_folder(name, place) | about
    return StateDict(file, _plain(name, text, arrays), **about)


# --- Access --------------------------------------------------------------------------------------


def _in_folder(name: str, folder: str) -> str | None:
    """The file of weights in a folder; None if there is none."""
    for file in IN_FOLDER:
        path = f"{folder.rstrip('/')}/{file}"
        if _with_files(name, path, lambda files, key: files.isfile(key)):
            return path
    return None


def _bytes(name: str, file: str) -> bytes:
    return _with_files(name, file, lambda files, key: files.cat_file(key))


def _with_files(name: str, place: str, ask: Callable[[Any, str], Any]) -> Any:
    """Calls ``ask`` with the file system of an address. All its errors are raised as UserError."""
    try:
        return ask(*fsspec.url_to_fs(os.path.expanduser(place)))
    except Exception as error:
        reason = filesystem.reason(error) if isinstance(error, OSError) else str(error)
        what = f"{name}={place}" if name else place
        raise UserError(f"{what} cannot be read ({reason or type(error).__name__})") from error


# --- Content -------------------------------------------------------------------------------------


def _from_safetensors(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, and the metadata of files that this package wrote."""
    arrays = {}
    for key, found in safetensors.deserialize(content):
        if found["dtype"] not in _DTYPES:
            raise UserError(f"the type {found['dtype']} of the array {key} is not supported")
        arrays[key] = np.frombuffer(found["data"], _DTYPES[found["dtype"]]).reshape(found["shape"])
    length = int.from_bytes(
        content[:8], "little"
    )  # of the header, which `deserialize` does not return
    about = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return arrays, _fields(json.loads(about.get(ABOUT, "{}")))


def _fields(about: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of metadata that are fields of `StateDict`."""
    known = {field.name for field in dataclasses.fields(StateDict)} - {"place", "arrays"}
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in about.items()
        if key in known
    }


def _from_pytorch(name: str, file: str, content: bytes) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{name}={file}: reading a state dict of PyTorch takes PyTorch: pip install "
            "'multipath_jax[torch]', or give a .safetensors file, which needs nothing more"
        ) from error
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    found = found if isinstance(found, Mapping) else {}
    inner = (found[key] for key in _WITHIN if isinstance(found.get(key), Mapping))
    tensors = next(inner, found)
    return {
        str(key): tensor.detach().float().numpy()  # NumPy has no bfloat16
        for key, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }


def _plain(name: str, text: str | os.PathLike, arrays: dict[str, np.ndarray]) -> dict:
    """Removes prefixes that all names have. Raises UserError if there are no arrays."""
    arrays = {key: value for key, value in arrays.items() if not UNUSED.fullmatch(key)}
    if not arrays:
        raise UserError(
            f"{name}={text} is no state dict: it has no arrays of weights by name; save "
            "model.state_dict()"
        )
    while wrapped := [p for p in _PREFIXES if all(key.startswith(p) for key in arrays)]:
        arrays = {key.removeprefix(wrapped[0]): value for key, value in arrays.items()}
    return arrays


def _about_folder(name: str, folder: str) -> dict[str, Any]:
    """Metadata from a folder's config.json in timm's format; empty if there is none."""
    path = f"{folder.rstrip('/')}/{CONFIG_FILE}"
    if not _with_files(name, path, lambda files, key: files.isfile(key)):
        return {}
    try:
        config = json.loads(_bytes(name, path))
        trained = {**config, **config.get("pretrained_cfg", {})}
        return {
            "model": ARCHITECTURES.get(re.sub(r"\..*", "", config.get("architecture", "")), ""),
            "mean": tuple(map(float, trained.get("mean", ()))),
            "std": tuple(map(float, trained.get("std", ()))),
            "class_names": tuple(map(str, trained.get("label_names", ()))),
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no config of a network ({error})") from error
