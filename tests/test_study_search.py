"""Sensitivity, format search, bisection and faults find what was planted."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lptensor import Arithmetic, LPTensor, observe
from lptensor.blocks import MXFP4
from lptensor.codebooks import FP4_RADIX4, Codebook, LogNumber
from lptensor.codes import encode
from lptensor.convert import convert
from lptensor.formats import BF16, E2M1, E4M3, E5M2, FP16, INT8, FixedPoint
from lptensor.lower import lower
from lptensor.ops import round as round_to
from lptensor.optim import OptimLP
from lptensor.study import bisect, faults, flip_bits, format_search, sensitivity


def axes() -> Any:
    return __import__("matplotlib.figure").figure.Figure().subplots()


class Planted(nn.Module):
    """Three layers, of which "middle" comes last: its weights need more bits than E2M1 has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(4, 4, bias=False) for _ in range(3))
        with torch.no_grad():
            for layer in (self.first, self.last):
                layer.weight.copy_(torch.eye(4))  # all of E2M1, as what comes out
            self.middle.weight.copy_(torch.tensor([1.2, 0.7, 1.3, 5.1]).repeat(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.middle(self.last(self.first(x)))
        return h


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


X = torch.tensor([[1.0, 2.0, -1.0, 0.5]])


def distance(target: Tensor, x: Tensor = X) -> Any:
    return lambda model: mse_loss(model(x), target)


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Parameter(torch.rand(1, 1, 4)), nn.Parameter(torch.rand(1, 4, 4))
        self.block = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), 1, 4), x], 1) + self.place
        y: Tensor = self.block(h, h, h)[0]
        return y


