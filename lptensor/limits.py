"""nan_to_num, which fills in the largest and smallest value of a dtype: here it takes the format's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def within_limits(run: Callable[..., Any]) -> Callable[..., Any]:
    """nan_to_num() with the format's limits where it would take those of fp32."""

    def limited(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(("x", "nan", "posinf", "neginf"), args, strict=False)) | kwargs
        grid = getattr(getattr(given["x"], "format", None), "grid", None)
        for name, limit in (("posinf", "max"), ("neginf", "min")):
            if given.get(name) is None and grid is not None and math.isfinite(getattr(grid, limit)):
                given[name] = getattr(grid, limit)
        bounds = [given.pop(name, None) for name in ("x", "nan", "posinf", "neginf")]
        return run(tuple(bounds), given)

    return limited
