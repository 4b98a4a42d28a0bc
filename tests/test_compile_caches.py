"""Compiled code on disk: what names it, and that no two formats ever share it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import lptensor as lp
from lptensor import BF16, E4M3, E5M2, Arithmetic, Rounding, text
from lptensor.text import code, read, write

ROOT = Path(__file__).parents[1]
NAME = "import torch, lptensor as lp; x = torch.ones(2, 3).to_lp(lp.Arithmetic(lp.E4M3, backward=lp.E5M2))\n"


def python(code: str, *arguments: str, **environment: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=surroundings)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def name(x: Any) -> str:
    text: str = x._stable_hash_for_caching()
    return text


def test_the_name_of_a_tensor_in_a_cache_is_the_same_in_any_process() -> None:
    here = name(torch.ones(2, 3).to_lp(Arithmetic(E4M3, backward=E5M2)))  # type: ignore[attr-defined]
    for seed in ("0", "1"):
        assert python(NAME + "print(x._stable_hash_for_caching())", PYTHONHASHSEED=seed) == here


def test_what_changes_a_graph_changes_the_name() -> None:
    x = torch.ones(2, 3)
    makers: list[Any] = [E4M3, E5M2, Arithmetic(E4M3, backward=E5M2), Arithmetic(E4M3, rounding="up")]
    names = [name(x.to_lp(maker)) for maker in makers]  # type: ignore[attr-defined]
    low = x.to_lp(E4M3)  # type: ignore[attr-defined]
    names += [name(low.__coerce_tangent_metadata__()), name(low.detach().requires_grad_())]
    names += [name(low.t()), name(torch.ones(3, 2).to_lp(E4M3))]  # type: ignore[attr-defined]
    assert len(set(names)) == len(names)
    assert name((2 * x).to_lp(E4M3)) == names[0]  # type: ignore[attr-defined]


def test_a_rule_in_a_graph_is_understood_where_nothing_was_traced() -> None:
    rule = write((BF16, Rounding()))
    x = torch.linspace(-1, 1, 8).view(2, 4)
    code = (
        "import sys, torch, lptensor\n"
        "x = torch.linspace(-1, 1, 8).view(2, 4)\n"
        "print(torch.ops.lptensor.round(x, sys.argv[1]).tolist())"
    )
    assert python(code, rule) == str(x.bfloat16().float().tolist())


COMPILE = """
import sys, torch, lptensor as lp
from torch._dynamo.utils import counters
arithmetic = {"E4M3": lp.E4M3, "BF16": lp.BF16, "split": lp.Arithmetic(lp.E4M3, backward=lp.BF16)}[sys.argv[1]]
x = torch.linspace(-2, 2, 24).view(4, 6)
def inside(x):
    return (x.to_lp(arithmetic).exp() * 1.7).dequantize()
def outside(x):
    return x.exp() * 1.7
results = []
for f, given in ((inside, x), (outside, x.to_lp(arithmetic))):
    for g in (f, torch.compile(f, fullgraph=True)):
        leaf = given.clone().requires_grad_()
        y = g(leaf)
        y.square().sum().backward()
        results += [getattr(t, "_inner", t).detach() for t in (y, leaf.grad)]
assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3]), "inside"
assert torch.equal(results[4], results[6]) and torch.equal(results[5], results[7]), "outside"
print(counters["aot_autograd"]["autograd_cache_hit"])
"""


@pytest.mark.slow
def test_formats_never_share_a_graph_and_equal_ones_do(tmp_path: Path) -> None:
    hits = [
        python(COMPILE, format, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)) for format in ("E4M3", "BF16", "split", "E4M3")
    ]
    assert hits == ["0", "0", "0", "2"]


@pytest.mark.parametrize("order", ["plain import lower lowered", "import lower plain lowered"])
def test_a_model_that_is_lowered_does_not_run_what_was_compiled_of_a_plain_one(order: str) -> None:
    """Whatever comes first in a process: lptensor, what torch compiles of a plain model, the lowered one."""
    steps = {
        "import": "import lptensor",
        "lower": "twin = lptensor.lower(net(), 'linear', lptensor.E5M2, forward_rounding='nearest')",
        "plain": "compiled = torch.compile(lambda model, x: model(x), backend='eager'); plain = compiled(net(), x)",
        "lowered": "assert torch.equal(compiled(twin, x), lptensor.round(plain, lptensor.E5M2)), 'not rounded'",
    }
    prepare = (
        "import torch\n"
        "def net():\n    torch.manual_seed(0)\n    return torch.nn.Sequential(torch.nn.Linear(4, 4))\n"
        "x = torch.randn(2, 4)\n"
    )
    python(prepare + "\n".join(steps[step] for step in order.split()))


def test_a_rule_in_a_graph_names_the_code_that_compiles_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps compiled loops on disk by their graph, and would take those of an older formula for this one's."""
    graph = make_fx(lambda x: lp.round(x, BF16))(torch.ones(3)).graph
    (rule,) = (node.args[1] for node in graph.nodes if node.target is torch.ops.lptensor.round.default)
    assert read(rule) == (BF16, Rounding(), code())
    shutil.copytree(ROOT / "lptensor", tmp_path, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    monkeypatch.setattr(text, "__file__", str(tmp_path / "text.py"))
    assert code.__wrapped__() == code()
    with (tmp_path / "fused.py").open("a") as file:
        file.write("# another formula\n")
    assert code.__wrapped__() != code()


@pytest.mark.slow
def test_code_that_was_compiled_before_a_formula_changed_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    """Torch finds what it keeps on disk by Dynamo's graph, before any op of ours is traced."""
    shutil.copytree(ROOT / "lptensor", tmp_path / "lptensor", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)]\n"
        "sys.path[:0] = [sys.argv[1]]\n"
        "import torch, lptensor; from lptensor import E4M3\n"
        "q, x = lptensor.quantizer(E4M3, forward_rounding='nearest'), torch.tensor([1.01, 2.03])\n"
        "functions = lambda x: lptensor.round(x, E4M3), lambda x: q(x) + 0, lambda x: x.to_lp(E4M3).dequantize() + 0\n"
        "print([torch.compile(f)(x).tolist() for f in functions])"
    )
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    assert python(code, str(tmp_path), **cache) == str([[1.0, 2.0]] * 3)
    formula = tmp_path / "lptensor/fused.py"
    text = formula.read_text()
    changed = text.replace("negative, grid, rounding.mode, carrier", "negative, grid, Mode.UP, carrier")
    assert changed != text
    formula.write_text(changed)
    assert python(code, str(tmp_path), **cache) == str([[1.125, 2.25]] * 3)


OWN = """
import sys, torch, lptensor as lp
from dataclasses import dataclass
from lptensor.base import ScalarFormat
from lptensor.grid import Grid, Overflow
@dataclass(frozen=True)
class Mine(ScalarFormat):
    n: int = 0
    @property
    def grid(self):
        top = 2.0**8 * (2 - 2.0 ** (1 - int(sys.argv[1])))
        return Grid(int(sys.argv[1]), -6, 8, top, -top, Overflow.SATURATE)
x = torch.linspace(-3, 3, 50)
def f(x):
    return lp.round(x, Mine())
print(torch.equal(torch.compile(f)(x), f(x)))
"""


@pytest.mark.slow
def test_a_format_of_ones_own_that_was_edited_is_compiled_anew(tmp_path: Path) -> None:
    for precision in ("4", "3"):
        assert python(OWN, precision, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)) == "True"
