"""The tools of lptensor.study on models and optimizers that lptensor.training has made."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lptensor import BF16, E4M3, E5M2, FP32, INT4, OptimLP, convert, quantizer
from lptensor.study import bisect, faults, format_search, record, shadow, update_stagnation
from lptensor.training import LUQ, recipes, round_layers

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def columns(rows: Any, *names: str) -> set[tuple[Any, ...]]:
    return {tuple(row[name] for name in names) for row in rows}


def test_the_signs_of_a_transform_are_no_values_of_the_model() -> None:
    """They are drawn by a rounding, which is left alone where roundings are undone, and counted by nobody."""
    model = recipes.mxfp4().model(net())
    gradients: list[float] = []

    def loss() -> float:
        model.zero_grad()
        model(X).sum().backward()
        gradients.append(float(model[0].weight.grad.abs().sum()))
        return 1.0

    with pytest.raises(ValueError, match="nothing to recover"):
        bisect(loss)
    assert all(size > 1 for size in gradients)
    with record(model) as log:
        model(X).sum().backward()
    assert log.rows() and all(row["format"] != "INT4" for row in log.rows()) and INT4.max == 7
    model = recipes.quartet().model(net())
    with shadow() as seen:
        model(X).sum().backward()
        assert seen.twin(model[0].weight.grad).abs().max() > 0.1


def test_a_weight_that_is_rounded_in_another_shape_is_recorded() -> None:
    recipe = recipes.hbfp()
    model = recipe.model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4)))
    optimizer = recipe.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    model(torch.randn(3, 1, 4, 4)).sum().backward()
    with record(model, optimizer) as log:
        optimizer.step()
    found = [row for row in log.rows() if row["role"] == "weight"]
    assert len(found) == 4 and all(row["lost"] is not None and row["wanted"] > 0 for row in found)


@pytest.mark.parametrize("format", [E4M3, E5M2], ids=repr)
def test_delayed_scales_are_recorded_followed_and_hit(format: Any) -> None:
    model = recipes.fp8_delayed().model(net())
    with record(model) as log:
        for _ in range(3):
            model(X)
    assert columns(log.rows(), "format", "roundings") == {("E4M3", 3)} and "E4M3" in str(log)
    with shadow() as seen:
        assert (seen.twin(model(X)) - model(X)).abs().max() < 1
    with faults(rate=0.5, model=model) as hit:
        model(X)
    assert hit.words > 0


def test_formats_that_are_made_at_each_call_are_counted_together() -> None:
    model = round_layers(nn.Sequential(nn.Linear(8, 8)), gradient=lambda: LUQ())
    with record(model) as log:
        for _ in range(20):
            model(X).sum().backward()
    assert len(log._counts) == 1
    (row,) = log.rows()
    assert row["roundings"] == 20


@pytest.mark.parametrize("wrap", [None, "plain", "accumulator"])
def test_asking_for_stagnation_changes_nothing_that_follows(wrap: str | None) -> None:
    def run(look: bool) -> list[float]:
        w = nn.Parameter(torch.tensor([0.3, 2.0]))  # of which only the second is clamped
        optimizer: Any = convert(torch.optim.Adam([w], lr=0.125), {"exp_avg_sq": FP32})
        if wrap is not None:
            nearest = quantizer(E4M3, forward_rounding="nearest")
            optimizer = OptimLP(optimizer, weight_quant=nearest, acc_quant=BF16 if wrap == "accumulator" else None)
        torch.manual_seed(0)
        w.grad = torch.tensor([0.3, 0.3])
        optimizer.step()
        group, entries = optimizer.param_groups[0], optimizer.state[w]
        if look:
            update_stagnation(optimizer, E4M3)
        assert optimizer.param_groups[0] is group and optimizer.state[w] is entries
        with torch.no_grad():
            w.clamp_(max=0.5)
        optimizer.step()
        kept = optimizer.state_dict()["state"][0].get("weight_accumulator", w)
        return [*w.tolist(), *kept.tolist(), *entries["exp_avg"].tolist(), float(entries["step"])]

    assert run(False) == run(True)


def test_a_loss_that_is_no_number_is_beaten_by_any() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(3)])
    losses = {(True,) * 3: 0.1, (False, True, True): 5.0, (True, False, True): math.nan, (True, True, False): 1.0}

    def loss(q: nn.Module) -> float:
        return losses.get(tuple(p.format == BF16 for p in q.parameters()), 9.0)  # type: ignore[attr-defined]

    found = [row["loss"] for row in format_search(model, loss, [BF16, E4M3])]
    assert found == sorted(found, reverse=True) and 5.0 not in found and 1.0 in found
