"""How tests compile: everything anew, so that nothing on disk answers for the code under test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lptensor import LPTensor
from rounders import assert_same_bits


@pytest.fixture(autouse=True)
def compile_anew() -> Iterator[None]:
    """Import it into a test file that compiles."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    torch._dynamo.reset()
    with functorch.patch(enable_autograd_cache=False), inductor.patch(fx_graph_cache=False):
        yield
    torch._dynamo.reset()


def since(version: str, why: str) -> pytest.MarkDecorator:
    """What an older PyTorch cannot do, and fails at."""
    older = [int(part) for part in torch.__version__.split(".")[:2]] < [int(part) for part in version.split(".")]
    return pytest.mark.xfail(older, reason=f"before PyTorch {version} {why}", strict=True)


MADE_INSIDE = since("2.12", "Dynamo knows no format that is made within a graph, and no codebook")


def code_of(function: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """What the compiled function returns, and what inductor wrote for it."""
    from torch._inductor.utils import run_and_get_code

    result, code = run_and_get_code(torch.compile(function, fullgraph=True), *args)
    return result, "".join(code)


def plain(x: Any) -> Any:
    return x.dequantize() if isinstance(x, LPTensor) else x


def assert_equal_tensors(got: Any, wanted: Any, context: object = "") -> None:
    """The same bits, and the same arithmetic where they are LPTensors."""
    assert type(got) is type(wanted), context
    if isinstance(wanted, LPTensor):
        assert got.arithmetic == wanted.arithmetic and got.format == wanted.format, context
    assert_same_bits(plain(got.detach()), plain(wanted.detach()), context)


def gradients(model: torch.nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}
