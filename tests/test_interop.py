"""Exchange with torch's small dtypes, ml_dtypes and safetensors."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from lptensor.blocks import MX, NVFP4, BlockFloatingPoint, Scaled
from lptensor.codebooks import NF4, Codebook, LogNumber
from lptensor.codes import code_dtype, decode, encode
from lptensor.convert import convert
from lptensor.describe import describe, format_from
from lptensor.formats import (
    BF16,
    E2M1,
    E3M2,
    E4M3,
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
from lptensor.interop import (
    _NUMPY,
    _TORCH,
    format_of,
    from_numpy,
    from_torch,
    load_file,
    save_file,
    to_numpy,
    to_torch,
)
from lptensor.ops import round as round_to
from lptensor.p3109 import P3109
from lptensor.posits import Posit
from lptensor.scaling import CurrentMaximum, PowerOfTwo, Tile
from lptensor.tensor import LPTensor


def values_of(format: ScalarFormat) -> torch.Tensor:
    """Every value (a sample of 32 bits' worth), without NaN, which has many codes in some types."""
    if format.bits > 16:
        codes = torch.randint(-(2**31), 2**31, (5000,)).to(torch.int32)
    else:
        codes = torch.arange(2**format.bits).to(code_dtype(format.bits))
    values = decode(codes, format)
    return values[~values.isnan()]


@pytest.mark.parametrize(("format", "dtype"), _TORCH.items(), ids=str)
def test_torch_types_hold_the_same_values_in_the_same_bits(format: ScalarFormat, dtype: torch.dtype) -> None:
    values = values_of(format)
    native = to_torch(values, format)
    assert native.dtype == dtype
    assert torch.equal(native.float(), values) and torch.equal(native.float().signbit(), values.signbit())
    assert torch.equal(from_torch(native), values)
    if dtype not in (torch.float8_e8m0fnu, torch.int8, torch.uint8, torch.int16):
        expected = values.to(dtype)  # exact: torch's own conversion of values that the type has
        assert torch.equal(native.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize(("format", "name"), _NUMPY.items(), ids=str)
def test_arrays_hold_the_same_values_in_the_same_bits(format: ScalarFormat, name: str) -> None:
    values = values_of(format)
    array = to_numpy(values, format)
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    assert array.dtype == dtype and format_of(dtype) == format
    assert np.array_equal(array.astype(np.float32), values.numpy())
    assert array.tobytes() == values.numpy().astype(dtype).tobytes()
    assert torch.equal(from_numpy(array), values)
    assert torch.equal(from_numpy(array[::-2]), values.flip(0)[::2])


def test_nan_goes_through() -> None:
    for format in (E4M3, E5M2, BF16, FP16, FP32, E8M0, E4M3FNUZ):
        x = torch.tensor([torch.nan, 1.0])
        assert to_torch(x, format).float().isnan().tolist() == [True, False]
        assert from_numpy(to_numpy(x, format)).isnan().tolist() == [True, False]


def test_the_formats_overflow_holds_not_torchs() -> None:
    x = torch.tensor([1e6])
    assert to_torch(x, E4M3).float().item() == 448
    assert to_torch(x, FloatingPoint(4, 3, specials="fn")).float().isnan().all()
    assert to_torch(x, FloatingPoint(5, 2, overflow="saturate")).float().item() == 57344


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_shapes_are_kept(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    assert from_torch(to_torch(x, E4M3)).shape == from_numpy(to_numpy(x, E4M3)).shape == shape


FORMATS: list[Format] = [
    FP32,
    BF16,
    E4M3,
    E5M2,
    E4M3FNUZ,
    E3M2,
    E2M1,
    INT4,
    INT8,
    FixedPoint(5, 2),
    FixedPoint(7, 3),
    FixedPoint(12, 6),
    FixedPoint(20, 10),
    FloatingPoint(6, 9),
    P3109(8, 3),
    P3109(5, 2, extended=False, overflow="saturate"),
    Posit(8),
    LogNumber(6),
    NF4,
    Codebook([0.0, 1.0, 3.0]),
]
BLOCKS: list[Format] = [
    NVFP4,
    MX(E2M1, (4, 4)),
    BlockFloatingPoint(8, dim=0),
    Scaled(E4M3, PowerOfTwo(3)),
    Scaled(E4M3, CurrentMaximum(Tile((1, 128)), margin=1)),
]


@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_files_give_back_values_and_formats(format: Format, tmp_path: Path) -> None:
    x = torch.randn(3, 7).t() * 3
    path = tmp_path / "x.safetensors"
    save_file({"weight": x, "count": torch.tensor([3])}, path, {"weight": format}, metadata={"by": "a test"})
    tensors, formats = load_file(path)
    assert torch.equal(tensors["weight"], round_to(x, format)) and formats == {"weight": format}
    assert torch.equal(tensors["count"], torch.tensor([3]))
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["by"] == "a test"
        stored = file.get_tensor("weight")
    bits = format.bits  # type: ignore[attr-defined]
    packed = bits < 16 and bits != 8
    assert stored.nbytes == (-(-x.numel() * bits // 8) if packed else x.numel() * code_dtype(bits).itemsize)


def test_a_converted_model_is_filed_in_its_own_formats(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    state = convert(net, {"0": E4M3, "2": FixedPoint(6, 4)}).state_dict()
    save_file(state, path)
    tensors, formats = load_file(path)
    low = {name: x for name, x in state.items() if isinstance(x, LPTensor)}
    assert formats == {name: x.format for name, x in low.items()} and len(formats) == 4
    assert tensors.keys() == state.keys()
    for name, x in state.items():
        assert torch.equal(tensors[name], low[name].dequantize() if name in low else x), name


def test_other_readers_see_the_types_they_know(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.tensor([1.1, -3.0])}, path, E4M3)
    plain = safetensors.torch.load_file(path)["x"]
    assert plain.dtype == torch.float8_e4m3fn and plain.float().tolist() == [1.125, -3.0]


def test_files_of_others_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2)}, path)
    tensors, formats = load_file(path)
    assert tensors["x"].tolist() == [1.0, 1.0] and formats == {}


def test_a_converted_model_is_saved_and_loaded_by_safetensors_itself(tmp_path: Path) -> None:
    """As plain values; it has to see that two names share their memory, and that a loaded model keeps its formats."""

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.last.weight = self.first.weight

    path = tmp_path / "x.safetensors"
    model, other = (convert(Tied(), E4M3) for _ in range(2))
    safetensors.torch.save_model(model, path)
    saved = safetensors.torch.load_file(path)
    assert set(saved) == {"first.weight", "first.bias", "last.bias"}
    safetensors.torch.load_model(other, path)
    for name, p in model.named_parameters():
        loaded = other.get_parameter(name)
        assert torch.equal(saved[name], p.dequantize()) and torch.equal(loaded.dequantize(), saved[name])
        assert loaded.format == E4M3
    with pytest.raises(RuntimeError, match="share memory"):
        safetensors.torch.save_file({"whole": model.first.weight, "part": model.first.weight[1:]}, path)


@pytest.mark.parametrize("format", FORMATS + BLOCKS, ids=repr)
def test_a_description_is_plain_data(format: Format) -> None:
    assert format_from(json.loads(json.dumps(describe(format)))) == format


def test_a_codebook_of_a_file_that_could_not_be_read_is() -> None:
    assert format_from({"type": "Codebook", "given": list(NF4.values()), "name": "NF4"}) == NF4


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({"type": "Path"}, "unknown format 'Path'; this version of lptensor knows .*FixedPoint"),
        ({"exp": 4}, "a dict with its type, got {'exp': 4}"),
        ({"type": "MX", "element": {"exp": 4}}, "a dict with its type, got {'exp': 4}"),
        ({"type": "Tile", "widths": [1]}, "unknown format 'Tile'"),
        ({"type": "FixedPoint", "width": 4}, "FixedPoint takes no such description"),
    ],
)
def test_bad_descriptions_are_named(description: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        format_from(description)


def test_names_of_types_are_known_also_where_numpy_has_not_learnt_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def knows_none(name: object) -> None:  # as before the import of ml_dtypes, which tells numpy its names
        raise TypeError(name)

    assert format_of(np.dtype("float32")) == format_of("float32") == format_of("f4") == FP32
    monkeypatch.setattr(np, "dtype", knows_none)
    assert {name: format_of(name) for name in _NUMPY.values()} == {name: format for format, name in _NUMPY.items()}


def test_what_has_no_counterpart_is_named() -> None:
    x = torch.ones(2)
    with pytest.raises(ValueError, match=r"torch has no dtype with the codes of E3M4.*encode"):
        to_torch(x, FloatingPoint(3, 4))
    with pytest.raises(ValueError, match="ml_dtypes has no type with the codes of P3109"):
        to_numpy(x, P3109(8, 3))
    with pytest.raises(ValueError, match="torch.complex64 has no format; known: torch.float32"):
        from_torch(x.to(torch.complex64))
    with pytest.raises(ValueError, match=r"dtype\('int64'\) has no format; known: float32"):
        from_numpy(np.zeros(2, np.int64))
    for name in ("bf16", "no such type", ","):
        with pytest.raises(ValueError, match=f"'{name}' has no format; known: float32"):
            format_of(name)
    with pytest.raises(ValueError, match=r"tensor\(\[1., 1.\]\) has no format; known: float32"):
        format_of(x)  # type: ignore[arg-type]  # not its dtype
    with pytest.raises(ValueError, match=r"formats are given for \['y'\], the tensors are \['x'\]"):
        save_file({"x": x}, "unused", {"y": E4M3})
    with pytest.raises(TypeError, match="expected a numpy array, got list; from_torch"):
        from_numpy([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a tensor, got ndarray; from_numpy"):
        from_torch(np.zeros(2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("ml_dtypes", lambda: to_numpy(torch.ones(2), E4M3)),
        ("safetensors.torch", lambda: save_file({"x": torch.ones(2)}, "unused", E4M3)),
        ("safetensors", lambda: load_file("unused")),
    ],
)
def test_missing_packages_are_named(module: str, call: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module.split('.')[0]}, .*: pip install 'lptensor\[interop\]'$"):
        call()  # type: ignore[operator]
    assert to_numpy(torch.ones(1), FP16).dtype == np.float16


def test_encode_of_a_native_tensor_is_its_bytes() -> None:
    x = torch.randn(100)
    assert torch.equal(encode(x, BF16), x.bfloat16().view(torch.int16))


@pytest.mark.parametrize("dtype", [">f2", "<f2", ">f4", ">i2"])
def test_arrays_of_either_byte_order_have_their_values(dtype: str) -> None:
    assert from_numpy(np.array([1, 2, 300], dtype=dtype)).tolist() == [1, 2, 300]


def test_tensors_and_arrays_of_any_strides_have_their_values() -> None:
    x = torch.nn.Parameter(torch.arange(6.0).view(2, 3).half())
    for view in (x, x.t(), x[:, ::2], x[1], x[:, :1].expand(2, 3)):
        values = from_torch(view)
        assert values.tolist() == view.tolist() and not values.requires_grad
        array = view.detach().numpy()
        for turned in (array, np.flip(array), np.asfortranarray(array)):
            assert from_numpy(turned).tolist() == turned.tolist()


def test_a_negative_view_has_its_values() -> None:
    assert from_torch(torch.tensor([1 + 2j]).conj().imag).tolist() == [-2]


@pytest.mark.parametrize("text", ["0.1", "yes", '{"x": 3}', "[1]", '{"x": {"format": 1}}'])
def test_metadata_of_others_under_our_name_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2)}, path, {"lptensor": text})
    tensors, found = load_file(path)
    assert tensors["x"].tolist() == [1.0, 1.0] and found == {}
    with pytest.raises(ValueError, match="give yours another name"):
        save_file({"x": torch.ones(2)}, path, metadata={"lptensor": text})


