"""How much longer a training step of the demo's network takes while it is recorded: medians of processor time."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lptensor.demo.net import digit_net
from lptensor.demo.recipes import RECIPES
from lptensor.formats import E4M3, E5M2
from lptensor.study import record

STEPS = 40


def main() -> None:
    torch.set_num_threads(1)
    images, labels = torch.rand(64, 1, 8, 8), torch.randint(0, 10, (64,))
    for name, formats in (("convert", {}), ("poster", {}), ("fp32", {"forward": E4M3, "backward": E5M2})):
        recipe = next(recipe for recipe in RECIPES if recipe.name == name)
        model, optimizer = recipe.apply(recipe, digit_net(), lambda params: torch.optim.SGD(params, 0.05, 0.9))

        def step(model: Any = model, optimizer: Any = optimizer, recipe: Any = recipe) -> float:
            start = time.process_time()
            optimizer.zero_grad()
            cross_entropy(model(recipe.inputs(recipe, images)), labels).backward()
            optimizer.step()
            return time.process_time() - start

        bare = statistics.median(step() for _ in range(STEPS))
        with record(model, optimizer, **formats):  # type: ignore[arg-type]
            recorded = statistics.median(step() for _ in range(STEPS))
        asked = " (asked about formats)" if formats else ""
        print(f"{name:8} {1e3 * bare:6.2f} ms  recorded {1e3 * recorded:6.2f} ms  {recorded / bare:.2f} times{asked}")


if __name__ == "__main__":
    main()
