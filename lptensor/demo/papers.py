"""The recipes of ``lptensor.training.recipes`` as rows of the demo. To add one, add a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from lptensor.demo.recipes import Recipe
from lptensor.demo.task import MakeOptimizer
from lptensor.rounding import Rounding
from lptensor.training import Madam, recipes


@dataclass(frozen=True)
class _Apply:
    """Makes a recipe of a paper, and applies it."""

    make: Callable[..., recipes.Recipe]
    optimizer: MakeOptimizer | None = None

    def __call__(self, row: Recipe, model: nn.Module, make_optimizer: MakeOptimizer) -> tuple[nn.Module, Optimizer]:
        exempt = tuple(path for path in row.exempt if path in dict(model.named_modules()))
        recipe = self.make(exempt=exempt)
        model = recipe.model(model)
        return model, recipe.optimizer((self.optimizer or make_optimizer)(model.parameters()))


def _row(name: str, how: str, apply: _Apply, exempt: tuple[str, ...] = ("head",)) -> Recipe:
    return Recipe(
        name, how, None, Rounding(), apply, accumulator=None, exempt=exempt, scaler=lambda: apply.make().scaler()
    )


# exempt: the last layer of the text's network stays fp32; DoReFa keeps the first and the last of both.
PAPERS = (
    _row("gupta", "1502.02551", _Apply(recipes.gupta), ()),
    _row("dorefa", "1606.06160", _Apply(lambda exempt=(): recipes.dorefa(4, 8, 8, exempt)), ("0", "7", "head")),
    _row("hbfp", "1804.01526", _Apply(recipes.hbfp)),
    _row("wang", "1812.08011", _Apply(recipes.wang)),
    _row("hfp8", "NeurIPS 2019", _Apply(recipes.hfp8)),
    _row("wage", "1802.04680", _Apply(recipes.wage, optimizer=lambda params: SGD(params, lr=8.0)), ()),
    _row("s2fp8", "2001.05674", _Apply(recipes.s2fp8)),
    _row("posit", "Lu 2020", _Apply(recipes.posit)),
    _row("lns_madam", "2106.13914", _Apply(recipes.lns_madam, optimizer=lambda params: Madam(params, lr=0.01))),
    _row("luq", "2112.10769", _Apply(recipes.luq)),
    _row("fp8_current", "2209.05433", _Apply(recipes.fp8_current)),
    _row("fp8_delayed", "2209.05433", _Apply(recipes.fp8_delayed)),
    _row("unit_scaling", "2303.11257", _Apply(recipes.unit_scaling, optimizer=lambda params: Adam(params, lr=0.01))),
    _row("mxfp6", "2310.10537", _Apply(recipes.mxfp6)),
    _row("deepseek", "2412.19437", _Apply(recipes.deepseek)),
    _row("mxfp4", "2502.20586", _Apply(recipes.mxfp4)),
    _row("mxfp4-nearest", "2310.10537", _Apply(lambda exempt=(): recipes.mxfp4(False, None, exempt))),
    _row("quartet", "2505.14669", _Apply(recipes.quartet)),
    _row("mxfp8", "2506.08027", _Apply(recipes.mxfp8)),
    _row("nvfp4", "2509.25149", _Apply(recipes.nvfp4)),
    _row("quartet2", "2601.22813", _Apply(recipes.quartet2)),
)
