"""QPyTorch's experiments: their networks, what they round where, and their updates in float64 formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from lptensor.demo import run as demo_run
from lptensor.demo.data import Digits, load_digits
from lptensor.demo.experiments import EXPERIMENTS, falling, half_squares, in_steps, then_constant
from lptensor.demo.preresnet import Block, preresnet
from lptensor.demo.recipes import Recipe
from lptensor.demo.run import Settings, mean_net, train
from lptensor.demo.vgg import vgg
from lptensor.formats import E4M3
from lptensor.observe import Observer, observing
from lptensor.study.places import Places
from lptensor.training import SWALP
from oracles.wage import direction, q

BY_NAME = {row.name: row for row in EXPERIMENTS}
ROUNDED = ("lp_train", "swalp", "ibm8")
LOW = (*ROUNDED, "wage-vgg")


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


@pytest.fixture(scope="module")
def few(digits: Digits) -> Digits:
    return Digits(*(samples[:96] for samples in digits))


# Grids by whole numbers and by torch's own dtypes.


def of_block(x: Tensor) -> bool:
    """8-bit integers under the largest exponent of the tensor."""
    x = x.double()
    if not bool(x.any()):
        return True
    k = x * 2.0 ** (6 - math.floor(math.log2(float(x.abs().max()))))
    return bool((k == k.round()).all() and (k.abs() < 128).all())


def of_rows(x: Tensor) -> bool:
    """The same, but each index of the first axis has its own exponent; a vector is one block."""
    return of_block(x) if x.dim() < 2 else all(of_block(row) for row in x)


def of_fp8(x: Tensor) -> bool:
    return torch.equal(x.to(torch.float8_e5m2).float(), x)


def of_fp16(x: Tensor) -> bool:
    """6 bits of exponent, 9 of mantissa: ten significant bits, no less than 2**-39, no more than (2 - 2**-9) 2**31."""
    x = x.double()
    mantissa, exponent = torch.frexp(x)
    k = mantissa * 2.0 ** (10 - (-29 - exponent).clamp(min=0))
    return bool((k == k.round()).all() and (x.abs() <= (2 - 2.0**-9) * 2.0**31).all())


NARROW: dict[str, Callable[[Tensor], bool]] = {"lp_train": of_block, "swalp": of_rows, "ibm8": of_fp8}
WIDE = {**NARROW, "ibm8": of_fp16}


def spacing(name: str, x: Tensor, wide: bool) -> Tensor:
    """How far apart the numbers around ``x`` are, where no exponent is beyond its ends."""
    if name == "ibm8":
        return 2.0 ** (x.abs().clamp(min=2.0**-30 if wide else 2.0**-14).log2().floor() - (9 if wide else 2))
    rows = x.reshape(1 if name == "lp_train" or x.dim() < 2 else len(x), -1)
    largest = rows.abs().amax(1, keepdim=True).clamp(min=2.0**-100)
    return (2.0 ** (largest.log2().floor() - 6)).expand_as(rows).reshape(x.shape)


class Experiment:
    """An experiment's network and optimizer as ``train`` makes them, and steps of it."""

    def __init__(self, name: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.recipe = BY_NAME[name]
        task = self.recipe.task
        self.model: Any
        self.model, self.optimizer = self.recipe.apply(self.recipe, task.net(), task.optimizer(task.lr))
        self.scaler = None if self.recipe.scaler is None else self.recipe.scaler()

    def backward(self, few: Digits, n: int = 32) -> None:
        self.optimizer.zero_grad()
        loss = self.recipe.task.loss(self.model(few.train_images[:n]), few.train_labels[:n])
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, few: Digits) -> None:
        self.backward(few)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


