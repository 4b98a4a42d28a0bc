"""Other libraries' low-precision types: torch's small dtypes, ml_dtypes arrays, safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lptensor.base import check_dense, wrong_format
from lptensor.codes import decode, encode
from lptensor.describe import describe, format_from
from lptensor.extra import need
from lptensor.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E4M3,
    E4M3B11FNUZ,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0,
    FP16,
    FP32,
    INT4,
    INT8,
    FixedPoint,
    FloatingPoint,
    Format,
    ScalarFormat,
)
from lptensor.grid import Overflow
from lptensor.packing import pack, unpack

_TORCH: dict[ScalarFormat, torch.dtype] = {
    FP32: torch.float32,
    FP16: torch.float16,
    BF16: torch.bfloat16,
    E5M2: torch.float8_e5m2,
    E4M3: torch.float8_e4m3fn,
    E5M2FNUZ: torch.float8_e5m2fnuz,
    E4M3FNUZ: torch.float8_e4m3fnuz,
    E8M0: torch.float8_e8m0fnu,
    INT8: torch.int8,
    FixedPoint(8, 0, signed=False): torch.uint8,
    FixedPoint(16, 0): torch.int16,
}
_NUMPY: dict[ScalarFormat, str] = {
    FP32: "float32",
    FP16: "float16",
    BF16: "bfloat16",
    E5M2: "float8_e5m2",
    E4M3: "float8_e4m3fn",
    FloatingPoint(4, 3): "float8_e4m3",
    E5M2FNUZ: "float8_e5m2fnuz",
    E4M3FNUZ: "float8_e4m3fnuz",
    E4M3B11FNUZ: "float8_e4m3b11fnuz",
    E3M4: "float8_e3m4",
    E8M0: "float8_e8m0fnu",
    E3M2: "float6_e3m2fn",
    E2M3: "float6_e2m3fn",
    E2M1: "float4_e2m1fn",
    INT8: "int8",
    INT4: "int4",
    FixedPoint(8, 0, signed=False): "uint8",
    FixedPoint(4, 0, signed=False): "uint4",
    FixedPoint(16, 0): "int16",
}
# What other readers of safetensors files know, too.
_FILED = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn)
_KEY = "lptensor"  # of the file's metadata


def to_torch(x: Tensor, format: ScalarFormat) -> Tensor:
    """``x`` in the torch dtype whose codes are the format's (float8_e4m3fn for E4M3, say), bit by bit.

    Rounds to nearest, with the format's overflow, not that of torch's conversions. NaN becomes the
    format's canonical code, infinities what overflow gives where they have none; -0 becomes 0 where the
    format lacks it. ``from_torch`` is the inverse.

    Args:
        x: float32 or float64, or an LPTensor; any shape and device.
        format: a scalar format with the codes of a torch dtype, such as E4M3, BF16 or INT8.

    Raises:
        TypeError: x is not such a tensor, or the format has no codes.
        ValueError: torch has no such dtype (the message lists what it has), NaN in a format without a code for it.

    >>> to_torch(torch.tensor([1.1, 1000.0]), E4M3)
    tensor([  1.1250, 448.0000], dtype=torch.float8_e4m3fn)
    """
    return encode(x, format).view(_counterpart(format, _TORCH, "torch", "dtype"))


def from_torch(x: Tensor) -> Tensor:
    """The values of a tensor of one of torch's small dtypes, as float32; ``format_of`` has its format.

    NaN, infinities and -0 stay what they are; the shape and the device are those of ``x``.

    Raises:
        TypeError: no tensor.
        ValueError: a dtype without a format, float64 for one; the message lists those that have one.

    >>> from_torch(torch.tensor([0.5, torch.inf], dtype=torch.float8_e5m2))
    tensor([0.5000,    inf])
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a tensor, got {type(x).__name__}; from_numpy() takes arrays")
    format = format_of(x.dtype)
    check_dense(x, "codes are those of")
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.dtype.itemsize]
    return decode(x.resolve_neg().view(bits), format)


def to_numpy(x: Tensor, format: ScalarFormat) -> np.ndarray[Any, Any]:
    """``x`` as an array of the ml_dtypes (or numpy) type whose codes are the format's, on the CPU.

    Rounds to nearest; NaN, infinities, -0 and overflow become what they become in ``to_torch``.

    Args:
        x: float32 or float64, or an LPTensor; any shape and device.
        format: a scalar format with the codes of such a type, such as E2M1, INT4 or FP16.

    Raises:
        ImportError: ml_dtypes is not installed and numpy has no such type.
        TypeError: x is not such a tensor.
        ValueError: there is no such type (the message lists those there are), NaN in a format without a code for it.

    >>> to_numpy(torch.tensor([1.1, 1000.0]), E4M3).astype("float32").tolist()
    [1.125, 448.0]
    """
    return encode(x, format).cpu().numpy().view(_numpy_dtype(_counterpart(format, _NUMPY, "ml_dtypes", "type")))


