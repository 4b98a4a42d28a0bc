"""lower rounds the outputs of chosen layers, and the gradients that enter them."""

import copy
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import lptensor
from low import through_file
from lptensor.convert import convert
from lptensor.formats import BF16, E4M3, E5M2, FixedPoint, FloatingPoint
from lptensor.layer_types import GROUPS
from lptensor.lower import lower
from oracles.low_precision import CastBothWays, through

FP8 = torch.float8_e5m2
Pair = namedtuple("Pair", "first second")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def nearest(model, layer_type, forward=E5M2, backward=E5M2):
    return lower(model, layer_type, forward, backward, "nearest", "nearest")


def small_net():
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(1, 4, 3), relu=nn.ReLU(True), flat=nn.Flatten(), out=nn.Linear(64, 3))
    )


def on_grid(x, dtype=FP8):
    return torch.equal(x, through(dtype)(x))


class Returns(nn.Linear):
    """A linear layer that hands its result over in whatever ``wrap`` makes of it."""

    def __init__(self, wrap):
        super().__init__(4, 4)
        self.wrap = wrap

    def forward(self, x, *, scale=1.0):
        return self.wrap(super().forward(x) * scale)


def test_a_training_pass_is_the_one_written_by_hand():
    net, x, target = small_net(), torch.randn(5, 1, 6, 6), torch.randint(3, (5,))
    leaves = [x.requires_grad_(), *net.parameters()]
    hidden = CastBothWays.apply(F.conv2d(x, *net.conv.parameters()), FP8, torch.float16).relu()
    by_hand = CastBothWays.apply(F.linear(hidden.flatten(1), *net.out.parameters()), FP8, torch.float16)
    expected = torch.autograd.grad(F.cross_entropy(by_hand, target), leaves)
    out = nearest(net, ["conv", "linear"], FloatingPoint(8), FloatingPoint(16))(x)
    assert torch.equal(out, by_hand)
    for got, wanted in zip(torch.autograd.grad(F.cross_entropy(out, target), leaves), expected, strict=True):
        assert torch.equal(got, wanted)


def test_rounding_is_stochastic_by_default_in_both_directions():
    relu = lower(nn.Sequential(nn.ReLU()), "activation", FloatingPoint(8), FloatingPoint(8))
    x = torch.full((10_000,), 1.0625, requires_grad=True)
    y = relu(x)
    (y * 1.0625).sum().backward()
    assert set(y.tolist()) == {1.0, 1.25} == set(x.grad.tolist())
    assert (y.detach() == x.grad).double().mean() < 1, "each direction draws its own numbers"


EXAMPLES = {
    "conv": (nn.Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5)),
    "linear": (nn.Linear(5, 3), torch.randn(2, 5)),
    "pool": (nn.AvgPool2d(3), torch.randn(2, 2, 6, 6)),
    "pad": (nn.ZeroPad2d(1), torch.randn(2, 2, 6, 6)),
    "activation": (nn.Tanh(), torch.randn(2, 5)),
    "normalization": (nn.BatchNorm1d(5), torch.randn(4, 5)),
    "dropout": (nn.Dropout(0.3), torch.randn(20, 5)),
    "loss": (nn.MSELoss(), torch.randn(2, 5), torch.randn(2, 5)),
    "rnn": (nn.GRUCell(5, 3), torch.randn(2, 5)),
    "embedding": (nn.Embedding(7, 3), torch.arange(7)),
    "attention": (nn.MultiheadAttention(4, 2), *torch.randn(3, 5, 2, 4)),
}


@pytest.mark.parametrize("group", GROUPS)
def test_each_group_rounds_its_own_layers_and_no_others(group):
    net = nn.ModuleDict({name: copy.deepcopy(layer) for name, (layer, *_) in EXAMPLES.items()})
    nearest(net, group)
    for name, (_, *args) in EXAMPLES.items():
        out = net[name](*args)
        out = out[0] if isinstance(out, tuple) else out
        assert on_grid(out) == (name == group), name


def test_all_means_every_group():
    net = nearest(nn.ModuleDict({name: copy.deepcopy(layer) for name, (layer, *_) in EXAMPLES.items()}), "all")
    for name, (_, *args) in EXAMPLES.items():
        out = net[name](*args)
        assert on_grid(out[0] if isinstance(out, tuple) else out)


