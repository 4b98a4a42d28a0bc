"""Checkpoints between plain and converted models, both ways, and models that get their memory later."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from low import is_low, rounded, same, through_file, values
from lptensor import BF16, E4M3, E5M2, Arithmetic, LPTensor, OptimLP, convert, lower

BOTH = Arithmetic(E4M3, backward=E5M2)


class Model(nn.Module):
    """Tied weights, statistics, a recurrent layer, a parametrization, a buffer that is no statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.dense = parametrizations.weight_norm(nn.Linear(4, 4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor([0.3, 0.7, 1.1, 1.3]))

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.head(self.dense(self.norm(self.rnn(self.embed(i))[0][:, -1]) * self.scale))
        return y


INPUT = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 6, 0]])


def model(format: Any = None, seed: int = 0, buffers: bool = False) -> Model:
    torch.manual_seed(seed)
    made = Model()
    return made if format is None else convert(made, format, buffers=buffers)


def assert_form_kept(loaded: nn.Module, like: nn.Module) -> None:
    """Every tensor of ``loaded`` has the kind, format, and need of a gradient that it had."""
    found = {**dict(loaded.named_parameters(remove_duplicate=False)), **dict(loaded.named_buffers())}
    for name, u in {**dict(like.named_parameters(remove_duplicate=False)), **dict(like.named_buffers())}.items():
        t = found.pop(name)
        assert type(values(t)) is Tensor and isinstance(t, LPTensor) is isinstance(u, LPTensor)
        assert getattr(t, "arithmetic", None) == getattr(u, "arithmetic", None)
        assert t.requires_grad == u.requires_grad and isinstance(t, nn.Parameter) is isinstance(u, nn.Parameter)
    assert not found


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("buffers", [False, True])
def test_a_plain_checkpoint_is_rounded_into_the_formats_of_the_model(assign: bool, buffers: bool) -> None:
    plain, low = model(seed=1), model(BOTH, buffers=buffers)
    given = plain.state_dict()
    low.load_state_dict(given, assign=assign)
    assert_form_kept(low, model(BOTH, buffers=buffers))
    for name, t in low.state_dict().items():
        want = given[name]
        assert same(t, rounded(want, E4M3) if isinstance(t, LPTensor) else want), name
    assert all(type(t) is Tensor for t in given.values())  # the checkpoint is untouched
    low(INPUT).sum().backward()
    assert all(is_low(p.grad, E5M2) for p in low.parameters())


@pytest.mark.parametrize("through", [through_file, copy.deepcopy, dict], ids=["file", "copy", "itself"])
def test_a_low_precision_checkpoint_gives_a_plain_model_its_values(through: Callable[[Any], Any]) -> None:
    low, plain = model(BOTH, seed=1), model()
    assert plain.load_state_dict(through(low.state_dict())) == plain.load_state_dict(low.state_dict())
    assert_form_kept(plain, model())
    assert all(same(t, low.state_dict()[name]) for name, t in plain.state_dict().items())


def test_a_converted_model_that_is_lowered_loads_into_its_formats_still() -> None:
    model = lower(convert(nn.Sequential(nn.Linear(4, 2)), E4M3), ["linear"], BF16)
    model.load_state_dict(nn.Sequential(nn.Linear(4, 2)).state_dict(), assign=True)
    assert model[0].weight.format == E4M3


def test_a_checkpoint_in_a_narrow_dtype_is_taken_into_the_formats_of_the_model() -> None:
    stored = {name: x.to(torch.float8_e4m3fn) for name, x in nn.Linear(4, 2).state_dict().items()}
    for assign in (False, True):
        model = convert(nn.Linear(4, 2), E5M2)
        model.load_state_dict(stored, assign=assign)
        assert all(same(p, rounded(stored[name].float(), E5M2)) for name, p in model.named_parameters())