class TestNetworks:
    def test_vgg_has_the_shape_and_size_that_it_says(self) -> None:
        assert vgg()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
        assert sum(p.numel() for p in vgg().parameters()) == 43_630
        kinds = [type(layer).__name__ for layer in vgg()]
        assert kinds[:7] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["MaxPool2d"] and kinds.count("Conv2d") == 6

    def test_bare_vgg_has_nothing_but_matrices(self) -> None:
        net = vgg(bare=True)
        assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
        assert all(p.dim() > 1 for p in net.parameters()) and not list(net.buffers())

    def test_preresnet_has_the_shape_and_size_that_it_says(self) -> None:
        assert preresnet()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
        assert sum(p.numel() for p in preresnet().parameters()) == 19_714

    @pytest.mark.parametrize(("width", "stride"), [(8, 1), (16, 2)])
    def test_a_block_is_its_formula_in_float64(self, width: int, stride: int) -> None:
        """x + W2 relu(norm(W1 relu(norm(x)))), or W x in the place of x: nothing comes after the addition."""
        block, x = Block(8, width, stride), torch.randn(4, 8, 6, 6)

        def active(x: Tensor) -> Tensor:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
            return ((x - mean) / (var + 1e-5).sqrt()).clamp(min=0)

        first, second = (p.double() for p in block.residual.parameters() if p.dim() == 4)
        inner = F.conv2d(active(x.double()), first, stride=stride, padding=1)
        beside = [p.double() for p in block.shortcut.parameters()]
        same = F.conv2d(x.double(), beside[0], stride=stride) if beside else x.double()
        exact = same + F.conv2d(active(inner), second, padding=1)
        assert bool((exact < 0).any()) and len(beside) == (stride > 1)
        assert torch.allclose(block(x).double(), exact, rtol=1e-4, atol=1e-5)


class TestTasks:
    def test_schedules_at_their_corners(self) -> None:
        assert [falling(s) for s in (0, 0.25, 0.5, 0.9, 1)] == pytest.approx([1, 1, 1, 0.01, 0.01])
        assert falling(0.7) == pytest.approx((1 + 0.01) / 2)
        assert [then_constant(e / 300) for e in (0, 100, 199, 200, 299)] == pytest.approx([1, 1, 0.01, 0.2, 0.2])
        assert then_constant(140 / 300) == pytest.approx((1 + 0.01) / 2)
        assert [8 * in_steps(e / 300) for e in (0, 199, 200, 249, 250, 299)] == [8, 8, 1, 1, 1 / 8, 1 / 8]

    @pytest.mark.parametrize("name", LOW)
    def test_the_rate_follows_the_schedule_of_the_paper(self, name: str, few: Digits) -> None:
        recipe = BY_NAME[name]
        rates: list[float] = []

        def watched(recipe: Recipe, model: nn.Module, make: Any) -> Any:
            model, optimizer = BY_NAME[name].apply(recipe, model, make)
            optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
            return model, optimizer

        train(replace(recipe, apply=watched), Settings(epochs=6, batch_size=96), 0, few)
        falls = [
            0.05,
            0.05,
            0.05,
            0.05,
            0.05 * (1 - 0.99 * (4 / 6 - 0.5) / 0.4),
            0.05 * (1 - 0.99 * (5 / 6 - 0.5) / 0.4),
        ]
        swa = [0.05, 0.05, 0.05, 0.05 * (1 - 0.99 * 0.25 / 0.4), 0.01, 0.01]
        wanted = {"wage-vgg": [8, 8, 8, 8, 1, 1 / 8], "swalp": swa}.get(name, falls)
        assert rates == pytest.approx(wanted)

    def test_wages_loss_is_half_the_sum_of_squares(self) -> None:
        logits, labels = torch.randn(3, 4), torch.tensor([2, 0, 3])
        by_hand = sum((float(logits[i, j]) - (j == int(labels[i]))) ** 2 / 2 for i in range(3) for j in range(4))
        assert float(half_squares(logits, labels)) == pytest.approx(by_hand / 3, rel=1e-6)

    def test_each_network_begins_with_fp32(self) -> None:
        first = {row.task: row for row in reversed(EXPERIMENTS)}
        assert [row.name for row in first.values()] == [row.name for row in reversed(EXPERIMENTS) if "fp32" in row.name]
        assert all(row.number is None and row.scaler is None for row in first.values())


