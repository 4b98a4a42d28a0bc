"""Where formats come from: the standard or the paper that defines each."""

from __future__ import annotations

from lptensor.formats import FloatingPoint, Format

_IEEE = "IEEE 754-2019, section 3.4"
_OFP8 = "OCP OFP8 v1.0, section 5"
_FNUZ = "arXiv 2206.02915"
_MX = "OCP Microscaling Formats (MX) v1.0, section 5"

# By the name of a row, then by the name of a class: a new row without a line here has its class's.
_ROWS = {
    "FP32": "IEEE 754-2019, table 3.5 (binary32)",
    "FP16": "IEEE 754-2019, table 3.5 (binary16)",
    "TF32": "NVIDIA A100 whitepaper, 2020",
    "BF16": "arXiv 1905.12322",
    "E5M2": _OFP8,
    "E4M3": _OFP8,
    "E5M2FNUZ": _FNUZ,
    "E4M3FNUZ": _FNUZ,
    "E4M3B11FNUZ": "float8_e4m3b11fnuz of ml_dtypes",
    "E3M4": "float8_e3m4 of ml_dtypes",
    "E3M2": _MX,
    "E2M3": _MX,
    "E2M1": _MX,
    "E8M0": _MX,
    "MXINT": _MX,
    "NF4": "QLoRA, arXiv 2305.14314, section 3",
    "DYNAMIC8": "arXiv 2110.02861, section 1.3",
    "UDYNAMIC8": "arXiv 2110.02861, section 1.3",
    "FP4_RADIX4": "Sun et al., NeurIPS 2020 (Ultra-low precision 4-bit training)",
    "NVFP4": "arXiv 2509.25149",
}
_KINDS = {
    "FloatingPoint": _IEEE,
    "FixedPoint": "two's complement",
    "BlockFloatingPoint": "QPyTorch, arXiv 1910.04540",
    "MX": _MX,
    "TwoLevel": "arXiv 2509.25149",
    "P3109": "IEEE P3109 interim report, 2025",
    "Posit": "Standard for Posit Arithmetic, 2022",
    "LogNumber": "LNS-Madam, arXiv 2106.13914",
}


def source_of(name: str, format: Format) -> str | None:
    """The standard or paper that defines the format of this name; that of its kind if the name has none."""
    if isinstance(format, FloatingPoint) and format.specials != "ieee":
        return _ROWS.get(name)  # IEEE 754 does not
    return _ROWS.get(name) or _KINDS.get(type(format).__name__)
