"""What `import lptensor` costs and does, and which module of the package may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lptensor import _compat

PACKAGE = Path(__file__).parents[1] / "lptensor"

# Lowest first. A module imports from its own line and those before it; a name covers its submodules.
LAYERS = (
    ("_compat", "carriers", "extra", "names", "overloads", "process_wide", "full_fp32", "thread_contexts"),
    ("observe", "text", "direction"),
    ("rounding", "_bits"),
    ("grid", "layout", "base"),
    ("formats", "p3109"),
    ("blocks", "codebooks", "hifloat", "posits", "ranges", "tables", "scaling", "accumulator", "hardware_sums"),
    ("reference", "_native", "_native_census", "_cuda", "_nvrtc", "fused"),
    ("inductor",),
    ("library", "gemm_op"),
    ("accumulate", "_native_gemm", "_cuda_gemm"),
    ("ops",),
    ("gemm",),
    ("codes", "describe", "finfo", "neighbours", "packing", "interop"),
    ("hadamard", "operands", "odd_sums", "unscaled_sums", "block_exponents"),
    ("arithmetic", "rules", "escape", "exact_ops", "limits", "unscale"),
    ("bags", "ctc", "grouped", "recorded", "sparse_extremes", "composites"),
    ("arguments", "watch"),
    ("running_product", "sums", "multiply", "unfolded", "attention", "products", "computing"),
    ("next_values",),
    ("dispatch", "surface"),
    ("aot", "distributed"),
    ("tensor",),
    (
        "matmul",
        "nests",
        "of_values",
        "boundary",
        "path_rules",
        "optimizer_state",
        "convert",
        "layer_products",
        "layer_types",
        "lower",
        "outputs",
        "quantizer",
        "weighted_layers",
    ),
    ("parameters", "loans", "momenta", "updates", "optim", "delayed"),
    ("trace", "contracts"),
    ("functions", "primitives"),
    ("rounding_points",),
    ("training", "study"),
    ("",),  # lptensor itself: it re-exports, so whoever imports it imports everything
    ("demo",),
    ("cli", "__main__"),
)
LAYER = {name: height for height, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    """The name inside the package: "" for lptensor/__init__.py, "study.plots" for lptensor/study/plots.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {module_name(path) for path in PACKAGE.rglob("__init__.py")}


def imported(name: str, source: str) -> Iterator[str]:
    """Full dotted names that a module's import statements name, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = ["lptensor", *(part for part in name.split(".") if part)]
                up = node.level - (name in PACKAGES)
                base = ".".join([*inside[: len(inside) - up], *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def inner_imports(name: str, source: str, modules: set[str]) -> set[str]:
    """The modules of lptensor that a module imports, by their names inside the package."""
    found = set()
    for target in imported(name, source):
        if target.split(".")[0] == "lptensor":
            parts = target.split(".")[1:]
            while parts and ".".join(parts) not in modules:
                parts.pop()  # the last part is a name in the module, not a module
            found.add(".".join(parts))
    return found - {name}


def layer(name: str) -> int:
    top = name.split(".")[0]
    assert top in LAYER, f"lptensor/{top} has no place in LAYERS: say there what it may import"
    return LAYER[top]


def upward_imports(sources: dict[str, str]) -> list[str]:
    """The imports that run against the direction, `lptensor/__init__.py`'s own apart."""
    return [
        f"{name} imports {target or 'lptensor'}"
        for name, source in sources.items()
        for target in sorted(inner_imports(name, source, set(sources)))
        if name and layer(target) > layer(name)
    ]


def import_cycle(sources: dict[str, str]) -> list[str]:
    """The modules that import each other in a ring, whichever way they do; empty if there are none."""
    graph = {name: inner_imports(name, source, set(sources)) for name, source in sources.items()}
    for name in graph:  # a package's re-exports of its own parts are no ring with those parts
        graph[name] = {t for t in graph[name] if not t.startswith(f"{name}.") and t and name}
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    return sorted(graph)


