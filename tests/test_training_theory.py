"""What papers prove or report of low-precision training, measured on the code: on seeds of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lptensor import BF16, MXFP4, FixedPoint, OptimLP, Stochastic, round as lp_round
from lptensor.hadamard import Hadamard
from lptensor.training import SWALP, ThreeQuarters


class Walkers:
    """Many one-dimensional problems at once: SGD whose weights are stochastic fixed point of spacing delta."""

    def __init__(self, slope: Callable[[Tensor], Tensor], n: int, lr: float, delta: float, noise: float) -> None:
        self.slope, self.noise = slope, noise
        self.w = nn.Parameter(torch.zeros(n))
        format = FixedPoint(20, -int(math.log2(delta)))
        self.optim = OptimLP(SGD([self.w], lr=lr), weight_quant=format, update="stochastic")

    def walk(self, steps: int, see: Callable[[Tensor], None] = lambda w: None) -> None:
        for _ in range(steps):
            w = self.w.detach()
            self.w.grad = self.slope(w) + self.noise * torch.randn_like(w)
            self.optim.step()
            see(self.w.detach())


def mean_square(walkers: Walkers, best: float | Tensor, steps: int) -> float:
    total = 0.0

    def see(w: Tensor) -> None:
        nonlocal total
        total += float((w - best).double().square().mean())

    walkers.walk(steps, see)
    return total / steps


def slope_of(points: list[tuple[float, float]]) -> float:
    """The slope of a line through points in a log-log plot, by least squares."""
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


class TestNoiseFloor:
    """Low-precision SGD on h w**2 / 2 stops at a mean square that is a formula (B1)."""

    @pytest.mark.parametrize(("lr", "h", "noise", "delta"), [(0.1, 1.0, 1.0, 2.0**-4), (0.05, 4.0, 2.0, 2.0**-4)])
    def test_where_steps_span_the_spacing(self, lr: float, h: float, noise: float, delta: float) -> None:
        """lr noise >= delta: rounding adds delta**2 / 6 a step to the lr**2 noise**2 that SGD itself adds."""
        best = torch.rand(4000)
        walkers = Walkers(lambda w: h * (w - best), 4000, lr, delta, noise)
        walkers.walk(int(6 / (lr * h)))
        predicted = (lr**2 * noise**2 + delta**2 / 6) / (1 - (1 - lr * h) ** 2)
        assert mean_square(walkers, best, 600) == pytest.approx(predicted, rel=0.02)

    @staticmethod
    def small_steps(delta: float, noise: float, n: int) -> float:
        """Measured over predicted, for steps that are much smaller than the spacing.

        Then each rounding adds |u| (delta - |u|), u the update, and what lr adds cancels:
        V = delta sqrt(2 / pi) sqrt(noise**2 + h**2 V) / (2 h), whatever lr is.
        """
        lr, h = delta / 32, 1.0
        walkers = Walkers(lambda w: h * w, n, lr, delta, noise)
        walkers.walk(int(6 / (lr * h)))
        predicted = 0.0
        for _ in range(60):
            predicted = delta * math.sqrt(2 / math.pi) * math.sqrt(noise**2 + h**2 * predicted) / (2 * h)
        return mean_square(walkers, 0.0, int(10 / (lr * h))) / predicted

    def test_where_steps_are_small(self) -> None:
        assert self.small_steps(2.0**-3, 1.0, 2000) == pytest.approx(1, abs=0.04)

    @pytest.mark.theory
    def test_the_floor_is_proportional_to_the_spacing(self) -> None:
        ratios = {k: self.small_steps(2.0**-k, 1.0, 2000) for k in (2, 3, 4, 5, 6)}
        assert all(abs(ratio - 1) < 0.04 for ratio in ratios.values()), ratios


class TestAveraging:
    def test_the_mean_of_a_quadratics_iterates_goes_below_the_grid(self) -> None:
        """SWALP, theorem 1: the error of the mean falls as 1 / T, past what rounding the minimum would cost (B2)."""
        n, delta, lr, noise = 1500, 2.0**-4, 2.0**-6, 0.1
        best = torch.rand(n)
        walkers = Walkers(lambda w: w - best, n, lr, delta, noise)
        walkers.walk(int(8 / lr))
        floor = mean_square(walkers, best, 1000)
        average = SWALP([walkers.w])
        points = []
        for steps in (1000, 1000, 2000, 4000):
            walkers.walk(steps, lambda _: average.step() and None)
            points.append((average.collected, float((average.means[0] - best).square().mean())))
        assert slope_of(points) == pytest.approx(-1, abs=0.15)
        # Iterates are correlated: a first-order process of coefficient 1 - lr.
        assert points[-1][1] == pytest.approx(floor * (2 - lr) / lr / points[-1][0], rel=0.1)
        of_rounding = float((best - (best / delta).round() * delta).square().mean())
        assert points[-1][1] < of_rounding / 3 and floor > 5 * of_rounding

    @pytest.mark.theory
    def test_the_mean_falls_below_the_grid_in_many_dimensions(self) -> None:
        """Least squares on fresh samples x ~ N(0, I), noise n: SWALP's setting (B2), whose floor and mean are formulas.

        E|x_i (x e + n)| is 2 / pi sqrt(V + n**2), the two factors being nearly independent in 32 dimensions;
        each rounding adds lr delta of it per weight, and lr**2 g**2 cancels as in ``small_steps``:
        V = delta 32 (2 / pi) sqrt(V + n**2) / 2. The root of a mean is above the mean root by some
        1 / (8 * 16) of it, V's spread being V sqrt(2 / 32). Errors are correlated by 1 - lr from step to step.
        """
        n, dims, delta, noise = 128, 32, 2.0**-6, 0.1
        best = torch.rand(dims) * 2 - 1

        def run(update: str, lr: float, steps: int) -> tuple[float, float]:
            w = nn.Parameter(torch.zeros(n, dims))
            optim = OptimLP(SGD([w], lr=lr), weight_quant=FixedPoint(8, 6), update=update)
            average, total = SWALP([w], start=int(8 / lr)), 0.0
            for _ in range(steps + average.start):
                x = torch.randn(n, dims)
                residual = (x * (w.detach() - best)).sum(1, keepdim=True) + noise * torch.randn(n, 1)
                w.grad = x * residual
                optim.step()
                if average.step():
                    total += float((w.detach() - best).square().sum(1).mean())
            return total / steps, float((average.means[0] - best).square().sum(1).mean())

        lr, steps = 2.0**-7, 24_000
        floor, of_mean = run("stochastic", lr, steps)
        predicted = 0.0
        for _ in range(60):
            predicted = delta * dims * (2 / math.pi) * math.sqrt(predicted + noise**2) / 2
        assert floor == pytest.approx(predicted, rel=0.04)
        left = 1 - (1 - lr) ** steps
        falls = floor / steps * ((2 - lr) / lr - 2 * (1 - lr) * left / (steps * lr**2))
        assert of_mean == pytest.approx(falls, rel=0.08)  # 128 * 32 squares: three of their spreads are 6.6 %
        of_rounding = float((lp_round(best, FixedPoint(8, 6)) - best).square().sum())
        assert of_mean < 0.75 * of_rounding
        # To nearest only slopes above delta / (2 lr) = 4 move a weight, and averaging does not help.
        stuck, of_stuck = run("nearest", 2.0**-9, 2000)
        assert stuck > 3 * floor and of_stuck > 0.9 * stuck

    @pytest.mark.theory
    def test_on_other_functions_the_mean_has_a_bias_of_the_spacing_squared(self) -> None:
        """E(w - w*)**2 goes with delta, (E mean - w*)**2 with delta**2: the bias is -f''' V / (2 f'') (B2b)."""

        def slope(w: Tensor) -> Tensor:  # of softplus(2 w) - 0.3 w + 0.05 w**2
            return 2 * torch.sigmoid(2 * w) - 0.3 + 0.1 * w

        low, high = -5.0, 5.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if float(slope(torch.tensor(middle).double())) > 0 else (middle, high)
        best = (low + high) / 2
        s = 1 / (1 + math.exp(-2 * best))
        second, third = 4 * s * (1 - s) + 0.1, 8 * s * (1 - s) * (1 - 2 * s)
        floors, biases = [], []
        for k in (3, 4, 5, 6):
            delta = 2.0**-k
            lr = delta / 8
            walkers = Walkers(slope, 4000, lr, delta, 0.5)
            walkers.walk(int(8 / lr / second))
            average, total, steps = SWALP([walkers.w]), [0.0], int(40 / lr / second)

            def see(w: Tensor, average: SWALP = average, total: list[float] = total) -> None:
                average.step()
                total[0] += float((w - best).double().square().mean())

            walkers.walk(steps, see)
            variance, bias = total[0] / steps, float(average.means[0].mean()) - best
            assert bias == pytest.approx(-third * variance / (2 * second), rel=0.15)
            floors.append((delta, variance))
            biases.append((delta, bias**2))
        assert slope_of(floors) == pytest.approx(1, abs=0.15)
        assert slope_of(biases) == pytest.approx(2, abs=0.3)


class TestFewRandomBits:
    """A sum of n equal numbers, stochastically rounded with r random bits, loses n 2**-r of a unit (B6)."""

    @staticmethod
    def lost(bits: int, n: int = 4096, runs: int = 400) -> tuple[float, float]:
        """The mean relative error of a BF16 sum of uniform numbers, and its standard error."""
        total, exact = torch.zeros(runs), torch.zeros(runs, dtype=torch.float64)
        for _ in range(n):
            x = torch.rand(runs).bfloat16().float()
            exact += x
            total = lp_round(total + x, BF16, Stochastic(bits))
        errors = total.double() / exact - 1
        return float(errors.mean()), float(errors.std()) / math.sqrt(runs)

    def test_the_loss_halves_with_each_bit(self) -> None:
        losses = [self.lost(bits)[0] for bits in (6, 7, 8, 9)]
        assert all(loss < 0 for loss in losses)
        for fewer, more in zip(losses, losses[1:], strict=False):
            assert 1.5 < fewer / more < 2.5

    def test_with_all_bits_nothing_is_lost_on_average(self) -> None:
        mean, error = self.lost(32)
        assert abs(mean) < 4 * error


class TestUnbiasedMicroscaling:
    """Stochastic MXFP4: the floor rule saturates and is biased, three quarters are not (B8)."""

    @staticmethod
    def bias(quantize: Callable[[Tensor], Tensor], draws: int = 1500) -> tuple[float, float]:
        """The length of the mean error over that of x, and what chance alone would make it."""
        x = torch.randn(4096)
        total, square = torch.zeros(4096), torch.zeros(4096)
        for _ in range(draws):
            error = quantize(x) - x
            total += error
            square += error.square()
        mean = total / draws
        chance = float(((square / draws - mean.square()) / draws).sum().sqrt())
        return float(mean.norm() / x.norm()), chance / float(x.norm())

    def test_three_quarters_are_unbiased(self) -> None:
        measured, chance = self.bias(ThreeQuarters())
        assert measured < 1.05 * chance

    def test_the_floor_rule_is_not(self) -> None:
        measured, chance = self.bias(lambda x: lp_round(x, MXFP4, "stochastic"))
        assert measured > 5 * chance

    def test_means_of_products_converge_for_stochastic_operands_only(self) -> None:
        """The error of a mean of 16 products falls by 4, or not at all to nearest."""
        a, b = torch.randn(32, 512), torch.randn(512, 32)
        b_t = b.T.contiguous()
        exact = a @ b

        def error(quantize: Callable[[Tensor], Tensor], times: int) -> float:
            mean = sum(quantize(a) @ quantize(b_t).T for _ in range(times)) / times
            return float((mean - exact).norm() / exact.norm())

        stochastic, nearest = ThreeQuarters(), lambda x: lp_round(x, MXFP4)
        assert error(stochastic, 1) / error(stochastic, 16) == pytest.approx(4, rel=0.15)
        assert error(nearest, 1) == error(nearest, 16)
        assert error(stochastic, 16) < error(nearest, 16) < error(stochastic, 1)

    def test_random_signs_and_hadamard_keep_outliers_from_their_blocks(self) -> None:
        """Tseng et al., section 4: the variance of a block grows with its length, or with the logarithm of it.

        One value in a hundred is 50 times as large. Untransformed, the blocks that hold one are 1 - 0.99**g of
        all, 28 % of blocks of 32 and 92 % of blocks of 256, and what is beside it is rounded at its scale: errors
        grow by up to sqrt(0.92 / 0.28) = 1.8. Transformed, values are nearly normal, and the largest of g of
        these grows as sqrt(2 log g), by 1.27 at most.
        """
        k = 4096
        a, b = torch.randn(32, k), torch.randn(32, k)
        a, b = (t * torch.where(torch.rand(32, k) < 0.01, 50.0, 1.0) for t in (a, b))
        exact = a.double() @ b.double().T

        def error(g: int, transform: bool, times: int = 1) -> float:
            quantize, hadamard = ThreeQuarters(g), Hadamard(g, "random")
            total = torch.zeros_like(exact)
            for _ in range(times):
                signs = hadamard.draw(a)
                p, q = (quantize(hadamard.apply(t, signs) if transform else t) for t in (a, b))
                total += p.double() @ q.double().T
            return float((total / times - exact).norm() / exact.norm())

        assert error(256, False) > 1.5 * error(32, False)
        assert error(256, True) < 1.27 * error(32, True)
        assert error(256, True) < 0.6 * error(256, False)
        for transform in (False, True):
            assert error(64, transform) / error(64, transform, 8) == pytest.approx(math.sqrt(8), rel=0.1)

    def test_one_draw_is_a_neighbour_of_three_quarters(self) -> None:
        x = torch.randn(5, 90) * torch.logspace(-30, 30, 90)
        got, again = ThreeQuarters()(x), ThreeQuarters()(x)
        assert got.shape == x.shape and not torch.equal(got, again)
        values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        for start in range(0, 90, 32):
            for row, result in zip(x[:, start : start + 32].tolist(), got[:, start : start + 32].tolist(), strict=True):
                scale = 2.0 ** (math.floor(math.log2(max(map(abs, row)))) - 2)
                for v, q in zip(row, result, strict=True):
                    wanted, element = abs(0.75 * v / scale), abs(0.75 * q / scale)
                    below = max(u for u in values if u <= wanted)
                    above = min(u for u in values if u >= wanted)
                    assert min(abs(element - below), abs(element - above)) < 1e-6 and q * v >= 0

    def test_special_blocks(self) -> None:
        x = torch.tensor([1.0, math.inf, 0.0, 0.0, 2.0, math.nan, -6.0])
        got = ThreeQuarters(2)(x)
        assert got.isnan().tolist() == [True, True, False, False, True, True, False] and got[2:4].tolist() == [0, 0]
        assert ThreeQuarters()(torch.empty(0, 3)).shape == (0, 3)
        assert ThreeQuarters()(torch.tensor(0.0, dtype=torch.float64)).dtype == torch.float64
        with pytest.raises(ValueError, match="block_size"):
            ThreeQuarters(0)