def test_assigning_what_is_in_the_formats_of_a_model_already_keeps_its_memory() -> None:
    low, other = (convert(nn.Linear(4, 2), E5M2) for _ in range(2))
    low.load_state_dict(other.state_dict(), assign=True)
    assert low.weight.data_ptr() == other.weight.data_ptr()


def test_assigning_a_low_precision_checkpoint_makes_a_plain_model_low_as_any_dtype_would() -> None:
    low, plain = model(BOTH, seed=1), model()
    plain.load_state_dict(through_file(low.state_dict()), assign=True)
    assert all(is_low(p, E4M3) and isinstance(p, nn.Parameter) for p in plain.parameters())
    convert(plain, BOTH)  # what converting a model does besides: an LSTM runs step by step
    assert same(plain(INPUT), low(INPUT))
    assert all(type(p) is nn.Parameter for p in convert(plain, None).parameters())


@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_another_format_is_recast(assign: bool) -> None:
    coarse, fine = model(E5M2, seed=1), model(BF16)
    coarse.load_state_dict(model(BF16, seed=2).state_dict(), assign=assign)
    assert all(is_low(p, E5M2) for p in coarse.parameters())
    fine.load_state_dict(coarse.state_dict(), assign=assign)
    assert all(is_low(p, BF16) for p in fine.parameters())
    assert all(same(p, q) for p, q in zip(fine.parameters(), coarse.parameters(), strict=True))


@pytest.mark.parametrize("assign", [False, True])
def test_the_same_model_loads_bit_for_bit(assign: bool) -> None:
    low, other = model(BOTH, seed=1, buffers=True), model(BOTH, buffers=True)
    low(INPUT)
    other.load_state_dict(through_file(low.state_dict()), assign=assign)
    assert all(same(t, low.state_dict()[name]) for name, t in other.state_dict().items())
    assert same(low.eval()(INPUT), other.eval()(INPUT))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("direction", ["plain into low", "low into plain"])