# The layers that QPyTorch's lower knows, from its documentation of layer_types.
QPYTORCH = {
    "conv": "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Unfold Fold",
    "pool": "MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d AvgPool1d AvgPool2d AvgPool3d "
    "FractionalMaxPool2d LPPool1d LPPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d "
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d",
    "pad": "ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d ZeroPad2d "
    "ConstantPad1d ConstantPad2d ConstantPad3d",
    "activation": "ELU Hardshrink Hardtanh LeakyReLU LogSigmoid PReLU ReLU ReLU6 RReLU SELU Sigmoid Softplus "
    "Softshrink Softsign Tanh Tanhshrink Threshold Softmin Softmax Softmax2d LogSoftmax",
    "normalization": "BatchNorm1d BatchNorm2d BatchNorm3d GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d "
    "LayerNorm LocalResponseNorm",
    "linear": "Linear Bilinear",
    "dropout": "Dropout Dropout2d Dropout3d AlphaDropout",
    "loss": "L1Loss MSELoss CrossEntropyLoss NLLLoss PoissonNLLLoss KLDivLoss BCELoss BCEWithLogitsLoss "
    "MarginRankingLoss HingeEmbeddingLoss MultiLabelMarginLoss SmoothL1Loss SoftMarginLoss "
    "MultiLabelSoftMarginLoss MultiMarginLoss TripletMarginLoss",
}


@pytest.mark.parametrize("group", QPYTORCH)
def test_groups_hold_what_qpytorch_users_expect(group):
    assert {getattr(nn, name) for name in QPYTORCH[group].split()} <= set(GROUPS[group])


def test_every_layer_of_torch_is_in_one_group_or_known_to_be_in_none():
    structure = (
        "AdaptiveLogSoftmaxWithLoss ChannelShuffle Container CosineSimilarity DataParallel Flatten Identity "
        "Module ModuleDict ModuleList PairwiseDistance ParameterDict ParameterList PixelShuffle PixelUnshuffle "
        "Sequential Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder "
        "TransformerEncoderLayer Unflatten Upsample UpsamplingBilinear2d UpsamplingNearest2d"
    ).split()
    grouped = [cls for group in GROUPS.values() for cls in group]
    assert len(grouped) == len(set(grouped))
    public = {cls for cls in vars(nn).values() if isinstance(cls, type) and issubclass(cls, nn.Module)}
    assert {cls.__name__ for cls in public - set(grouped)} == set(structure)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, None),
        lambda y: [y, {"y": y, "n": 3, "on": True, "x": 0.1}],
        lambda y: Pair(y, (y, y.argmax())),
        lambda y: OrderedDict(y=y),
    ],
)
def test_nested_outputs_keep_their_structure_and_are_rounded_all_over(wrap):
    layer = nearest(Returns(wrap), "linear")
    x = torch.randn(3, 4)
    plain = wrap(through(FP8)(F.linear(x, layer.weight, layer.bias) * 0.75))
    got = layer(x, scale=0.75)
    assert type(got) is type(plain)
    torch.testing.assert_close(got, plain, rtol=0, atol=0)


def test_an_output_that_hides_tensors_is_an_error_that_names_it():
    layer = nearest(Returns(lambda y: {1.5, y}), "linear")
    with pytest.raises(TypeError, match="Returns: it holds a set"):
        layer(torch.randn(3, 4))


def test_an_lstm_rounds_its_output_and_both_states():
    lstm, x = nearest(nn.LSTM(3, 4, 2, bidirectional=True), "rnn"), torch.randn(6, 2, 3)
    out, (h, c) = lstm(x, (torch.zeros(4, 2, 4), torch.zeros(4, 2, 4)))
    assert on_grid(out) and on_grid(h) and on_grid(c)
    (out.sum() + c.sum()).backward()
    assert all(p.grad is not None for p in lstm.parameters())


def test_packed_sequences_stay_packed():
    packed = pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    out, _ = nearest(nn.GRU(3, 4), "rnn")(packed)
    assert type(out) is PackedSequence and on_grid(out.data)
    assert torch.equal(out.batch_sizes, packed.batch_sizes)


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_keeps_its_pair_and_its_keywords(need_weights):
    attention, x = nearest(nn.MultiheadAttention(4, 2, batch_first=True), "attention"), torch.randn(2, 5, 4)
    out, weights = attention(x, x, x, need_weights=need_weights)
    assert on_grid(out)
    assert on_grid(weights) if need_weights else weights is None


def test_indices_of_a_pool_are_left_alone():
    x = torch.randn(1, 1, 4, 4)
    out, indices = nearest(nn.MaxPool2d(2, return_indices=True), "pool")(x)
    assert torch.equal(x.flatten()[indices], nn.MaxPool2d(2)(x)) and on_grid(out)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("padded", [True, False])
def test_a_transformer_rounds_in_evaluation_too(padded):
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    nearest(net, ["normalization"], E4M3).eval()
    mask = torch.tensor([[False] * 3 + [True] * 2, [False] * 5]) if padded else None
    with torch.inference_mode():
        out = net(torch.randn(2, 5, 8), src_key_padding_mask=mask)
    assert on_grid(out, torch.float8_e4m3fn)


