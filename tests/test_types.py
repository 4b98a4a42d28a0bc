"""What a type checker says of a user's code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]

USER = """
import torch
from torch import nn
from typing_extensions import assert_type
import lptensor
from lptensor import E4M3, BF16, Arithmetic, Format, LPTensor, OptimLP, Rounding, lower, study, training
from lptensor.training import recipes

class Net(nn.Module): ...

x, net = torch.ones(2), Net()
y = lptensor.to_lp(x, E4M3)
optim = torch.optim.SGD(net.parameters(), lr=0.1)
assert_type(y, LPTensor)
assert_type(y.to_lp(BF16), LPTensor)
assert_type(y.format, Format | None)
assert_type(y.rounding, Rounding)
assert_type(y.dequantize(), torch.Tensor)
assert_type(lptensor.round(x, E4M3, "up"), torch.Tensor)
assert_type(lptensor.convert(net, {"head": None, "*": Arithmetic(E4M3)}), Net)
assert_type(lptensor.convert({"x": x}, E4M3), dict[str, torch.Tensor])
assert_type(lptensor.convert(optim, E4M3), torch.optim.SGD)
assert_type(lower(net, ["conv"], forward_number=E4M3), Net)
assert_type(recipes.mxfp8().model(net), Net)
assert_type(training.prepare(net, E4M3), Net)
torch.optim.lr_scheduler.StepLR(OptimLP(optim, weight_quant=E4M3), 1)
with study.record(net) as log, lptensor.trace() as t:
    assert_type(log, study.Log)
    assert_type([row.op for row in t], list[str])
assert_type(lptensor.__version__, str)
lptensor.E4M4  # wrong
lptensor.round(x, "e4m3")  # wrong
"""


@pytest.mark.slow
def test_a_type_checker_knows_what_comes_back_and_which_names_there_are(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    options = ["--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path / 'cache'}", "user.py"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options],
        cwd=tmp_path,
        env={"MYPYPATH": str(PACKAGE), "PATH": ""},
        capture_output=True,
        text=True,
    )
    wrong = [number for number, line in enumerate(USER.splitlines(), 1) if line.endswith("# wrong")]
    assert [int(n) for n in re.findall(r"^user.py:(\d+): error", done.stdout, re.M)] == wrong, done.stdout + done.stderr