def test_what_does_not_fit_is_named_as_ever(assign: bool, direction: str) -> None:
    source, target = (model(), model(BOTH)) if direction == "plain into low" else (model(BOTH), model())
    state = source.state_dict()
    del state["norm.weight"]
    state["surplus"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*norm\.weight.*Unexpected key.*surplus"):
        target.load_state_dict(state, assign=assign)
    found = target.load_state_dict(state, strict=False, assign=assign)
    assert (found.missing_keys, found.unexpected_keys) == (["norm.weight"], ["surplus"])
    state["norm.bias"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"size mismatch for norm\.bias"):
        target.load_state_dict(state, strict=False, assign=assign)


def test_a_file_can_be_mapped_and_loaded_onto_a_device(tmp_path: Path) -> None:
    low = model(BOTH, seed=1)
    torch.save(low.state_dict(), tmp_path / "m.pt")
    for how in ({"mmap": True}, {"map_location": "cpu"}, {"map_location": "meta"}):
        state = torch.load(tmp_path / "m.pt", weights_only=True, **how)
        assert isinstance(state["head.weight"], LPTensor) and state["head.weight"].arithmetic == BOTH
        assert state["head.weight"].is_meta or same(state["head.weight"], low.head.weight)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_of_the_model_loads_alike(again: Callable[[Any], Any]) -> None:
    low = again(convert(nn.Sequential(nn.LSTM(4, 3), nn.BatchNorm1d(3)), BOTH))  # PyTorch pickles no parametrization
    low.load_state_dict(nn.Sequential(nn.LSTM(4, 3), nn.BatchNorm1d(3)).state_dict(), assign=True)
    assert all(is_low(p, E4M3) for p in low.parameters())


# -- memory that comes later -----------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("first", ["convert", "memory"])
def test_a_model_made_on_the_meta_device_is_loaded(assign: bool, first: str) -> None:
    given = model(seed=1)
    with torch.device("meta"):
        low: Any = Model()
    if first == "convert":
        convert(low, BOTH)
        assert all(isinstance(p, LPTensor) and p.is_meta for p in low.parameters())
    if not assign:
        low.to_empty(device="cpu")
    if first == "memory":
        convert(low, BOTH)
    low.load_state_dict(given.state_dict(), assign=assign)
    if assign:
        low.scale = given.scale  # a buffer that is not in low precision is assigned as it is
    for name, p in low.named_parameters():
        assert is_low(p, E4M3) and same(p, rounded(given.state_dict()[name], E4M3))
    want = convert(given, BOTH)
    assert same(low(INPUT), want(INPUT))


def test_moves_keep_the_model_in_its_formats() -> None:
    low = model(BOTH)
    ids = [id(p) for p in low.parameters()]
    with torch.no_grad():  # a graph would hold the parameters where they are
        want = low.eval()(INPUT)
    for moved in (low.to("cpu"), low.float(), low.to(torch.float32), low.cpu(), low.requires_grad_(False)):
        with torch.no_grad():
            assert all(is_low(p, E4M3) for p in moved.parameters()) and same(moved(INPUT), want)
    assert [id(p) for p in low.parameters()] == ids
    images = convert(nn.Conv2d(3, 4, 3), BOTH).to(memory_format=torch.channels_last)
    assert is_low(images.weight, E4M3) and images.weight.stride() == values(images.weight).stride()
    assert images.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_graph_holds_the_parameters_where_they_are() -> None:
    low = convert(nn.Linear(4, 3), BOTH)
    out = low(torch.ones(1, 4, requires_grad=True))  # its backward pass needs the weight
    with pytest.raises(RuntimeError, match="swap"):
        low.to("cpu")
    del out
    assert is_low(low.to("cpu").weight, E4M3)


@pytest.mark.parametrize("cast", [nn.Module.double, nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float64)])
def test_a_cast_of_a_converted_model_says_what_to_do_and_changes_nothing(cast: Callable[[Any], Any]) -> None:
    low = convert(nn.Linear(4, 3), BOTH)
    before = [(id(p), values(p).clone()) for p in low.parameters()]
    with pytest.raises((RuntimeError, TypeError), match=r"lptensor\.convert\(model, None\)"):
        cast(low)
    assert all(is_low(p, E4M3) for p in low.parameters())
    assert all(id(p) == i and same(p, v) for p, (i, v) in zip(low.parameters(), before, strict=True))
    assert cast(convert(low, None)).weight.dtype != torch.float32


# -- lazy modules and parametrizations -------------------------------------------------------------------

LAZY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.LazyLinear(4), (5, 3)),
    "conv": (lambda: nn.LazyConv2d(4, 3), (2, 3, 6, 6)),
    "transposed": (lambda: nn.LazyConvTranspose1d(4, 3), (2, 3, 6)),
    "norm": (lambda: nn.LazyBatchNorm1d(), (5, 3)),
}


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_module_may_be_converted_before_or_after_its_first_call(name: str, when: str) -> None:
    make, shape = LAZY[name]
    x = torch.randn(shape)
    results = []
    for order in (when, "by hand"):
        torch.manual_seed(5)
        module = make()
        if order == "before":
            convert(module, BOTH)
        torch.manual_seed(6)
        with torch.no_grad():
            module.initialize_parameters(x) if order != "before" else None  # type: ignore[operator]
        if order != "before":
            module.eval()(x)
            convert(module.train(), BOTH)
        y = module(x.to_lp(BOTH))  # type: ignore[attr-defined]
        y.sum().backward()
        assert is_low(y, E4M3) and all(is_low(p, E4M3) and is_low(p.grad, E5M2) for p in module.parameters())
        results.append((y, module))
    if name != "norm":
        shapes = [[p.shape for p in m.parameters()] for _, m in results]
        assert shapes[0] == shapes[1]
    loaded = copy.deepcopy(results[0][1])
    loaded.load_state_dict(
        {k: values(v) * 1.03 if v.is_floating_point() else v for k, v in loaded.state_dict().items()}, assign=True
    )
    assert all(is_low(p, E4M3) for p in loaded.parameters())


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


PARAMETRIZATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": lambda m: parametrizations.weight_norm(m),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m),
    "orthogonal": lambda m: parametrizations.orthogonal(m),
    "householder": lambda m: parametrizations.orthogonal(m, orthogonal_map="householder"),
    "cayley": lambda m: parametrizations.orthogonal(m, orthogonal_map="cayley"),
    "symmetric": lambda m: parametrize.register_parametrization(m, "weight", Symmetric()),
    "old weight_norm": lambda m: nn.utils.weight_norm(m),
    "old spectral_norm": lambda m: nn.utils.spectral_norm(m),
    "pruned": lambda m: prune.l1_unstructured(m, "weight", amount=0.5),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_parametrization_may_come_before_or_after_the_conversion(name: str, when: str) -> None:
    module = nn.Linear(4, 4)
    if when == "before":
        PARAMETRIZATIONS[name](module)
    convert(module, BF16)
    if when == "after":
        PARAMETRIZATIONS[name](module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = [values(p).clone() for p in module.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        y = module(torch.randn(5, 4).to_lp(BF16))  # type: ignore[attr-defined]
        assert is_low(y, BF16) and is_low(module.weight, BF16)
        y.square().sum().backward()
        optimizer.step()
    assert all(is_low(p, BF16) and is_low(p.grad, BF16) for p in module.parameters())
    assert not all(same(p, b) for p, b in zip(module.parameters(), before, strict=True))
    if name.startswith("old") or name == "pruned":
        return  # their weight is no leaf, and PyTorch copies no such module either
    twin = copy.deepcopy(module)
    assert same(twin.eval()(torch.ones(1, 4)), module.eval()(torch.ones(1, 4)))


def test_a_parametrization_can_be_removed() -> None:
    module = convert(parametrizations.weight_norm(nn.Linear(4, 4)), BF16)
    weight = module.weight
    parametrize.remove_parametrizations(module, "weight")
    assert is_low(module.weight, BF16) and same(module.weight, weight) and isinstance(module.weight, nn.Parameter)


def test_a_parametrized_weight_takes_low_precision_values() -> None:
    module = convert(nn.Linear(4, 4), E4M3)
    parametrize.register_parametrization(module, "weight", Halved())
    new = torch.randn(4, 4).to_lp(E4M3)  # type: ignore[attr-defined]
    module.weight = new
    assert is_low(module.weight, E4M3) and same(module.weight, new)


class Halved(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w / 2

    def right_inverse(self, w: Tensor) -> Tensor:
        return w * 2


def test_assigned_integers_stay_integers() -> None:
    model = nn.BatchNorm1d(2)
    convert(model, BF16, buffers=True)
    model.load_state_dict({"running_mean": torch.tensor([3, 4])}, strict=False, assign=True)
    assert model.running_mean.dtype == torch.int64 and model.running_mean.tolist() == [3, 4]


@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # that one process saves alone
@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, lambda optimizer: OptimLP(optimizer, acc_quant=BF16)])
def test_a_distributed_checkpoint_brings_a_model_and_its_optimizer_back(tmp_path: Path, wrap: Any) -> None:
    from torch.distributed import checkpoint as saving
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def made(seed: int) -> tuple[Any, Any]:
        net = model(E4M3, seed)
        return net, wrap(torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.5))

    def step(net: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        torch.manual_seed(0)
        net(INPUT).square().mean().backward()
        optimizer.step()

    first, second = made(0), made(1)
    step(*first)
    step(*second)
    saving.save(dict(zip("mo", get_state_dict(*first), strict=True)), checkpoint_id=tmp_path)
    state = dict(zip("mo", get_state_dict(*second), strict=True))
    saving.load(state, checkpoint_id=tmp_path)
    set_state_dict(*second, model_state_dict=state["m"], optim_state_dict=state["o"])
    for both in (first, second):
        step(*both)
    assert_form_kept(second[0], first[0])
    assert all(same(p, q) for p, q in zip(first[0].parameters(), second[0].parameters(), strict=True))