def private_torch_names(source: str) -> set[str]:
    """Names of torch's insides that a module uses. Operator names (torch.ops.aten._softmax) are public."""
    tree = ast.parse(source)
    bound = {}  # what a local name stands for
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                used.add(alias.name)
                bound[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                used.add(f"{node.module}.{alias.name}")
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *rest = ast.unparse(node).split(".")
            if root in bound and all(part.isidentifier() for part in rest):
                used.add(".".join([bound[root], *rest]))
    return {
        name
        for name in used
        if name.split(".")[0] == "torch"
        and not name.startswith("torch.ops.")
        and any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    }


def private_attributes(source: str, names: set[str]) -> set[str]:
    """Which of these names a module uses, as attributes or in strings, but for what it defines or overrides itself."""
    tree = ast.parse(source)
    own, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            own.add(node.attr)
        elif isinstance(node, ast.Attribute) and not ast.unparse(node).startswith(("aten.", "torch.ops.")):
            used.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.add(node.value)
    return used & names - own


def python(code: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-B", "-W", "error", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_imports_run_one_way() -> None:
    assert upward_imports(SOURCES) == []


def test_no_modules_import_each_other() -> None:
    assert import_cycle(SOURCES) == []


def test_techniques_do_not_import_each_other() -> None:
    for name, source in SOURCES.items():
        if name.startswith("training.") and name != "training.recipes":  # which puts them together
            others = {t for t in inner_imports(name, source, set(SOURCES)) if t.split(".")[0] == "training"}
            assert not others, f"{name} imports {others}"


def test_reference_and_kernels_do_not_know_each_other() -> None:
    both = {"reference", "_native"}
    for name in both:
        assert not inner_imports(name, SOURCES[name], set(SOURCES)) & both


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("import lptensor.tensor", "rules imports tensor"),
        ("from lptensor.tensor import LPTensor", "rules imports tensor"),
        ("from lptensor import tensor", "rules imports tensor"),
        ("from .tensor import LPTensor", "rules imports tensor"),
        ("from . import tensor", "rules imports tensor"),
        ("def f():\n    from lptensor import tensor", "rules imports tensor"),
        ("if TYPE_CHECKING:\n    from lptensor.tensor import LPTensor", "rules imports tensor"),
        ("importlib.import_module('lptensor.tensor')", "rules imports tensor"),
        ("from lptensor import LPTensor", "rules imports lptensor"),
        ("import lptensor", "rules imports lptensor"),
    ],
)
def test_an_upward_import_is_seen_however_it_is_written(statement: str, complaint: str) -> None:
    assert upward_imports({"": "", "rules": statement, "tensor": "import lptensor.rules"}) == [complaint]


def test_a_ring_is_seen_within_a_layer() -> None:
    ring = {"lower": "import lptensor.optim", "optim": "def f():\n    import lptensor.lower", "rounding": ""}
    assert import_cycle(ring) == ["lower", "optim"]


def test_a_module_without_a_place_is_refused() -> None:
    with pytest.raises(AssertionError, match="lptensor/surprise has no place"):
        upward_imports({"rounding": "import lptensor.surprise", "surprise": ""})


def test_torch_insides_are_named_in_one_file_only() -> None:
    private = {name: private_torch_names(source) for name, source in SOURCES.items() if name != "_compat"}
    assert {name: names for name, names in private.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch\ntorch._C._get_tracing_state()", {"torch._C", "torch._C._get_tracing_state"}),
        ("from torch.utils._pytree import tree_map", {"torch.utils._pytree.tree_map"}),
        ("from torch import Tensor\nTensor._make_wrapper_subclass", {"torch.Tensor._make_wrapper_subclass"}),
        ("import torch._dynamo as d", {"torch._dynamo"}),
        ("import torch\ntorch.ops.aten._softmax.default\ntorch.__version__", set()),
        ("from torch import Tensor\nTensor.__torch_dispatch__", set()),
    ],
)
def test_torch_insides_are_seen_however_they_are_named(source: str, names: set[str]) -> None:
    assert private_torch_names(source) == names


class Own(torch.Tensor):
    pass


