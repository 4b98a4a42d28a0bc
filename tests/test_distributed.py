"""Two processes that train or talk to each other: values land on the grid of the tensor that they arrive in."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

import two_processes
from lptensor import E4M3, convert
from two_processes import BOTH, STEPS, WORLD, inputs, net, values


@pytest.fixture(scope="module")
def found() -> dict[str, list[Any]]:
    return two_processes.run()


def e4m3(x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn).float()


def e5m2(x: Tensor) -> Tensor:
    return x.to(torch.float8_e5m2).float()


TOTAL = sum(values(rank) for rank in range(WORLD))
assert isinstance(TOTAL, Tensor) and not torch.equal(e4m3(TOTAL), TOTAL)  # else these tests could not fail


@pytest.mark.parametrize("name", ["all_reduce", "all_reduce_later"])
def test_a_sum_over_processes_rounds_once(found: dict[str, list[Any]], name: str) -> None:
    for x in found[name]:
        assert torch.equal(x, e4m3(TOTAL))


def test_a_summed_gradient_rounds_to_the_backward_format(found: dict[str, list[Any]]) -> None:
    for grad, format_holds in found["all_reduce_of_a_gradient"]:
        assert torch.equal(grad, e5m2(sum(e5m2(values(rank)) for rank in range(WORLD)))) and format_holds


def test_parts_of_a_sum_round_too(found: dict[str, list[Any]]) -> None:
    assert torch.equal(torch.cat(found["reduce_scatter"]), e4m3(TOTAL))


STEPS_OF_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def e2m1(x: Tensor) -> Tensor:
    distance = (x.clamp(-6, 6).abs()[:, None] - STEPS_OF_E2M1).abs()
    ties = torch.arange(8) % 2 * 1e-6  # to the even code
    return STEPS_OF_E2M1[(distance + ties).argmin(1)] * x.sign()


def test_what_arrives_rounds_into_the_format_of_where_it_arrives(found: dict[str, list[Any]]) -> None:
    expected = [e2m1(values(rank)) for rank in range(WORLD)]
    for parts, whole in found["all_gather_into_other_formats"]:
        assert all(map(torch.equal, parts, expected)) and torch.equal(whole, torch.cat(expected))
    first, second = found["broadcast_into_another_format"]
    assert torch.equal(first, values(0)) and torch.equal(second, expected[0])


def test_what_goes_to_one_process_or_comes_from_one_rounds_too(found: dict[str, list[Any]]) -> None:
    expected = [e2m1(values(rank)) for rank in range(WORLD)]
    total, parts, _ = found["reduce_gather_and_scatter_into_other_formats"][0]
    assert torch.equal(total, e4m3(TOTAL)) and all(map(torch.equal, parts, expected))
    for rank, (_, _, mine) in enumerate(found["reduce_gather_and_scatter_into_other_formats"]):
        assert torch.equal(mine, expected[rank])


def test_functional_collectives_round_whether_waited_for_or_not(found: dict[str, list[Any]]) -> None:
    for waited, used, narrow, wide in found["functional_all_reduce"]:
        assert torch.equal(waited, e4m3(TOTAL)) and torch.equal(used, e4m3(TOTAL)) and torch.equal(narrow, e4m3(TOTAL))
        assert torch.equal(wide, e5m2(sum(e5m2(values(rank)) for rank in range(WORLD))))


def test_receiving_names_the_way_out(found: dict[str, list[Any]]) -> None:
    assert all("receive into a plain tensor" in said for said in found["receive"])


def by_hand(accumulate: int = 1) -> dict[str, Any]:
    """The same training in one process: gradients of each process's samples, their mean, one rounding of it."""
    model = convert(net(), BOTH)
    optim = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
    outputs: list[list[Tensor]] = [[] for _ in range(WORLD)]
    grads: list[Tensor] = []
    for step in range(STEPS):
        grads = []
        for k in range(accumulate):
            of_each = []
            for rank in range(WORLD):
                model.zero_grad()
                out = model(inputs(rank, step * accumulate + k))
                out.square().sum().backward()
                outputs[rank].append(out.dequantize().detach())
                of_each.append([p.grad.dequantize() for p in model.parameters()])
            means = [sum(parts) / WORLD for parts in zip(*of_each, strict=True)]
            grads = [e5m2(g + m) for g, m in zip(grads, means, strict=True)] if grads else [e5m2(m) for m in means]
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = torch.zeros_like(p.grad).copy_(grad)
        optim.step()
    return {"outputs": outputs, "grads": grads, "weights": [p.dequantize().detach() for p in model.parameters()]}


@pytest.mark.parametrize(
    ("name", "accumulate"), [("data_parallel", 1), ("fsdp", 1), ("fsdp_accumulates", 2)], ids=lambda x: str(x)
)
def test_training_in_two_processes_is_that_of_one_with_mean_gradients(
    found: dict[str, list[Any]], name: str, accumulate: int
) -> None:
    expected = by_hand(accumulate)
    for rank, seen in enumerate(found[name]):
        assert all(seen["low"]) and seen["low"]
        for kind in ("grads", "weights"):
            assert len(seen[kind]) == 4 and all(map(torch.equal, seen[kind], expected[kind])), kind
        assert all(map(torch.equal, seen["outputs"], expected["outputs"][rank]))


def test_gradients_that_come_back_plain_are_refused(found: dict[str, list[Any]]) -> None:
    assert all("gradient_as_bucket_view=False" in said for said in found["buckets"])


def test_a_precision_beside_the_format_is_refused(found: dict[str, list[Any]]) -> None:
    assert all("param_dtype=torch.bfloat16" in said for said in found["fsdp_in_bfloat16"])


def test_what_is_distributed_is_not_converted_and_stays_as_it_was(found: dict[str, list[Any]]) -> None:
    for *said, kind in found["convert_what_is_distributed"]:
        assert len(said) == 4 and all("fully_shard" in text for text in said) and kind == "DTensor"


def test_data_parallel_begins_with_the_first_process_model_as_it_is(found: dict[str, list[Any]]) -> None:
    for (sent, kept), (other, arrived) in zip(*found["data_parallel_sends_as_it_is"], strict=True):
        assert all(map(torch.equal, sent, kept)) and all(map(torch.equal, sent, arrived))
        assert not torch.equal(other[0], sent[0])  # else nothing would have to be sent


def test_tensors_enter_low_precision_while_another_thread_imports_dtensors(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch.distributed.tensor"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))  # as far as an import has come at first
    x = torch.tensor([0.1, -3.3])
    assert torch.equal(x.to_lp(E4M3).dequantize(), e4m3(x))  # type: ignore[attr-defined]