def test_plain_tensors_of_any_strides_are_stored(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    save_file({"x": x.t(), "column": x[:, 1]}, tmp_path / "x.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["x"], x.t()) and torch.equal(loaded["column"], x[:, 1])


def test_plain_tensors_that_are_views_of_negatives_and_conjugates_have_their_values(tmp_path: Path) -> None:
    x, y = torch.tensor([1 + 2j]).conj(), torch.tensor([3 + 2j]).conj().imag
    save_file({"x": x, "y": y}, tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors")[0]
    assert loaded["x"].tolist() == [1 - 2j] and loaded["y"].tolist() == [-2]


def test_codes_of_another_shape_than_the_metadata_gives_them_are_refused(tmp_path: Path) -> None:
    entries = {"x": {"format": describe(INT8), "shape": [2, 3]}}
    stored = {"x": torch.zeros(3, 2, dtype=torch.uint8)}
    safetensors.torch.save_file(stored, tmp_path / "x.safetensors", {"lptensor": json.dumps(entries)})
    with pytest.raises(ValueError, match=r"the shape \[2, 3\], they have \[3, 2\]"):
        load_file(tmp_path / "x.safetensors")


def test_codes_that_are_stored_with_gaps_are_read_too(tmp_path: Path) -> None:
    format, x = FixedPoint(12, 6), torch.tensor([[1.5, -2.0]])
    entries = {"x": {"format": describe(format), "shape": [1, 2]}}
    safetensors.torch.save_file({"x": encode(x, format)}, tmp_path / "x.safetensors", {"lptensor": json.dumps(entries)})
    assert torch.equal(load_file(tmp_path / "x.safetensors")[0]["x"], x)


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_the_upper_bits_of_a_byte_are_no_part_of_a_code_of_four(name: str) -> None:
    array = np.array([0xF5, 0x0D], dtype=np.uint8).view(getattr(ml_dtypes, name))
    assert from_numpy(array).tolist() == array.astype(np.float32).tolist()


def test_names_of_tensors_in_a_file_are_strings(tmp_path: Path) -> None:
    for name in (3, "__metadata__"):
        with pytest.raises(TypeError, match="the name of a tensor in a file is a string other than '__metadata__'"):
            save_file({name: torch.ones(1)}, tmp_path / "x")  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("format", "kept"),
    [
        (BF16, torch.bfloat16),
        (E4M3, torch.float8_e4m3fn),
        (E5M2FNUZ, torch.uint8),
        (INT8, torch.uint8),
        (E3M2, torch.uint8),
        (FloatingPoint(6, 9), torch.int16),
        (FixedPoint(20, 10), torch.int32),
    ],
    ids=repr,
)
def test_a_file_has_dtypes_that_other_readers_know(format: ScalarFormat, kept: torch.dtype, tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x", format)
    assert safetensors.torch.load_file(tmp_path / "x")["x"].dtype is kept


def test_a_type_has_the_format_of_its_codes() -> None:
    assert format_of(torch.int16) == format_of(np.int16) == FixedPoint(16, 0)
    assert format_of(torch.uint8) == format_of(np.uint8) == FixedPoint(8, 0, signed=False)
    for name in ("int4", "uint4"):
        held = format_of(getattr(ml_dtypes, name))
        info = ml_dtypes.iinfo(getattr(ml_dtypes, name))
        assert (held.min, held.max) == (info.min, info.max)
    for name in dir(ml_dtypes):
        kind = getattr(ml_dtypes, name)
        if re.fullmatch(r"b?float\d.*", name) and name != "float8_e8m0fnu":
            info = ml_dtypes.finfo(kind)
            held = format_of(kind)
            assert (held.max, held.grid.precision) == (float(info.max), info.nmant + 1)