@pytest.mark.parametrize("name", ROUNDED)
class TestPlaces:
    def test_every_place_named_is_on_its_grid(self, name: str, few: Digits) -> None:
        """Inputs and errors of products where they enter them, and weights, gradients and momenta after a step."""
        it = Experiment(name)
        narrow, wide = NARROW[name], WIDE[name]
        layers = [m for m in it.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        inputs: dict[nn.Module, Tensor] = {}
        errors: dict[nn.Module, Tensor] = {}

        def seen(layer: nn.Module, args: Any, output: Tensor) -> None:
            inputs[layer] = args[0].detach()
            if layer is not it.model.head:
                product = output.grad_fn.next_functions[0][0]  # type: ignore[union-attr]
                product.register_prehook(lambda grads: errors.__setitem__(layer, grads[0].clone()))

        outputs: list[Tensor] = []
        for layer in layers:
            layer.register_forward_hook(seen)
        for layer in it.model.modules():
            if isinstance(layer, nn.ReLU):
                layer.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
        for _ in range(2):
            it.step(few)
        assert set(inputs) == set(layers) and set(errors) == set(layers) - {it.model.head}
        assert all(narrow(x) for x in outputs) and all(narrow(e) for e in errors.values())
        scale = 1.0 if it.scaler is None else 1000.0
        for p in it.model.parameters():
            (momentum,) = (s for s in it.optimizer.state[p].values() if isinstance(s, Tensor))
            assert narrow(p.detach()) and wide(momentum)
            if scale == 1.0:
                assert narrow(p.grad)
        assert not all(narrow(torch.randn(2, 2)) for _ in range(3))

    def test_all_five_roles_are_rounded_for_every_layer_and_parameter(self, name: str, few: Digits) -> None:
        it = Experiment(name)
        narrow, wide = NARROW[name], WIDE[name]
        found: dict[str, set[str]] = {}

        class Spy(Observer):
            def rounded(self, before: Tensor, after: Tensor, format: Any, rounding: Any) -> None:
                role, path = places.of(before, after)
                found.setdefault(role, set()).add(path)
                is_wide = role in ("accumulator", "state") or path == "head"
                assert (wide if is_wide else narrow)(after), (role, path)

        with Places(it.model, it.optimizer) as places, observing(Spy()):
            it.step(few)
        kinds = (nn.Conv2d, nn.ReLU, nn.Linear)
        layers = {path for path, m in it.model.named_modules() if isinstance(m, kinds)} - {"head"}
        layers |= {"head"} if name == "ibm8" else set()
        parameters = {path for path, _ in it.model.named_parameters()}
        assert found["activation"] == layers and found["gradient"] == layers | parameters
        assert found["weight"] == found["state"] == found["accumulator"] == parameters

    def test_an_update_is_the_formula_in_float64(self, name: str, few: Digits) -> None:
        """v = 0.9 Q(v) + Q(g) + 5e-4 w, w = Q(w - 0.05 v); a Q is one of both neighbours, those of v and w on average.

        Along any direction that is fixed before the draw, errors of stochastic rounding add up to chance: to
        no more than a few times half a spacing in root of sum of squares.
        """
        it = Experiment(name)
        for _ in range(3):
            it.step(few)
        before = it.optimizer.state_dict()["state"]
        keys = ("momentum_buffer", "weight_accumulator")
        held = {
            p: [t.double().clone() for t in (p.detach(), *(before[i][key] for key in keys))]
            for i, p in enumerate(it.model.parameters())
        }
        it.backward(few)
        raw = {p: p.grad.double().clone() for p in it.model.parameters()}
        scale = 1.0 if it.scaler is None else 1000.0
        if it.scaler is None:
            it.optimizer.step()
        else:
            it.scaler.step(it.optimizer)
        after = it.optimizer.state_dict()["state"]
        moved = 0
        for i, p in enumerate(it.model.parameters()):
            w, v, sums = held[p]
            g = p.grad.double()
            assert bool(((g * scale - raw[p]).abs() <= spacing(name, raw[p], False)).all())
            v = 0.9 * v + g + 5e-4 * sums
            wanted = sums - 0.05 * v
            kept = after[i]["weight_accumulator"].double()
            for rounded, exact, along in ((after[i]["momentum_buffer"].double(), v, sums), (kept, wanted, v)):
                error, step = rounded - exact, spacing(name, exact, True)
                assert bool((error.abs() <= 1.01 * step).all())
                assert abs(float((error * along.sign()).sum())) <= 4 * float(step.norm()) / 2
            assert bool(((p.detach().double() - kept).abs() <= spacing(name, kept, False)).all())
            moved += int((p.detach() != w).sum())
        assert moved > 100


@pytest.mark.parametrize("name", LOW)
def test_a_default_run_learns(name: str, few: Digits) -> None:
    recipe = BY_NAME[name]
    first, second = (train(recipe, Settings(epochs=6, batch_size=16), 0, few) for _ in range(2))
    assert first.losses[-1] < 0.7 * first.losses[0]
    assert (first.losses, first.accuracies, first.iterates) == (second.losses, second.accuracies, second.iterates)


@pytest.mark.parametrize("name", LOW)
def test_a_resumed_run_repeats_every_bit(name: str, few: Digits) -> None:
    straight, resumed = Experiment(name), Experiment(name, seed=1)
    averages = SWALP(straight.model), SWALP(resumed.model)
    for _ in range(2):
        straight.step(few)
        averages[0].collect()
    pairs: list[Any] = [(straight.model, resumed.model), (straight.optimizer, resumed.optimizer), averages]
    if straight.scaler is not None:
        pairs.append((straight.scaler, resumed.scaler))
    for one, other in pairs:
        other.load_state_dict(copy.deepcopy(one.state_dict()))
    state = torch.get_rng_state()
    for it, average in ((straight, averages[0]), (resumed, averages[1])):
        torch.set_rng_state(state)
        for _ in range(2):
            it.step(few)
            average.collect()
    weights = [list(it.model.state_dict().values()) for it in (straight, resumed)]
    assert all(map(torch.equal, *weights)) and all(map(torch.equal, averages[0].means, averages[1].means))


class TestMean:
    def test_the_mean_is_that_of_the_last_third_of_the_epochs(
        self, few: Digits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        iterates: list[list[Tensor]] = []
        tested: list[list[Tensor]] = []

        def watched(average: SWALP, model: nn.Module, wide: nn.Module, images: Tensor) -> nn.Module:
            iterates.append([p.detach().clone() for p in model.parameters()])
            result = mean_net(average, model, wide, images)
            tested.append([p.detach().clone() for p in result.parameters()])
            assert all(map(torch.equal, model.parameters(), iterates[-1]))
            return result

        monkeypatch.setattr(demo_run, "mean_net", watched)
        run = train(BY_NAME["swalp"], Settings(epochs=6, batch_size=48), 0, few)
        assert len(iterates) == len(run.iterates) == 2 and len(run.accuracies) == 6
        for n in (1, 2):
            for i, p in enumerate(tested[n - 1]):
                columns = zip(*(w[i].flatten().tolist()[:20] for w in iterates[:n]), strict=True)
                exact = torch.tensor([float(sum(map(Fraction, column)) / n) for column in columns], dtype=torch.float64)
                assert torch.equal(p.flatten()[:20], exact.float())
        assert not all(map(torch.equal, *iterates))

    def test_its_statistics_are_those_of_all_images_under_the_mean(self, few: Digits) -> None:
        it = Experiment("swalp")
        average, wide = SWALP(it.model), vgg()
        for _ in range(3):
            it.step(few)
            average.collect()
        before = {key: value.clone() for key, value in it.model.state_dict().items()}
        mean = mean_net(average, it.model, wide, few.train_images)
        weight, bias = average.means[:2]
        x = F.conv2d(few.train_images.double(), weight, bias, padding=1)
        assert torch.allclose(mean[1].running_mean.double(), x.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)  # type: ignore[index]
        assert torch.allclose(mean[1].running_var.double(), x.var((0, 2, 3)), rtol=1e-4)  # type: ignore[index]
        assert all(torch.equal(value, before[key]) for key, value in it.model.state_dict().items())

    def test_the_mean_is_rounded_nowhere(self, few: Digits) -> None:
        it = Experiment("swalp")
        average = SWALP(it.model)
        for _ in range(2):
            it.step(few)
            average.collect()
        mean = mean_net(average, it.model, vgg(), few.train_images)
        outputs = mean[:3](few.train_images)  # type: ignore[index]
        assert not of_rows(outputs.detach()) and not of_rows(next(mean.parameters()).detach())

    def test_other_tasks_have_none(self, few: Digits) -> None:
        assert train(BY_NAME["lp_train"], Settings(epochs=1, batch_size=48), 0, few).iterates == []


def test_a_step_of_wage_is_the_papers_in_float64(few: Digits) -> None:
    """All of bare VGG's layers, forward and backward, bit for bit; then updates by whole steps of the grid."""
    it = Experiment("wage-vgg")
    weights = [p.detach().double() for p in it.model.parameters()]
    assert all(torch.equal(w * 128, (w * 128).round()) for w in weights)
    images, labels = few.train_images[:8], few.train_labels[:8]
    x, tape = images.double(), []
    for i, w in enumerate(weights):
        alpha = max(2.0 ** round(math.log2(0.75 / math.sqrt(6 / w[0].numel()))), 1.0)
        ternary, a = q(w, 2) / alpha, q(x, 8)
        z = F.conv2d(a, ternary, padding=1) if w.dim() == 4 else a.flatten(1) @ ternary.T
        h = z if i == len(weights) - 1 else z.clamp(min=0)
        where = None
        if i in (1, 3, 5):
            pooled, where = F.max_pool2d(h, 2, return_indices=True)
        tape.append((x, a, ternary, z, h, where))
        x = h if where is None else pooled
    e = q(direction((x - F.one_hot(labels, 10)) / 8), 8)
    grads: list[Tensor] = []
    for i, (x, a, ternary, z, h, where) in reversed(list(enumerate(tape))):
        if i < len(tape) - 1:
            e = e if where is None else F.max_unpool2d(e.reshape(where.shape), where, 2, output_size=h.shape)
            e = e.reshape(z.shape) * (z > 0)
        if ternary.dim() == 4:
            grads.insert(0, torch.nn.grad.conv2d_weight(a, ternary.shape, e, padding=1))
            back = torch.nn.grad.conv2d_input(a.shape, ternary, e, padding=1)
        else:
            grads.insert(0, e.T @ a.flatten(1))
            back = e @ ternary
        if i:
            e = q(direction(back.reshape(x.shape) * (x.abs() <= 1 - 2.0**-7)), 8)
    it.backward(few, 8)
    parameters = list(it.model.parameters())
    for p, g in zip(parameters, grads, strict=True):
        assert torch.equal(p.grad.double(), g)
    it.optimizer.step()
    for p, w, g in zip(parameters, weights, grads, strict=True):
        exact = (128 * w - 8 * direction(g)).clamp(-127, 127)
        k = 128 * p.detach().double()
        assert torch.equal(k, k.round()) and bool(((k - exact).abs() < 1 + 1e-4).all())
    assert isinstance(it.optimizer.optim, SGD) and it.optimizer.optim.defaults["lr"] == 8.0  # type: ignore[attr-defined]


def test_another_format_goes_into_all_roles() -> None:
    row = BY_NAME["lp_train"].instead(E4M3, None)
    assert (row.number, row.gradient, row.accumulator) == (E4M3, None, E4M3)
    assert BY_NAME["ibm8"].instead(E4M3, None).accumulator == BY_NAME["ibm8"].accumulator
    assert BY_NAME["wage-vgg"].instead(E4M3, None) == BY_NAME["wage-vgg"]