def test_projections_inside_attention_are_no_linear_layers():
    net = nearest(nn.TransformerEncoderLayer(8, 2, 16), "linear")
    assert not net.self_attn.out_proj._forward_hooks
    assert net.linear1._forward_hooks and net.linear2._forward_hooks


def test_the_model_keeps_its_parameters_classes_and_keys():
    net = small_net()
    before = dict(net.named_parameters()), [type(m) for m in net.modules()], list(net.state_dict()), repr(net)
    assert nearest(net, "all") is net
    after = dict(net.named_parameters()), [type(m) for m in net.modules()], list(net.state_dict()), repr(net)
    assert before[1:] == after[1:]
    assert all(before[0][name] is p for name, p in after[0].items())


def saved_and_loaded(model):
    return through_file(model, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
def test_copies_and_pickles_round_on_their_own(again):
    net, x = nearest(small_net(), ["conv", "linear"]), torch.randn(2, 1, 6, 6)
    twin = again(net)
    assert torch.equal(twin(x), net(x)) and on_grid(twin(x))
    lower(net, ["conv", "linear"])
    assert on_grid(twin(x)) and not on_grid(net(x))


def test_hooks_registered_after_loading_do_not_replace_the_rounding(monkeypatch):
    dumped = pickle.dumps(nearest(nn.Sequential(nn.Linear(4, 4)), "linear"))
    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "next_id", 0)  # as in a new process
    net, seen = pickle.loads(dumped), []
    for _ in range(5):
        net[0].register_forward_hook(lambda module, args, output: seen.append(on_grid(output)))
    net(torch.randn(3, 4))
    assert seen == [True] * 5


def test_a_second_call_replaces_the_first_and_an_empty_one_takes_it_away():
    net, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    plain = net(x)
    assert torch.equal(nearest(net, "linear", FixedPoint(4, 2))(x), (plain * 4).round().clamp(-8, 7) / 4)
    assert torch.equal(nearest(net, "linear", E4M3)(x), through(torch.float8_e4m3fn)(plain))
    assert torch.equal(lower(net, "linear")(x), plain)


def test_a_shared_layer_is_rounded_once_per_call():
    layer = nn.Linear(4, 4)
    net = lower(nn.Sequential(layer, nn.Tanh(), layer), "linear", E5M2)
    assert len(layer._forward_hooks) == 1
    assert on_grid(net(torch.randn(3, 4)))


def test_subclasses_parametrized_and_lazy_layers_count():
    net = nn.Sequential(nn.LazyConv2d(3, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 1)))
    x = torch.randn(2, 1, 5, 5)
    nearest(net, ["conv"])
    assert on_grid(net(x)) and on_grid(net[0](x)) and type(net[0]) is nn.Conv2d


def test_module_classes_name_layers_too():
    net, x = small_net(), torch.randn(2, 1, 6, 6)
    nearest(net, [nn.Conv2d, "linear"])
    assert on_grid(net.conv(x)) and on_grid(net(x))
    assert not nearest(small_net(), nn.Linear).conv._forward_hooks


def test_a_module_class_outside_the_groups_can_be_named():
    x = torch.randn(5)
    assert on_grid(nearest(nn.Sequential(nn.Identity()), nn.Identity)(x)) and not on_grid(x)


class Turned(nn.Module):
    """A linear layer that extends none of torch.nn, as transformers' Conv1D."""

    def __init__(self, n, *blocks):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, 8))
        self.bias = nn.Parameter(torch.randn(8))
        self.blocks = nn.ModuleList(blocks)


def test_layers_of_ones_own_that_hold_many_of_the_numbers_are_named_in_a_warning(recwarn):
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(1, 1))
    model = Turned(9, nn.Linear(16, 8), nn.Sequential(Turned(1), nn.Linear(2, 4)), normed)  # 80 to 138 numbers
    with pytest.warns(UserWarning, match=r"leaves Turned alone, .* numbers of Turned .*\['linear', Turned\]"):
        lower(model, ["conv", "linear"], E4M3)
    assert not model._forward_hooks and model.blocks[0]._forward_hooks
    lower(model, "all")  # which takes away
    lower(model, ["activation", nn.Conv2d, "linear", Turned], E4M3)  # all that there is
    few = nn.Sequential(Turned(8), nn.Linear(16, 8), nn.Embedding(1000, 8))
    lower(few, "linear", E4M3)  # 64 to 128 is not more than half
    lower(nn.Sequential(Turned(100), nn.ReLU()), "activation", E4M3)  # nobody asked for products
    lower(nn.Sequential(Turned(8), nn.Linear(16, 8), nn.LazyLinear(3)), "linear", E4M3)  # it has no numbers yet
    assert not recwarn