def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """The values of an array of ml_dtypes' or numpy's small types, as float32; ``format_of`` has its format.

    NaN, infinities and -0 stay what they are. The array may be in any order of bytes.

    Raises:
        TypeError: no numpy array.
        ValueError: a type without a format, float64 for one; the message lists those that have one.

    >>> import numpy
    >>> from_numpy(numpy.array([0.5, numpy.inf], dtype="float16"))
    tensor([0.5000,    inf])
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"expected a numpy array, got {type(array).__name__}; from_torch() takes tensors")
    format = format_of(array.dtype)
    if not array.dtype.isnative:  # the bytes of another machine
        array = array.astype(array.dtype.newbyteorder("="))
    size = array.dtype.itemsize
    raw = array.copy().view({1: np.uint8, 2: np.int16, 4: np.int32}[size])
    codes = torch.from_numpy(raw)
    # the sub-byte types keep a code in a byte, the upper bits of which are not theirs
    return decode(codes & 2**format.bits - 1 if size == 1 else codes, format)


def format_of(dtype: torch.dtype | np.dtype[Any] | type | str) -> ScalarFormat:
    """The format whose codes are those of a torch dtype, or of a type of numpy or ml_dtypes, or of one's name.

    Raises:
        ValueError: the type has no format here; the message lists those that have.

    >>> format_of(torch.bfloat16)
    BF16
    """
    if isinstance(dtype, torch.dtype):
        found = {known: format for format, known in _TORCH.items()}.get(dtype)
        names = [str(known) for known in _TORCH.values()]
    else:
        names = list(_NUMPY.values())
        by_name = {known: format for format, known in _NUMPY.items()}
        try:  # numpy knows the names of ml_dtypes only where something has imported it
            found = by_name.get(dtype if isinstance(dtype, str) and dtype in names else np.dtype(dtype).name)
        except (TypeError, ValueError, SyntaxError):  # the last of a text that it takes for a list of types
            found = None
    if found is None:
        raise ValueError(f"{dtype!r} has no format; known: {', '.join(names)}")
    return found


def save_file(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    formats: Format | Mapping[str, Format | None] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as codes to a safetensors file, the formats in its metadata.

    Formats that other readers know (FP32, FP16, BF16, E5M2, E4M3) are stored under their dtype; codes
    of fewer than 16 bits are packed without gaps; all others are integers.

    Args:
        tensors: dense tensors by name, LPTensors among them.
        path: where to write; an existing file is replaced.
        formats: one for all tensors, or one by name; a tensor whose format is None or missing is
            stored as it is. Values that a format lacks are rounded to nearest. By default each LPTensor
            has its own, so that the ``state_dict()`` of a converted model needs no more.
        metadata: other text for the file's header, by name.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: a format without a tensor; NaN in a format without a code for it; metadata named "lptensor".
        TypeError: a format without codes of single elements, of blocks for one; what is not a dense tensor by name;
            metadata that are not text. Nothing is written.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
    >>> save_file({"x": torch.tensor([0.1, 1.0]).to_lp(E4M3)}, path)
    >>> load_file(path)[0]["x"], load_file(path)[1]["x"] == E4M3
    (tensor([0.1016, 1.0000]), True)
    """
    safetensors = need("safetensors.torch")
    if not isinstance(tensors, Mapping):
        raise TypeError(f"save_file takes tensors by name, such as model.state_dict(), got a {type(tensors).__name__}")
    for name, x in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise TypeError(f"the name of a tensor in a file is a string other than '__metadata__', got {name!r}")
        if not isinstance(x, Tensor) or x.layout is not torch.strided:
            what = x.layout if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"save_file takes dense tensors by name, got {what} for {name!r}; save the parts of a nest")
    if formats is None:
        by_name: object = {name: getattr(x, "format", None) for name, x in tensors.items()}
    else:
        by_name = dict.fromkeys(tensors, formats) if isinstance(formats, Format) else formats
    if not isinstance(by_name, Mapping):
        raise wrong_format(formats)
    if metadata is not None:
        _check_text(metadata)
    if metadata and _KEY in metadata:
        raise ValueError(f"the metadata {_KEY!r} is where formats are kept; give yours another name")
    unknown = [name for name in by_name if name not in tensors]
    if unknown:
        raise ValueError(f"formats are given for {unknown}, the tensors are {list(tensors)}")
    stored, entries = {}, {}
    for name, x in tensors.items():
        format = by_name.get(name)
        stored[name] = x.resolve_conj().resolve_neg().contiguous() if format is None else _filed(x, format)
        if format is not None:
            entries[name] = {"format": describe(format), "shape": list(x.shape)}
    safetensors.save_file(stored, path, {**(metadata or {}), _KEY: json.dumps(entries)})


