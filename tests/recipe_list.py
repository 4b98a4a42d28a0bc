"""Every recipe, with arguments where a test needs other ones: a name is the function's, and perhaps what is special."""

from __future__ import annotations

from collections.abc import Callable

from lptensor import INT4, CurrentMaximum, Scaled
from lptensor.training import Recipe, recipes

RECIPES: dict[str, Callable[[], Recipe]] = {
    "gupta": recipes.gupta,
    "wang": recipes.wang,
    "hfp8": recipes.hfp8,
    "fp8_current": recipes.fp8_current,
    "fp8_delayed": recipes.fp8_delayed,
    "deepseek": recipes.deepseek,
    "deepseek promoted": lambda: recipes.deepseek(promote_every=128),
    "hbfp": recipes.hbfp,
    "hbfp to nearest": lambda: recipes.hbfp(rounding="nearest"),
    "mxfp8": recipes.mxfp8,
    "mxfp6": recipes.mxfp6,
    "mxfp4": recipes.mxfp4,
    "mxfp4 to nearest": lambda: recipes.mxfp4(unbiased=False, hadamard=None),
    "nvfp4": recipes.nvfp4,
    "s2fp8": recipes.s2fp8,
    "luq": recipes.luq,
    "luq by maximum": lambda: recipes.luq(forward=Scaled(INT4, CurrentMaximum())),
    "dorefa": lambda: recipes.dorefa(4, 8, 8),
    "lns_madam": recipes.lns_madam,
    "posit": recipes.posit,
    "wage": recipes.wage,
    "quartet": recipes.quartet,
    "quartet2": recipes.quartet2,
    "unit_scaling": recipes.unit_scaling,
}