def test_insides_of_torchs_objects_are_named_in_one_file_only() -> None:
    things = [
        *(nn.Module(), nn.LSTM(1, 1), nn.Parameter(torch.zeros(1).as_subclass(Own))),
        *(torch.optim.SGD([torch.zeros(1)]), torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu").state_dict()),
        *(torch.ops.aten.add.Tensor, torch.autograd.Function, torch.zeros(1, requires_grad=True).exp().grad_fn),
    ]
    names = {n for thing in things for n in (*dir(thing), *(thing if isinstance(thing, dict) else ()))}
    names = {n for n in names if n.startswith("_") and not n.startswith("__")}
    assert {"_schema", "_version", "_is_param", "_flat_weights", "_growth_tracker"} <= names
    names.add("_orig_mod")  # of what torch.compile returns, which takes seconds to import
    used = {name: private_attributes(source, names) for name, source in SOURCES.items() if name != "_compat"}
    assert {name: found for name, found in used.items() if found} == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("func._schema.name", {"_schema"}),
        ("getattr(x, '_version')", {"_version"}),
        ("x._version = 1", {"_version"}),
        ("self._version = 1\nself._version", set()),
        ("class A:\n    def _schema(self): ...\n    def b(self): return self._schema", set()),
        ("aten._schema.default", set()),
    ],
)
def test_insides_of_torchs_objects_are_seen_however_they_are_named(source: str, names: set[str]) -> None:
    assert private_attributes(source, {"_schema", "_version"}) == names


def test_import_brings_in_nothing_heavy() -> None:
    printed = python(
        "import sys, torch; before = set(sys.modules)\nimport lptensor; print(*sorted(set(sys.modules) - before))"
    )
    new = set(printed.split())
    packages = {name.split(".")[0] for name in new} - set(sys.stdlib_module_names)
    assert packages <= {"lptensor", "torch"}
    compilers = {name for name in new if name.startswith(("torch._dynamo", "torch._inductor", "torch.testing"))}
    assert not compilers


def test_rounding_and_adding_up_bring_in_nothing_heavy() -> None:
    """The first op on a subclass does, which torch asks whether it is a DTensor."""
    printed = python(
        "import sys, torch, lptensor as lp\n"
        "x, fp16 = torch.randn(2, 3, 3, requires_grad=True), lp.Accumulator(lp.FP16)\n"
        "y = lp.matmul(x, x[0], accumulator=fp16, c=x[:, :1]) + lp.conv(x, x, fp16, x[0, 0, :2], padding=1).sum()\n"
        "lp.round(y, lp.E4M3, 'stochastic').sum().backward(), lp.sum(x, accumulator=fp16), lp.encode(x, lp.E4M3)\n"
        "print(*{name.split('.')[0] for name in sys.modules} & {'sympy', 'mpmath'})"
    )
    assert not printed.split()


def test_import_starts_no_process_and_writes_no_file() -> None:
    python(
        "import os, sys, torch\n"
        "def refuse(event, args):\n"
        "    starts = event.startswith(('os.exec', 'os.fork', 'os.posix_spawn', 'os.system', 'subprocess.'))\n"
        "    makes = event in ('os.mkdir', 'os.rename', 'os.remove', 'os.symlink', 'os.link', 'tempfile.mkstemp')\n"
        "    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT\n"
        "    if starts or makes or (event == 'open' and args[2] & writing):\n"
        "        raise RuntimeError(f'importing lptensor did {event} {args}')\n"
        "sys.addaudithook(refuse)\n"
        "import lptensor"
    )


def test_what_a_thread_stores_stays_alive() -> None:
    """torch 2.11 gives back a reference that it never took: without one of its own the value is freed in use."""
    value = object()
    references = sys.getrefcount(value)
    for _ in range(3):
        _compat.set_thread_local("test", value)
        _compat.set_thread_local("test", None)
    assert sys.getrefcount(value) == references


def test_collecting_a_file_alone_leaves_the_function_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "test_names.py").write_text(
        "import lptensor.study, lptensor.training\n"
        "def test_names():\n"
        "    assert isinstance(lptensor.study.faults, type) and callable(lptensor.training.round_layers)\n"
    )
    files = [str(PACKAGE / name) for name in ("study/faults.py", "training/round_layers.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, str(tmp_path)]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