class Own(nn.Module):
    """Parameters beside a child, twice."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child, self.scale, self.shift = child, nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.child(x) * self.scale + self.shift
        return y


def normed(bias: bool) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4, bias=bias))


PARTS: dict[str, Any] = {  # models, and the rules of a point
    "class token": lambda: (ClassToken(), ["token", "place", "block"]),
    "weight norm": lambda: (nn.Sequential(normed(True), normed(False)), ["0", "1"]),
    "a model of one layer": lambda: (normed(True), [""]),
    "parameters at two heights": lambda: (
        Own(Own(nn.Linear(4, 4))),
        [*OWN, *(f"child.{n}" for n in OWN), "child.child"],
    ),
}
OWN = ["scale", "shift"]


class TestSensitivity:
    def test_finds_the_layer_whose_weights_need_bits(self) -> None:
        model = Planted()
        rows = sensitivity(model, distance(model(X).detach()), E2M1, roles="weight")
        assert rows[0]["path"] == "middle" and rows[0]["change"] > 0
        assert [row["change"] for row in rows[1:]] == [0.0, 0.0]

    def test_finds_the_layer_whose_gradients_underflow(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
        with torch.no_grad():
            model[2].weight.mul_(1e-6)
        model[2].requires_grad_(False)  # whose large gradients would drown the others
        rows = sensitivity(model, lambda m: m(torch.ones(2, 3)).sum(), E4M3, roles=["gradient"])
        assert [row["path"] for row in rows] == ["1", "0", "2"] and all(row["change"] == 0 for row in rows)
        assert rows[0]["cosine"] == 0 and 0 < rows[1]["cosine"] < 0.999  # all gradients are lost, or those of one layer
        assert rows[2]["cosine"] == pytest.approx(1.0, abs=1e-6)  # a gradient of 1 is a number of E4M3

    @pytest.mark.parametrize("role", ["weight", "activation"])
    def test_the_rounding_is_the_one_that_is_named(self, role: str) -> None:
        model = nn.Sequential(nn.Linear(1, 1, bias=False))
        nn.init.constant_(model[0].weight, 1.875)  # type: ignore[arg-type]
        for rounding, value in (("nearest", 2.0), ("toward_zero", 1.5)):
            (row,) = sensitivity(model, lambda m: m(torch.ones(1, 1)).sum(), E2M1, [role], rounding=rounding)
            assert (row["loss"], row["change"], row["values"]) == (value, value - 1.875, int(role == "weight"))

    def test_finds_the_activation_that_overflows(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        with torch.no_grad():
            model[0].weight.fill_(1e6)
            model[1].weight.fill_(1e-6)
        target = model(torch.ones(1, 2)).detach()
        rows = sensitivity(model, lambda m: mse_loss(m(torch.ones(1, 2)), target), E5M2, roles=["activation"])
        assert rows[0]["path"] == "0" and not math.isfinite(rows[0]["loss"])

    def test_leaves_the_model_as_it_was(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 1))
        model(torch.randn(2, 1, 4, 4)).sum().backward()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        gradients = [p.grad.clone() for p in model.parameters()]
        state = torch.get_rng_state()
        x = torch.randn(2, 1, 4, 4)
        state = torch.get_rng_state()
        rows = sensitivity(model, lambda m: m(x).square().sum(), {"half": FP16, "small": E4M3})
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
        assert all(not m._forward_hooks for m in model.modules())
        assert len(rows) == 2 * (5 * 2 + 3)  # outputs and gradients of five layers, weights of three
        again = sensitivity(model, lambda m: m(x).square().sum(), {"half": FP16, "small": E4M3})
        assert list(again) == list(rows)

    def test_a_loss_that_is_no_number_comes_first(self) -> None:
        model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3)))
        weights = [layer.weight.detach().fill_(1.3).clone() for layer in model]

        def loss(m: nn.Module) -> Tensor:
            layers: Any = zip(m.parameters(), weights, strict=True)
            moved = [float((weight.detach() - before).abs().sum()) for weight, before in layers]
            return torch.tensor(math.nan if moved[1] else sum(moved))

        assert [row["path"] for row in sensitivity(model, loss, E2M1, roles=["weight"])] == ["1", "0", "2"]

    def test_every_run_begins_with_the_same_buffers(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 1))
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(1.0)  # E2M1 has it

        def loss(m: Any) -> Tensor:
            m(torch.randn(8, 2) + 5)
            mean: Tensor = m[0].running_mean.sum()
            return mean

        assert [row["change"] for row in sensitivity(model, loss, E2M1, roles=["weight"])] == [0.0]

    def test_by_role_all_layers_are_rounded(self) -> None:
        model = Planted()
        target = model(X).detach()
        (row,) = sensitivity(model, distance(target), E2M1, roles=["weight"], per="role")
        rounded = Planted()
        with torch.no_grad():
            for p in rounded.parameters():
                p.copy_(round_to(p, E2M1))
        assert row["loss"] == mse_loss(rounded(X), target).item() and row["values"] == 48
        model.last.weight = model.first.weight
        (row,) = sensitivity(model, distance(target), E2M1, roles=["weight"], per="role")
        assert row["values"] == 32  # a weight of two layers is one

    def test_what_is_refused(self) -> None:
        for kwargs, says in ((dict(roles=["state"]), "state"), (dict(per="op"), "op")):
            with pytest.raises(ValueError, match=says):
                sensitivity(Planted(), distance(X), E4M3, **kwargs)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="fp8"):
            sensitivity(Planted(), distance(X), {"a": "fp8"})  # type: ignore[dict-item]

    def test_attention_is_a_layer_with_weights_of_its_own(self) -> None:
        model, x = nn.MultiheadAttention(4, 2), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        loss = lambda m: m(x, x, x)[0].square().sum()  # noqa: E731
        found = {(row["path"], row["role"]): row for row in sensitivity(model, loss, E2M1)}
        # Its projection back is done by a function: the module is not called, and has no output.
        assert set(found) == {("", role) for role in ("weight", "activation", "gradient")} | {("out_proj", "weight")}
        assert found["", "weight"]["values"] == 3 * 4 * 4 + 3 * 4 and found["", "weight"]["change"] != 0
        (whole,) = sensitivity(model, loss, E2M1, roles="weight", per="role")
        assert whole["values"] == sum(p.numel() for p in model.parameters())

    @pytest.mark.parametrize("wrap", [lambda x: Pair(x, None), lambda x: {"first": x}, lambda x: [x]])
    def test_outputs_are_rounded_in_any_container(self, wrap: Any) -> None:
        class Layer(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return wrap(x)

        def loss(model: nn.Module) -> Tensor:
            out = model(torch.tensor([1.25, 5.0]))
            return (
                out.first if isinstance(out, Pair) else [*out.values()][0] if isinstance(out, dict) else out[0]
            ).sum()

        (row,) = sensitivity(Layer(), loss, E2M1, roles="activation")
        assert (row["loss"], row["change"]) == (5.0, -1.25)

    def test_an_output_that_cannot_be_looked_into_is_refused(self) -> None:
        class Layer(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return slice(x)

        with pytest.raises(TypeError, match="cannot round the output of Layer: it holds a slice"):
            sensitivity(Layer(), lambda m: m(torch.ones(1)).stop.sum(), E2M1, roles="activation")

    def test_weights_of_a_dtype_that_is_not_rounded_are_refused(self) -> None:
        model = Planted().bfloat16()
        with pytest.raises(TypeError, match=r"bfloat16; convert with \.float\(\) first"):
            sensitivity(model, lambda m: m(X.bfloat16()).float().sum(), E2M1, roles="weight")
        assert all(p.dtype == torch.bfloat16 for p in model.parameters())

    def test_a_loss_of_several_numbers_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(2, 2\); take its \.mean"):
            sensitivity(nn.Linear(4, 2), lambda m: m(torch.ones(2, 4)), E2M1)

    def test_the_picture_shows_a_loss_that_is_no_number(self) -> None:
        rows = sensitivity(nn.Identity(), lambda m: (m(X) - 1e9).exp2().log2().sum(), E2M1, roles="activation")
        assert [text.get_text() for text in rows.plot(axes()).texts] == ["nan"]  # -inf from -inf

    def test_the_picture_has_the_rows(self) -> None:
        model = Planted()
        rows = sensitivity(model, distance(model(X).detach()), E2M1, roles=["weight"])
        ax = rows.plot(axes())
        shown = dict(zip([t.get_text() for t in ax.get_yticklabels()], ax.images[0].get_array()[:, 0], strict=True))
        assert shown == {row["path"]: row["change"] for row in rows}


class TestFormatSearch:
    def test_finds_the_layer_that_needs_the_wide_format(self) -> None:
        model = Planted()
        target = convert(Planted(), BF16)(X).detach()
        front = format_search(model, distance(target), [E2M1, BF16])
        rules = front.rules(loss=0.0)
        assert rules == {"first": E2M1, "middle": BF16, "last": E2M1}
        converted = convert(Planted(), rules)
        assert converted.middle.weight.format == BF16  # type: ignore[union-attr]
        assert distance(target)(converted).item() == 0.0
        assert front.rules(bits=4.0) == dict.fromkeys(rules, E2M1)

    def test_the_next_step_is_the_one_that_costs_least_for_its_bits(self) -> None:
        """After its first step the second layer's next one costs 0.5 more, and the first layer's first one 5."""
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        costs = {0: {BF16: 0.0, E4M3: 5.0, E2M1: 6.0}, 1: {BF16: 0.0, E4M3: 4.0, E2M1: 4.5}}
        found = format_search(model, lambda m: sum(costs[i][m[i].weight.format] for i in costs), [E2M1, E4M3, BF16])
        together = [row["formats"] for row in found.tried if "BF16" not in row["formats"].values()]
        assert together == [{"0": "E4M3", "1": "E2M1"}, {"0": "E2M1", "1": "E2M1"}]

    def test_a_large_layer_may_cost_more(self) -> None:
        model = nn.Sequential(nn.Linear(10, 10), nn.Linear(1, 1), nn.Linear(1, 1))
        costs = (5.0, 4.0, 4.1)
        found = format_search(
            model,
            lambda m: sum(cost for layer, cost in zip(m, costs, strict=True) if layer.weight.format == E4M3),
            [BF16, E4M3],
        )
        (second,) = (row for row in found.tried if row["narrowed"] == 2)
        assert second["formats"] == {"0": "E4M3", "1": "E4M3", "2": "BF16"}

    def test_a_layer_whose_loss_is_no_number_comes_last_and_is_not_on_the_front(self) -> None:
        model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
        losses = {"": 1.0, "0": 0.5, "2": 0.3, "02": 0.9}

        def loss(m: Any) -> float:
            return losses.get("".join(str(i) for i, layer in enumerate(m) if layer.weight.format == E4M3), math.nan)

        front = format_search(model, loss, [BF16, E4M3])
        assert [(row["narrowed"], row["loss"]) for row in front] == [(2, 0.9), (1, 0.3)]
        assert front.rules(loss=0.95) == {"0": E4M3, "1": BF16, "2": E4M3}  # the fewest bits, not the least loss

    def test_scales_of_short_blocks_count_and_every_run_draws_the_same(self) -> None:
        model = nn.Linear(4, 1, bias=False)  # one scale of 8 bits for four numbers
        front = format_search(model, lambda m: torch.rand(()).item(), [BF16, MXFP4])
        assert [row["bits"] for row in front.tried] == [16.0, 4 + 8 / 4]
        assert len({row["loss"] for row in front.tried}) == 1

    def test_the_front_is_what_no_other_point_beats(self) -> None:
        model = Planted()
        front = format_search(model, distance(model(X).detach()), [BF16, E4M3, E2M1])
        for row in front.tried:
            better = [r for r in front if r["bits"] <= row["bits"] and r["loss"] <= row["loss"]]
            assert better
            rules = {path: row["rules"][path] for path in row["formats"]}
            assert distance(model(X).detach())(convert(Planted(), rules)).item() == row["loss"]
        assert [row["bits"] for row in front] == sorted({row["bits"] for row in front})
        assert len(front.tried) <= 2 * 3 * 2 + 1
        assert front.tried[0]["bits"] == 16.0

    @pytest.mark.parametrize("layers", [None, ["last", "first"], ["first"]])
    def test_layers_that_share_a_weight_go_together(self, layers: list[str] | None) -> None:
        model = Planted()
        model.last.weight = model.first.weight
        front = format_search(model, distance(model(X).detach()), [BF16, E2M1], layers=layers)
        for row in front.tried:
            narrow = convert(copy.deepcopy(model), row["rules"])
            assert narrow.last.weight is narrow.first.weight
            assert distance(model(X).detach())(narrow).item() == row["loss"]
        units = 1 if layers else 2
        assert len(front.tried) == 2**units and front.tried[-1]["bits"] == 4.0  # each weight is counted once
        assert {row["narrowed"] for row in front.tried} <= {*range(units + 1)}

    @pytest.mark.parametrize("name", PARTS)
    def test_every_parameter_has_its_part(self, name: str) -> None:
        """Also those beside children, and those that a parametrization moves away."""
        model, groups = PARTS[name]()
        x = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
        loss = distance(model(x).detach(), x)
        front = format_search(model, loss, [BF16, E4M3])
        assert [sorted(row["rules"]) for row in front.tried] == [sorted(groups)] * len(front.tried)
        assert front.tried[0]["bits"] == 16.0 and front[0]["bits"] == 8.0 and front.tried[0]["loss"] > 0
        for row in front.tried:
            low = convert(copy.deepcopy(model), row["rules"])
            kept = [p.numel() * p.format.bits for p in low.parameters()]  # an AttributeError if one is plain
            assert row["bits"] == sum(kept) / sum(p.numel() for p in low.parameters())
            assert loss(low).item() == row["loss"]

    def test_a_path_that_begins_like_another_is_another(self) -> None:
        model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), ab=nn.Linear(2, 2)))
        front = format_search(model, lambda m: 0.0, [BF16, E4M3], layers=["a", "ab"])
        assert sorted(row["bits"] for row in front.tried) == [8, 12, 12, 16]

    def test_a_parameter_may_be_a_layer(self) -> None:
        model = ClassToken()
        front = format_search(model, lambda m: m(torch.ones(2, 3, 4)).sum().item(), [BF16, E2M1], ["token", "block"])
        assert {tuple(row["rules"]) for row in front.tried} == {("token", "block")} and len(front.tried) == 4

    def test_a_model_may_be_one_layer(self) -> None:
        model = nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(1.3125)
        front = format_search(model, lambda m: abs(m(torch.ones(1, 1)).item() - 1.3125), [BF16, E2M1])
        assert [(row["bits"], row["loss"]) for row in front] == [(4.0, 0.1875), (16.0, 0.0)]
        assert convert(model, front.rules(bits=4)).weight.format == E2M1

    def test_what_is_refused(self) -> None:
        model = Planted()
        with pytest.raises(ValueError, match="two formats"):
            format_search(model, distance(X), [BF16])
        with pytest.raises(ValueError, match="nowhere"):
            format_search(model, distance(X), [BF16, E4M3], layers=["nowhere"])
        front = format_search(model, distance(model(X).detach()), [BF16, E4M3])
        with pytest.raises(ValueError, match="nothing reaches"):
            front.rules(bits=1.0)
        with pytest.raises(ValueError, match="one of them"):
            front.rules()

    def test_the_picture_has_the_front(self) -> None:
        model = Planted()
        front = format_search(model, distance(model(X).detach()), [BF16, E4M3])
        lines = {line.get_label(): line for line in front.plot(axes()).lines}
        assert lines["front"].get_ydata().tolist() == [row["loss"] for row in front]
        assert len(lines["tried"].get_xdata()) == len(front.tried)


def test_layers_of_a_compiled_model_have_the_paths_that_they_have_without_compiling() -> None:
    model: Any = torch.compile(
        nn.Sequential(nn.Linear(2, 2), torch.compile(Planted(), backend="eager")), backend="eager"
    )
    paths = ["0", "1.first", "1.middle", "1.last"]
    assert {row["path"] for row in sensitivity(model, lambda m: torch.ones(()), E2M1, roles=["weight"])} == set(paths)
    (point, *_) = format_search(model, lambda m: 0.0, [E2M1, BF16])
    assert list(point["rules"]) == paths
    assert convert(model, point["rules"]).get_parameter("_orig_mod.0.weight").format == E2M1
    faults(0.1, model=model, path="1.*.weight")


def test_layers_of_a_search_are_a_list() -> None:
    with pytest.raises(TypeError, match=r"say layers=\['10'\]"):  # not the layers 1 and 0
        format_search(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), lambda m: 0.0, [E2M1, BF16], layers="10")


def test_a_search_takes_a_module() -> None:
    with pytest.raises(TypeError, match="int"):
        format_search(3, lambda m: 0.0, [BF16, E2M1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (torch.ones(2), ValueError, r"shape \(2,\); take its .mean\(\)"),
        (None, TypeError, "one number, got None"),
        ("low", TypeError, "one number, got 'low'"),
    ],
)
def test_a_loss_that_is_no_number_is_refused(value: Any, error: Any, says: str) -> None:
    model = Planted()
    for study, name in (
        (lambda loss: sensitivity(model, loss, BF16), "loss"),
        (lambda loss: format_search(model, loss, [BF16, E4M3]), "loss"),
        (lambda loss: bisect(lambda: loss(model)), "run"),
    ):
        with pytest.raises(error, match=f"^{name} must return.*{says}"):
            study(lambda _: value)


class TestBisect:
    def test_finds_the_op_that_loses_everything(self) -> None:
        def run() -> Tensor:
            x = torch.full((4,), 1.5).to_lp(BF16)  # type: ignore[attr-defined]
            x = x.mul(2).div(2).exp().log()
            planted = x + 4096.0
            x = planted - 4096.0
            return (x.dequantize() - 1.5).abs().sum()

        found = bisect(run, recovered=0.9)
        assert len(found.culprits) == 1 and found.culprits[0].startswith("add.Tensor at ")
        line = int(found.culprits[0].rpartition(":")[2])
        assert "planted = x + 4096.0" in Path(__file__).read_text().splitlines()[line - 1]
        assert found.low > found.target >= found.exact

    def test_finds_two_ops_that_spoil_it_together(self) -> None:
        def run() -> Tensor:
            x = torch.ones(2).to_lp(BF16)  # type: ignore[attr-defined]
            a = x + 1000.0
            b = x * 1.5
            c = x + 2000.0
            return (a - 1000.0 - 1).abs().sum() + (c - 2000.0 - 1).abs().sum() + 0 * b.sum()

        names = [unit.partition(" ")[0] for unit in bisect(run, target=0.0).culprits]
        assert names == ["add.Tensor", "add.Tensor"]

    def test_finds_the_module_and_gives_a_rule_set(self) -> None:
        model = convert(Planted(), BF16)
        x = torch.tensor([[1.1, 0.7, 2.3, -0.9]]).to_lp(BF16)  # type: ignore[attr-defined]
        with torch.no_grad():
            model.middle.weight.fill_(1.3)  # inexact here; the others only copy
            exact = x.dequantize() @ model.middle.weight.dequantize().t()  # type: ignore[operator]
        found = bisect(lambda: mse_loss(model(x).dequantize(), exact), model=model, by="module", target=0.0)
        assert found.culprits == ["middle"] and found.rules == {"middle": None}
        assert found.low > 0 == found.exact

    def test_finds_a_planted_layer_of_a_lowered_model(self) -> None:
        torch.manual_seed(1)
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)), nn.Linear(4, 1))
        x = torch.randn(8, 4)
        target = model(x).detach()
        lower(model, "linear", FP16, forward_rounding="nearest")
        handle = model[3].register_forward_hook(lambda module, args, output: round_to(output, FixedPoint(3, 1)))
        found = bisect(lambda: mse_loss(model(x), target), model=model, by="module")
        handle.remove()
        assert found.culprits == ["3"] and found.rules == {"3": None}
        assert len(found) < 12

    def test_finds_the_role(self) -> None:
        def run() -> Tensor:
            torch.manual_seed(0)
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(1.0)
            optimizer = OptimLP(torch.optim.SGD(model.parameters(), lr=2.0**-6), weight_quant=nearest)
            for _ in range(20):
                optimizer.zero_grad()
                loss = model(torch.ones(1, 2)).square().sum()
                loss.backward()
                optimizer.step()
            return loss.detach()

        model = lower(nn.Sequential(nn.Linear(2, 1)), "linear", FP16, FP16)
        nearest = lambda w: round_to(w, E2M1)  # noqa: E731 - the planted one: every step is lost
        found = bisect(run, model=model, by="role")
        assert found.culprits == ["weight"]
        found = bisect(run, model=model, by="module")  # whose parameters are rounded
        assert found.culprits == ["0"] and found.rules == {"0": None}

    def test_finds_the_op_whose_gradient_is_rounded(self) -> None:
        def run() -> Tensor:
            x = torch.ones(1).to_lp(BF16).requires_grad_()  # type: ignore[attr-defined]
            (x * 1.3).sum().backward()
            return (x.grad.dequantize() - 1.3).abs()

        (culprit,) = bisect(run, target=1e-6).culprits
        assert culprit.startswith("mul.Tensor at ") and culprit.endswith(" (backward)")

    def test_a_share_of_the_way_to_the_exact_loss_is_the_target(self) -> None:
        def run() -> Tensor:
            x = torch.ones(2).to_lp(BF16)  # type: ignore[attr-defined]
            return (x + 1000.0 - 1000.0 - 1).abs().sum() + 1  # 1001 becomes 1000: a loss of 3, and 1 without roundings

        found = bisect(run, recovered=0.75)
        assert (found.low, found.exact, found.target) == (3, 1, 1.5)
        at_it = bisect(run, target=1.0)
        assert [row["recovered"] for row in at_it] == [row["loss"] == 1 for row in at_it]
        assert [(row["undone"], row["units"]) for row in at_it[:2]] == [(0, []), (5, ["all"])]

    def test_two_layers_that_spoil_it_together_take_few_runs_among_many(self) -> None:
        """Zeller and Hildebrandt 2002: the number of parts doubles."""
        model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(64)))
        for layer in model:
            nn.init.ones_(layer.weight)  # type: ignore[arg-type]
        lower(model, "linear", FP16, forward_rounding="nearest")
        for place in (9, 50):
            model[place].register_forward_hook(lambda module, args, output: round_to(output, INT8))
        x = torch.full((1, 1), 1.5)
        found = bisect(lambda: (model(x) - x).abs(), model=model, by="module", target=0.0)
        assert found.culprits == ["9", "50"]
        assert len(found) < 64

    def test_the_picture_has_the_runs(self) -> None:
        def run() -> float:
            x = torch.full((1,), 300.0).to_lp(FP16)  # type: ignore[attr-defined]
            return float((x * 300.0 / 300.0 - 300.0).abs() + 0 * (x + 1.0))

        found, picture = bisect(run), axes()
        found.plot(picture)
        lines = {line.get_label(): line for line in picture.lines}
        finite = {row["loss"] for row in found if math.isfinite(row["loss"])}
        drawn = [*lines["recovered"].get_ydata(), *lines["not recovered"].get_ydata()]
        assert set(drawn) == finite and all(row["recovered"] == (row["loss"] <= found.target) for row in found)
        assert set(lines["target"].get_ydata()) == {found.target}
        edges = [line for line in picture.lines if list(line.get_ydata()) == [0.98]]
        assert len(edges) == sum(not math.isfinite(row["loss"]) for row in found) > 0
        assert [text.get_text() for text in picture.texts] == [str(row["undone"]) for row in found]

    def test_diverging_counts_as_the_worst(self) -> None:
        def run() -> Tensor:
            x = torch.full((1,), 300.0).to_lp(FP16)  # type: ignore[attr-defined]
            y = x * 300.0
            return (y / 300.0 - 300.0).abs() + 0 * (x + 1)

        assert bisect(run).culprits[0].startswith("mul.Tensor at ")

        def no_number() -> Tensor:
            x = torch.full((1,), 300.0).to_lp(FP16) * 300.0  # type: ignore[attr-defined]
            return (x - x).abs()

        found = bisect(no_number)
        assert found.low == math.inf and math.isnan(found[0]["loss"]) and 0 < found.target < 1
        assert found.culprits[0].startswith("mul.Tensor at ")

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="line"):
            bisect(lambda: 0.0, by="line")
        with pytest.raises(ValueError, match="model="):
            bisect(lambda: 0.0, by="module")
        with pytest.raises(ValueError, match="whose roles are meant"):
            bisect(lambda: 0.0, by="role")
        with pytest.raises(ValueError, match="nothing to recover"):
            bisect(lambda: 0.0)
        assert observe.anyone == 0


class TestFaults:
    @pytest.mark.parametrize("format", [E4M3, E5M2, BF16, FixedPoint(8, 4)], ids=repr)
    def test_every_bit_flips_where_it_should(self, format: Any) -> None:
        x = round_to(torch.randn(64), format)
        before = encode(x, format).long()
        for bit in range(format.bits):
            hit = flip_bits(x, format, rate=1.0, bits=[bit])
            fine = hit.isfinite()
            after = encode(hit, format).long()
            assert (((before ^ after) & (1 << format.bits) - 1)[fine] == 1 << bit).all()

    def test_a_bit_that_is_named_twice_is_one_bit(self) -> None:
        assert flip_bits(torch.ones(3), E4M3, rate=1.0, bits=[6, 6]).tolist() == [256.0] * 3

    def test_the_rate_is_the_rate(self) -> None:
        x, n = torch.ones(40000), 40000 * 8
        for rate in (1e-4, 1e-2, 0.3):
            hit = flip_bits(x, E4M3, rate, generator=torch.Generator().manual_seed(1))
            safe = torch.where(hit.isnan(), 1.0, hit)
            flips = sum(bin(v).count("1") for v in (encode(safe, E4M3).long() ^ 0x38).tolist())
            flips += int(hit.isnan().sum()) * 4  # 0111000 and 1111111 are four bits apart, 1111 the other way
            assert flips == pytest.approx(n * rate, abs=5 * math.sqrt(n * rate) + 1)

    def test_flips_are_spread_over_words_and_bits(self) -> None:
        x = torch.ones(2000)
        hits = torch.stack([flip_bits(x, FixedPoint(8, 4), 0.01) != 1 for _ in range(50)]).double().mean(0)
        expected = 1 - 0.99**8
        assert hits.mean().item() == pytest.approx(expected, abs=0.005)
        assert hits.max().item() < expected + 6 * math.sqrt(expected / 50)

    def test_same_seed_same_faults(self) -> None:
        def run(seed: int) -> list[float]:
            with faults(0.05, seed):
                y = torch.ones(64).to_lp(E4M3).mul(1.5).add(1)  # type: ignore[attr-defined]
            return [str(v) for v in y.tolist()]  # type: ignore[return-value]

        state = torch.get_rng_state()
        assert run(3) == run(3) != run(4)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("path", ["2", "[!01]"])
    def test_hits_are_where_they_were_aimed(self, path: str) -> None:
        model = convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), E4M3)
        x = torch.randn(5, 4).to_lp(E4M3)  # type: ignore[attr-defined]
        outputs: dict[bool, dict[str, Any]] = {}
        for hitting in (False, True):
            kept: dict[str, Any] = {}
            handles = [
                m.register_forward_hook(lambda m, a, o, n=n, kept=kept: kept.update({n: o.tolist()}))
                for n, m in model.named_children()
            ]
            if hitting:
                with faults(1.0, bits=[7], model=model, path=path, roles="activation") as hit:
                    model(x)
            else:
                model(x)
            outputs[hitting] = kept
            for handle in handles:
                handle.remove()
        assert outputs[True]["0"] == outputs[False]["0"] and outputs[True]["1"] == outputs[False]["1"]
        assert outputs[True]["2"] == [[-v for v in row] for row in outputs[False]["2"]]
        assert (hit.flips, hit.words) == (10, 10)

    @pytest.mark.parametrize("path", ["a.weight", "b.weight", "b*"])
    def test_what_is_shared_is_hit_under_any_of_its_paths(self, path: str) -> None:
        model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
        model["b"].weight = model["a"].weight
        model = convert(model, BF16)
        model["a"](torch.ones(1, 2).to_lp(BF16)).sum().backward()  # type: ignore[attr-defined]
        with faults(1.0, bits=[15], model=model, path=path, roles=["weight"]) as hit:
            torch.optim.SGD(model.parameters(), lr=0.125).step()
        assert (hit.flips, hit.words) == (4, 4)

    def test_a_layer_that_is_used_twice_is_hit_under_both_paths(self) -> None:
        layer = nn.Linear(2, 2)
        model = convert(nn.Sequential(layer, nn.ReLU(), layer), E4M3)
        with faults(1.0, bits=[7], model=model, path="2", roles="activation") as hit:
            model(torch.ones(1, 2).to_lp(E4M3))  # type: ignore[attr-defined]
        assert hit.words == 4

    def test_gradients_and_weights_can_be_hit(self) -> None:
        model = convert(nn.Linear(3, 1, bias=False), BF16)
        x = torch.ones(2, 3).to_lp(BF16)  # type: ignore[attr-defined]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        with faults(1.0, bits=[15], model=model, roles=["gradient"]) as hit:
            model(x).sum().backward()
        assert hit.flips > 0 and model.weight.grad is not None
        weight = model.weight.dequantize().clone()  # type: ignore[operator]
        gradient = model.weight.grad.dequantize()  # type: ignore[operator]
        with faults(1.0, bits=[15], model=model, roles=["weight"]):
            optimizer.step()
        assert torch.equal(model.weight.dequantize(), -round_to(weight - 0.125 * gradient, BF16))  # type: ignore[operator]

    @pytest.mark.parametrize("role", ["activation", "gradient"])
    def test_no_other_role_is_hit(self, role: str) -> None:
        model = convert(nn.Linear(3, 1, bias=False), BF16)
        nn.init.ones_(model.weight)  # type: ignore[arg-type]
        x, ones = torch.ones(2, 3).to_lp(BF16), torch.ones(2, 1).to_lp(BF16)  # type: ignore[attr-defined]
        with faults(1.0, bits=[15], model=model, roles=[role]) as hit:
            y = model(x)
            y.backward(ones)
        assert (y.flatten().tolist(), model.weight.grad.flatten().tolist()) == (  # type: ignore[union-attr]
            ([-3.0] * 2, [2.0] * 3) if role == "activation" else ([3.0] * 2, [-2.0] * 3)
        )
        assert hit.words == hit.flips == (2 if role == "activation" else 3)

    def test_the_same_faults_come_again_when_they_are_entered_again(self) -> None:
        hit, x, seen = faults(0.05, seed=3), torch.ones(64).to_lp(E4M3), []  # type: ignore[attr-defined]
        for _ in range(2):
            with hit:
                seen.append([str(value) for value in (x * 1.5).tolist()])
        assert seen[0] == seen[1] != ["1.5"] * 64

    def test_one_object_is_not_entered_within_itself(self) -> None:
        hit = faults(rate=1.0, bits=[7])
        for _ in range(2):  # but again afterwards
            with hit:
                with pytest.raises(RuntimeError, match="other faults"), hit:
                    pass
                assert (torch.ones(2).to_lp(E4M3) * 2).tolist() == [2.0, 2.0] and hit.flips == 4  # type: ignore[attr-defined]
            assert observe.anyone == 0

    def test_low_tensors_stay_low(self) -> None:
        x = torch.ones(3).to_lp(E4M3)  # type: ignore[attr-defined]
        hit = flip_bits(x, rate=1.0, bits=[7])
        assert hit.format == E4M3 and hit.tolist() == [-1.0] * 3 and x.tolist() == [1.0] * 3  # type: ignore[attr-defined]
        leaf = torch.ones(3).to_lp(E4M3, grad=E5M2).requires_grad_()  # type: ignore[attr-defined]
        leaf.sum().backward()
        hit = flip_bits(leaf.grad, rate=1.0, bits=[7])
        assert hit.format == E5M2 and hit.tolist() == [-1.0] * 3  # type: ignore[attr-defined]

    @pytest.mark.parametrize("format", [LogNumber(8), FP4_RADIX4, Codebook([0.0, 1.0, 3.0])], ids=repr)
    def test_a_word_past_the_end_of_a_list_is_nan(self, format: Any) -> None:
        values = format.values()
        for bit in range(format.bits):
            hit = flip_bits(values, format, rate=1.0, bits=[bit]).tolist()
            for code, value in enumerate(hit):
                flipped = code ^ 1 << bit
                assert value == values[flipped] if flipped < len(values) else math.isnan(value)

    @pytest.mark.parametrize("format", [LogNumber(8), E2M1, INT8], ids=repr)
    def test_a_nan_without_a_code_is_not_hit(self, format: Any) -> None:
        hit = flip_bits(torch.tensor([math.nan, 1.0]), format, rate=1.0, bits=[0])
        assert hit[0].isnan() and hit[1] != 1
        x = torch.full((50,), math.nan).to_lp(format)  # type: ignore[attr-defined]
        with faults(rate=1.0) as hits:
            y = x * 2
        assert y.isnan().all() and hits.flips == 0

    def test_no_rate_no_fault(self) -> None:
        x = torch.randn(9)
        assert torch.equal(flip_bits(x, BF16, 0.0), x)
        assert flip_bits(torch.zeros(0), BF16, 1.0).shape == (0,)

    @pytest.mark.parametrize(
        ("call", "error", "says"),
        [
            (lambda: flip_bits(X, E4M3, 2.0), ValueError, "2.0"),
            (lambda: flip_bits(X, E4M3, bits=[8]), ValueError, "8"),
            (lambda: flip_bits(X, MXFP4), TypeError, "element"),
            (lambda: flip_bits(X), TypeError, "None"),
            (lambda: faults(-1), ValueError, "-1"),
            (lambda: faults(0.1, path="a"), ValueError, "model="),
            (lambda: faults(0.1, model=nn.ReLU(), roles=["weights"]), ValueError, "weights"),
        ],
    )
    def test_what_is_refused(self, call: Any, error: Any, says: str) -> None:
        with pytest.raises(error, match=says):
            call()


def test_of_an_infinite_loss_more_is_asked_the_more_is_to_be_recovered() -> None:
    def run() -> torch.Tensor:
        return torch.tensor([300.0]).to_lp(FP16) * 300.0 * 2.0**-16  # 90000 is infinite in FP16

    targets = [bisect(run, recovered=share).target for share in (0.25, 0.75)]
    assert targets[0] > targets[1] >= 90000 / 2**16


def test_a_small_rate_flips_as_many_bits_as_it_says() -> None:
    n, rate = 2**22, 1 / 65
    flipped = flip_bits(torch.zeros(n), INT8, rate=rate, generator=torch.Generator().manual_seed(0))
    words = flipped.to(torch.int8)
    flips = sum(int((words >> bit & 1).sum()) for bit in range(8))
    assert abs(flips - 8 * n * rate) < 4 * math.sqrt(8 * n * rate * (1 - rate))


def test_words_of_another_format_make_a_plain_tensor() -> None:
    """An LPTensor would say that it lies on its own."""
    x = torch.tensor([0.3, 5.0]).to_lp(E5M2)
    flipped = flip_bits(x, E4M3, rate=1.0, bits=[7])
    assert type(flipped) is Tensor and torch.equal(flipped, -round_to(x.dequantize(), E4M3))
    assert isinstance(flip_bits(x, E5M2, rate=1.0, bits=[7]), LPTensor)


class Offset(nn.Module):
    """Whose own sum loses what its layers do not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x)) + 4096.0 - 4096.0
        return y


