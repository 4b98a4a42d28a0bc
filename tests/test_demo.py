"""The demo: its data, its recipes, and one training run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from lptensor.demo.data import TEST_SIZE, Digits, load_digits
from lptensor.demo.net import digit_net
from lptensor.demo.recipes import RECIPES, Recipe
from lptensor.demo.run import Run, Settings, train
from lptensor.demo.summary import summarize, to_json
from lptensor.demo.task import MOMENTUM, TEXT
from lptensor.describe import format_from
from lptensor.formats import BF16, E4M3, E5M2, FP16, FixedPoint, FloatingPoint
from lptensor.lower import lower
from lptensor.optim import OptimLP
from lptensor.rounding import Stochastic, as_rounding
from lptensor.tensor import LPTensor

BY_NAME = {recipe.name: recipe for recipe in RECIPES}
ONE_EPOCH = Settings(epochs=1)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


@pytest.fixture(scope="module")
def few(digits: Digits) -> Digits:
    """So few digits that an epoch takes no time."""
    return Digits(digits.train_images[:96], digits.train_labels[:96], digits.test_images[:50], digits.test_labels[:50])


def on_grid(values: Tensor, number: object) -> bool:
    """Whether values are of a format, by NumPy types and whole numbers."""
    x = values.double().numpy()
    if isinstance(number, FixedPoint):
        k = x * 2.0**number.fl
        return bool(np.all(k == np.rint(k)) and np.all(np.abs(k + 0.5) <= 2 ** (number.wl - 1) - 0.5))
    if number == E5M2:
        return bool(np.all(x.astype(np.float32).astype(ml_dtypes.float8_e5m2).astype(np.float64) == x))
    top = np.floor(np.log2(np.abs(x).max()))  # block floating point of 8 bits, one block
    k = x * 2.0 ** (6 - top)
    return bool(np.all(k == np.rint(k)) and np.all(np.abs(k) < 128))


class TestData:
    def test_every_digit_is_on_one_side_once(self, digits: Digits) -> None:
        source = datasets.load_digits()
        everything = torch.cat([digits.train_images, digits.test_images]).flatten(1) * 16
        assert sorted(everything.tolist()) == sorted(source.data.tolist())
        assert sorted(torch.cat([digits.train_labels, digits.test_labels]).tolist()) == sorted(source.target.tolist())

    def test_images_keep_their_labels(self, digits: Digits) -> None:
        source = datasets.load_digits()
        known = {tuple(pixels): int(label) for pixels, label in zip(source.data.tolist(), source.target, strict=True)}
        for images, labels in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)):
            assert [known[tuple(pixels)] for pixels in (images.flatten(1) * 16).tolist()] == labels.tolist()

    def test_no_test_image_is_trained_on(self, digits: Digits) -> None:
        sides = [{tuple(pixels) for pixels in side.flatten(1).tolist()} for side in digits[::2]]
        assert not sides[0] & sides[1]

    def test_both_sides_hold_the_same_share_of_each_digit(self, digits: Digits) -> None:
        shares = [torch.bincount(labels) / len(labels) for labels in (digits.train_labels, digits.test_labels)]
        assert (shares[0] - shares[1]).abs().max() <= 1 / TEST_SIZE

    def test_the_split_never_changes(self, digits: Digits) -> None:
        torch.manual_seed(1234)
        assert all(map(torch.equal, digits, load_digits()))

    def test_shapes_types_and_range(self, digits: Digits) -> None:
        assert digits.train_images.shape == (1347, 1, 8, 8) and digits.test_images.shape == (450, 1, 8, 8)
        assert digits.train_images.dtype == torch.float32 and digits.train_labels.dtype == torch.int64
        assert (digits.train_images.min(), digits.train_images.max()) == (0, 1)


class TestRun:
    @pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
    def test_every_recipe_learns_and_repeats(self, recipe: Recipe, few: Digits) -> None:
        settings = Settings(epochs=4, batch_size=16)
        first, second = (train(recipe, settings, 0, few) for _ in range(2))
        assert first.losses[-1] < 0.5 * first.losses[0]
        assert first.accuracy > 30  # guessing gives 10
        assert (first.losses, first.accuracies) == (second.losses, second.accuracies)
        assert len(first.losses) == len(first.accuracies) == len(first.seconds) == 4

    def test_seeds_differ(self, few: Digits) -> None:
        assert train(BY_NAME["fp32"], ONE_EPOCH, 0, few).losses != train(BY_NAME["fp32"], ONE_EPOCH, 1, few).losses

    def test_float32_is_the_loop_that_one_would_write(self, few: Digits) -> None:
        torch.manual_seed(5)
        model = digit_net()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=MOMENTUM)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
        order = torch.Generator().manual_seed(5)
        losses = []
        for _ in range(2):
            batches = torch.randperm(96, generator=order).split(32)
            for batch in batches:
                loss = cross_entropy(model(few.train_images[batch]), few.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            schedule.step()
        right = (model.eval()(few.test_images).argmax(1) == few.test_labels).sum().item()
        run = train(BY_NAME["fp32"], Settings(epochs=2, lr=0.05), 5, few)
        assert run.losses == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], rel=1e-12)
        assert run.accuracy == 100 * right / 50

    def test_recipes_start_alike_and_see_the_same_images(self, few: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: dict[str, list[Any]] = {}

        def watched(recipe: Recipe, model: nn.Module, make: Callable[..., Any]) -> Any:
            seen[recipe.name] = [p.detach().clone() for p in model.parameters()]
            return recipe_apply[recipe.name](recipe, model, make)

        def looked_at(recipe: Recipe, images: Tensor) -> Tensor:
            seen[recipe.name].append(images)
            return recipe_inputs[recipe.name](recipe, images)

        recipe_apply = {recipe.name: recipe.apply for recipe in RECIPES}
        recipe_inputs = {recipe.name: recipe.inputs for recipe in RECIPES}
        for recipe in RECIPES:
            train(replace(recipe, apply=watched, inputs=looked_at), ONE_EPOCH, 3, few)
        for tensors in seen.values():
            assert all(map(torch.equal, tensors, seen["fp32"]))
            assert len(tensors) == len(seen["fp32"])

    def test_a_diverged_run_counts_as_wrong(self, few: Digits) -> None:
        run = train(BY_NAME["fp32"], Settings(epochs=1, lr=1e30), 0, few)
        assert not math.isfinite(run.losses[0])
        assert run.accuracy == 0


class TestRecipes:
    def test_the_posters_code_is_the_posters_recipe(self, few: Digits) -> None:
        def steps(model: nn.Module, optim: Any) -> list[Tensor]:
            torch.manual_seed(8)
            for batch in torch.arange(96).split(32):
                optim.zero_grad()
                cross_entropy(model(few.train_images[batch]), few.train_labels[batch]).backward()
                optim.step()
            return [p.detach() for p in model.parameters()]

        torch.manual_seed(7)
        prec = FloatingPoint(bit=8)
        acc_prec = FloatingPoint(bit=16)
        model = digit_net()
        model = lower(model, layer_type=["conv"], forward_number=prec, backward_number=prec)
        optim = SGD(model.parameters(), lr=0.01)
        optim = OptimLP(optim, weight_quant=prec, grad_quant=prec, acc_quant=acc_prec)
        by_hand = steps(model, optim)

        torch.manual_seed(7)
        recipe = BY_NAME["poster"]
        model, optim = recipe.apply(recipe, digit_net(), lambda params: SGD(params, lr=0.01))
        assert all(map(torch.equal, by_hand, steps(model, optim)))

    @pytest.mark.parametrize("recipe", RECIPES[1:], ids=lambda recipe: recipe.name)
    def test_weights_and_outputs_are_of_the_recipes_format(self, recipe: Recipe, few: Digits) -> None:
        torch.manual_seed(0)
        model, optimizer = recipe.apply(recipe, digit_net(), lambda params: SGD(params, 0.1, MOMENTUM))
        outputs: list[Tensor] = []
        model[0].register_forward_hook(lambda module, args, output: outputs.append(output))
        cross_entropy(model(recipe.inputs(recipe, few.train_images)), few.train_labels).backward()
        optimizer.step()  # which also rounds the gradients of recipes that use lower
        for values in [*model.parameters(), outputs[0]]:
            assert on_grid(plain(values), recipe.number)
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert on_grid(plain(parameter.grad), recipe.gradient or recipe.number)

    @pytest.mark.parametrize("name", ["convert", "convert-nearest"])
    def test_every_operation_of_a_converted_model_rounds(self, name: str, few: Digits) -> None:
        recipe = BY_NAME[name]
        model, _ = recipe.apply(recipe, digit_net(), lambda params: SGD(params, 0.1))
        outputs: list[Tensor] = []
        for layer in model:
            layer.register_forward_hook(lambda module, args, output: outputs.append(output))
        model(recipe.inputs(recipe, few.train_images))
        assert len(outputs) == 8
        for output in outputs:
            assert isinstance(output, LPTensor)
            assert on_grid(plain(output), E5M2)

    def test_nearest_and_stochastic_differ_in_rounding_alone(self) -> None:
        pairs = [
            (recipe, BY_NAME[f"{name}-nearest"]) for name, recipe in BY_NAME.items() if f"{name}-nearest" in BY_NAME
        ]
        assert len(pairs) == 5
        for stochastic, nearest in pairs:
            assert stochastic.rounding == Stochastic()
            assert nearest.rounding == as_rounding("nearest")
            assert stochastic.instead(None, nearest.rounding).same_arithmetic(nearest)

    def test_names_are_unique_and_float32_comes_first(self) -> None:
        assert len(BY_NAME) == len(RECIPES)
        assert RECIPES[0].number is None

    def test_another_format_goes_everywhere_but_into_float32(self) -> None:
        assert BY_NAME["fp32"].instead(E4M3, Stochastic()) == BY_NAME["fp32"]
        other = BY_NAME["fixed8"].instead(E4M3, None)
        assert (other.number, other.gradient, other.accumulator) == (E4M3, None, FP16)

    def test_an_accumulator_that_cannot_hold_the_number_gives_way(self) -> None:
        assert BY_NAME["poster"].instead(BF16, None).accumulator is None

    def test_without_a_wide_accumulator_there_is_none_in_another_format_either(self) -> None:
        assert BY_NAME["narrow"].instead(BF16, None).accumulator == BF16

    def test_small_steps_get_lost_in_a_narrow_accumulator_only_to_nearest(self) -> None:
        moved = {}
        for name in ("poster-nearest", "narrow-nearest", "narrow"):
            torch.manual_seed(0)
            weight = nn.Parameter(torch.ones(1000))
            recipe = BY_NAME[name]
            model = nn.Conv2d(1, 1, 1)
            model.register_parameter("extra", weight)
            _, optimizer = recipe.apply(recipe, model, lambda params: SGD(params, lr=2.0**-9))
            for _ in range(64):
                weight.grad = torch.ones(1000)
                optimizer.step()
            moved[name] = 1 - weight.mean().item()
        # 64 steps of 2**-9 make 1/8, which is the spacing of E5M2 below 1; a single step is far less than half of it
        assert moved["poster-nearest"] == 0.125
        assert moved["narrow-nearest"] == 0
        assert moved["narrow"] == pytest.approx(0.125, abs=0.012)  # three standard deviations


def plain(x: Tensor) -> Tensor:
    return x.dequantize().detach() if isinstance(x, LPTensor) else x.detach()


class TestSummary:
    def runs(self, *accuracies: float, seconds: float = 1.0) -> list[Run]:
        return [Run(seed, [1.0, math.nan], [50.0, a], [9 * seconds, seconds]) for seed, a in enumerate(accuracies)]

    def test_means_deviations_gaps_and_times(self) -> None:
        results = {BY_NAME["fp32"]: self.runs(98, 97, 96), BY_NAME["poster"]: self.runs(97, 95, 96, seconds=2)}
        base, poster = summarize(results)
        assert (base.accuracy, base.gap, base.slowdown) == (97, 0, 1)
        assert poster.accuracy == 96 and poster.gap == -1 and poster.slowdown == 2
        assert poster.deviation == pytest.approx(np.std([97, 95, 96], ddof=1))

    def test_each_task_has_a_baseline_of_its_own(self) -> None:
        fp32, poster = BY_NAME["fp32"], BY_NAME["poster"]
        rows = [fp32, poster, replace(fp32, task=TEXT), replace(poster, task=TEXT)]
        results = dict(zip(rows, map(self.runs, (98, 97, 60, 62)), strict=True))
        assert [s.gap for s in summarize(results)] == [0, -1, 0, 2]

    def test_iterates_are_there_where_a_mean_is_tested(self) -> None:
        averaged = [replace(run, iterates=[30.0, run.accuracy - 2]) for run in self.runs(98, 96)]
        fp32, poster = summarize({BY_NAME["fp32"]: self.runs(98, 97), BY_NAME["poster"]: averaged})
        assert (fp32.iterate, poster.iterate) == (None, 95)

    def test_one_seed_has_no_deviation(self) -> None:
        (base,) = summarize({BY_NAME["fp32"]: self.runs(98)})
        assert base.deviation is None

    def test_json_is_strict_and_says_how_to_repeat(self) -> None:
        summaries = summarize({BY_NAME["fp32"]: self.runs(98, 97), BY_NAME["fixed8"]: self.runs(97, 96)})
        kept = json.loads(json.dumps(to_json(summaries, Settings(20, 32, 0.1)), allow_nan=False))
        assert kept["settings"] == {"epochs": 20, "batch_size": 32, "lr": 0.1, "seeds": [0, 1]}
        assert {"python", "torch", "numpy", "scikit-learn", "lptensor", "backend"} == set(kept["versions"])
        fp32, fixed = kept["recipes"]
        assert (fp32["number"], fp32["accumulator"]) == (None, None)
        assert (fp32["network"], fp32["lr"], fixed["lr"]) == ("small", 0.1, 0.1)
        assert format_from(fixed["number"]) == FixedPoint(8, 5)
        assert format_from(fixed["gradient"]) == FixedPoint(8, 10)
        assert [run["accuracy"] for run in fixed["runs"]] == [97, 96]
        assert fixed["runs"][0]["losses"] == [1.0, None]


@pytest.mark.slow
def test_the_posters_recipe_ends_within_a_point_of_float32(digits: Digits) -> None:
    results = {r: [train(r, Settings(), seed, digits) for seed in range(3)] for r in (RECIPES[0], BY_NAME["poster"])}
    base, poster = summarize(results)
    assert base.accuracy > 97
    assert poster.gap >= -1