def _check_text(metadata: object) -> None:
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata is text by name, such as {{'epoch': '3'}}, got {metadata!r}")
    for name, text in metadata.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(
                f"metadata is text by name, got {text!r} for {name!r}; say {{{str(name)!r}: {str(text)!r}}}"
            )


def load_file(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Format]]:
    """The tensors of a safetensors file, codes decoded to float32, and the formats of those that have one.

    Files that ``save_file`` did not write are read, too: their tensors come as they are.

    Args:
        path: of the file.
        device: where the tensors are put.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: no such file; one that is not a safetensors file raises safetensors' own error.
        ValueError: a format that this version of lptensor does not know.

    >>> import os, tempfile
    >>> from lptensor import E4M3
    >>> path = os.path.join(tempfile.mkdtemp(), "y.safetensors")
    >>> save_file({"w": torch.tensor([0.1]).to_lp(E4M3), "n": torch.arange(2)}, path)
    >>> sorted(load_file(path)[0]), list(load_file(path)[1])
    (['n', 'w'], ['w'])
    """
    tensors, formats = {}, {}
    with need("safetensors").safe_open(path, framework="pt", device=str(device)) as file:
        entries = _entries((file.metadata() or {}).get(_KEY, "{}"))
        for name in file.keys():  # a reader, not a dict
            stored = file.get_tensor(name)
            if name not in entries:
                tensors[name] = stored
                continue
            formats[name] = format = format_from(entries[name]["format"])
            tensors[name] = _unfiled(stored, format, entries[name]["shape"])
    return tensors, formats


def _entries(text: str) -> dict[str, Any]:
    """What ``save_file`` has written of formats, by tensor; nothing where someone else uses its name."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError:
        return {}
    ours = isinstance(entries, dict) and all(
        isinstance(e, dict) and {"format", "shape"} <= e.keys() for e in entries.values()
    )
    return entries if ours else {}


def _filed(x: Tensor, format: Format) -> Tensor:
    codes = encode(x, format)
    native = _lookup(format, _TORCH)
    if native in _FILED:
        return codes.view(native).contiguous()
    bits: int = format.bits  # type: ignore[attr-defined]  # encode() has asked for it
    return pack(codes, bits) if bits < 16 and bits != 8 else codes.contiguous()


def _unfiled(stored: Tensor, format: Format, shape: list[int]) -> Tensor:
    if stored.is_floating_point():
        return from_torch(stored)
    bits = getattr(format, "bits", None)
    if bits is None:
        raise ValueError(f"the file's metadata names {format!r}, which has no codes of single elements")
    codes = unpack(stored, bits, shape) if stored.dtype == torch.uint8 and bits != 8 else stored
    if list(codes.shape) != shape:
        raise ValueError(f"the file's metadata gives codes the shape {shape}, they have {list(codes.shape)}")
    return decode(codes, format)


def _lookup(format: Format, table: Mapping[ScalarFormat, Any]) -> Any:
    """The entry of the format with the same codes: what overflows where does not matter."""
    if not isinstance(format, ScalarFormat):
        return None
    return next((entry for known, entry in table.items() if _codes_of(known) == _codes_of(format)), None)


def _codes_of(format: ScalarFormat) -> object:
    return format.layout, format.grid._replace(overflow=Overflow.INF)


def _counterpart(format: ScalarFormat, table: Mapping[ScalarFormat, Any], library: str, what: str) -> Any:
    found = _lookup(format, table)
    if found is None:
        names = ", ".join(str(entry) for entry in table.values())
        raise ValueError(
            f"{library} has no {what} with the codes of {format!r}; it has {names}; encode() gives integers"
        )
    return found


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name in ("float32", "float16", "int8", "uint8", "int16"):
        return np.dtype(name)
    dtype: np.dtype[Any] = np.dtype(getattr(need("ml_dtypes"), name))
    return dtype