def test_rules_of_a_culprit_leave_what_it_holds_as_it_is() -> None:
    torch.manual_seed(0)
    base, x = nn.Sequential(Offset(), nn.Linear(8, 8)), torch.randn(16, 8)
    want = base(x).detach()

    def loss(model: nn.Module) -> float:
        return float((model(x).dequantize() - want).detach().abs().sum())

    net = convert(copy.deepcopy(base), BF16)
    found = bisect(lambda: loss(net), model=net, by="module")
    assert found.culprits == ["0"] and found.rules == {"0.a": Arithmetic(BF16), "0.b": Arithmetic(BF16), "0": None}
    mended = convert(copy.deepcopy(base), {**found.rules, "*": BF16})
    assert loss(mended) <= found.target
    assert mended[0].a.weight.format == mended[0].b.weight.format == mended[1].weight.format == BF16


class Cached(nn.Module):
    """Whose forward pass makes a buffer, replaces one and grows one, as rotary caches and masks are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.register_buffer("cos", torch.zeros(0), persistent=False)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.cos) < len(x):
            self.register_buffer("cos", torch.ones(len(x), 1), persistent=False)
        if "late" not in self._buffers:
            self.register_buffer("late", None)
        self.count = self.count + 1
        y: Tensor = self.layer(x) * self.cos[: len(x)]
        return y


@pytest.mark.parametrize("raises", [False, True])
def test_buffers_that_a_forward_pass_makes_are_taken_back(raises: bool) -> None:
    model = Cached()
    before = dict(model.named_buffers())

    def loss(m: nn.Module) -> Tensor:
        y: Tensor = m(torch.ones(2, 5)).sum()
        if raises:
            raise ArithmeticError
        return y

    if raises:
        with pytest.raises(ArithmeticError):
            sensitivity(model, loss, E4M3)
    else:
        assert len(sensitivity(model, loss, E4M3)) > 0
    after = dict(model.named_buffers())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert "late" not in model._buffers and model.count.item() == 0 and len(model.cos) == 0


class BrokenOff(nn.Parameter):
    """A parameter whose gradient Ctrl-C finds where it was put aside."""

    waits = True

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        found: Tensor | None = Tensor.grad.__get__(self)  # type: ignore[attr-defined]
        return found

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self.waits:
            self.waits = False
            raise KeyboardInterrupt
        Tensor.grad.__set__(self, value)  # type: ignore[attr-defined]


def test_ctrl_c_before_the_first_run_leaves_a_model_its_gradients() -> None:
    model = nn.Linear(2, 1)
    model.bias = BrokenOff(torch.zeros(1))
    model(torch.ones(2)).sum().backward()
    before = [p.grad for p in model.parameters()]
    assert None not in before
    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, lambda m: m(torch.ones(2)).sum(), E4M3)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), before, strict=True))