def test_a_converted_model_can_be_lowered_and_keeps_its_arithmetic():
    net, x = convert(nn.Sequential(nn.Linear(4, 4)), BF16), torch.randn(3, 4).to_lp(BF16)
    plain = net(x)
    out = nearest(net, "linear", E5M2, E5M2)(x)
    assert out.format == BF16 and torch.equal(out.dequantize(), through(FP8)(plain.dequantize()))


def test_checkpointing_rounds_the_same_way_twice():
    from torch.utils.checkpoint import checkpoint

    net, x = lower(small_net(), "all", E5M2, E5M2), torch.randn(2, 1, 6, 6)
    grads = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=False)):
        torch.manual_seed(3)
        out = run(x)
        torch.manual_seed(4)
        grads.append(torch.autograd.grad(out.sum(), net.parameters(), retain_graph=True))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def message(error, model, *args, **kwargs):
    with pytest.raises(error) as caught:
        lower(model, *args, **kwargs)
    return str(caught.value)


def test_bad_input_is_named_and_changes_nothing():
    net = small_net()
    known = message(ValueError, net, ["conv", "cnov"], E5M2)
    assert "'cnov'" in known and all(group in known for group in GROUPS)
    assert "3" in message(TypeError, net, ["conv", 3], E5M2)
    assert "3" in message(TypeError, net, 3, E5M2)
    assert "Tensor" in message(TypeError, net, [torch.Tensor], E5M2)
    assert "layer_type" in message(TypeError, net)
    assert "layer_type" in message(TypeError, net, "conv", E5M2, layer_types="conv")
    assert "names no layers" in message(ValueError, net, [], E5M2)
    assert "forward_number" in message(TypeError, net, "conv", 8)
    assert "backward_number" in message(TypeError, net, "conv", E5M2, "fp8")
    assert "'off'" in message(ValueError, net, "conv", E5M2, None, "off")
    assert "Module" in message(TypeError, [net], "conv", E5M2)
    none = message(ValueError, net, ["rnn", nn.Conv3d], E5M2)
    assert "rnn" in none and "Conv3d" in none and "Conv2d" in none
    assert not any(module._forward_hooks for module in net.modules())


def test_layer_types_is_the_same_as_layer_type():
    x = torch.randn(2, 1, 6, 6)
    net = lower(small_net(), layer_types=["linear"], forward_number=E5M2, forward_rounding="nearest")
    assert on_grid(net(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_rounding_is_a_part_of_what_jit_traces(grad: bool) -> None:
    net = lower(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), ["linear", "activation"], E4M3, forward_rounding="nearest")
    x = torch.randn(5, 3)
    for function in (net, lambda x: lptensor.round(x, E4M3)):
        with torch.set_grad_enabled(grad):
            traced = torch.jit.trace(function, torch.randn(5, 3), check_trace=False)
            assert torch.equal(traced(x), function(x))


def test_a_format_that_the_outputs_cannot_have_is_refused_at_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    for numbers in ((FixedPoint(32, 10), None), (None, FixedPoint(32, 10))):
        with pytest.raises(ValueError, match=r"FixedPoint\(wl=32, fl=10\) needs more than the 24 bits of float32"):
            lower(net, ["linear"], *numbers)
    double = lower(nn.Sequential(nn.ReLU()), ["activation"], FixedPoint(32, 10))  # which takes what it gets
    assert double(torch.ones(3, dtype=torch.float64)).tolist() == [1, 1, 1]
    lower(net.double(), ["linear"], FixedPoint(32, 10))
    assert net(torch.ones(1, 3, dtype=torch.float64)).dtype == torch.float64


def test_a_layer_is_exempt_by_each_of_its_paths():
    shared = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(2, 2)})
    lower(net, "linear", E5M2, exempt=["b"])
    assert not shared._forward_hooks and net["c"]._forward_hooks


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_stay_so_and_are_rounded(layout):
    x = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=layout)
    for layer in (nn.Linear(4, 4), nn.ReLU()):
        with torch.no_grad():
            out = nearest(layer, [type(layer)])(x)
        assert out.is_nested and out.layout is layout and [len(t) for t in out.unbind()] == [2, 3]
        assert all(on_grid(t) for t in out.unbind())


def test_what_is_no_tensor_passes_and_what_lies_deep_is_rounded():
    @dataclass
    class Result:
        of: dict

    class Layer(nn.Linear):
        def forward(self, x):
            return "said", Result({"deep": [super().forward(x), None]})

    said, result = nearest(Layer(4, 4), [Layer])(torch.randn(3, 4))
    assert said == "said" and on_grid(result.of["deep"][0]) and result.of["deep"][1] is None
