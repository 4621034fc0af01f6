"""Architectures: sizes, shapes, gradients everywhere, plain state dicts, initial weights from the stream alone."""

from itertools import pairwise
from pathlib import Path
from types import FunctionType

import pytest
import torch
from torch import Tensor, fx, nn

from assay.tasks.errors import BadInput, UnsupportedModel
from assay.tasks.networks import architectures
from assay.tasks.networks.architectures import ARCHITECTURES, Normalize, Shape, kind_of, register_architecture
from assay.tasks.networks.classic import LeNet5
from assay.tasks.networks.mobile import InvertedResidual, ShuffleUnit
from assay.tasks.networks.plain import TRAFFIC, Plan
from assay.tasks.networks.text import LSTM, TextCNN
from assay.tasks.streams import global_stream
from assay.tasks.training.checkpoint import load_tree, save_tree

GREY, COLOUR, LARGE, FACE, TEXT = (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 55, 47), (12,)
VOCABULARY = 40
BIG = {"alexnet", "alexnet-bn", "mobilenetv2", "resnet18", "resnet18-nobn", "shufflenetv2", "vgg16"}
IMAGES = sorted(key for key in ARCHITECTURES if kind_of(key) == "image")
TEXTS = sorted(key for key in ARCHITECTURES if kind_of(key) == "text")
CASES = [
    *((key, COLOUR) for key in IMAGES if key != "deepid"),
    *((key, GREY) for key in IMAGES if key not in BIG and key != "deepid"),
    ("deepid", FACE),
    *((key, TEXT) for key in TEXTS),
]


def fresh(key: str, shape: tuple[int, ...], classes: int = 10) -> nn.Module:
    """Build from torch's global generator as it stands."""
    third = Normalize((0.5,) * shape[0], (0.25,) * shape[0]) if len(shape) == 3 else VOCABULARY
    return ARCHITECTURES[key](shape, classes, third)


def build(key: str, shape: tuple[int, ...], classes: int = 10) -> nn.Module:
    with global_stream("init"):
        return fresh(key, shape, classes)


def samples(shape: tuple[int, ...], count: int = 2) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    if len(shape) == 3:
        return torch.rand(count, *shape, generator=draws)
    return torch.randint(1, VOCABULARY, (count, *shape), generator=draws)


# The numbers of parameters that the soft-label-perturbation paper prints (table 10).
@pytest.mark.parametrize(
    ("key", "count"),
    [("resnet18", 11_173_962), ("mobilenetv2", 2_254_090), ("shufflenetv2", 1_268_646), ("preresnet20", 272_282)],
)
def test_parameter_counts_as_printed(key: str, count: int) -> None:
    assert sum(p.numel() for p in build(key, COLOUR).parameters()) == count


def dense(*sizes: int) -> int:
    """Count the parameters of dense layers."""
    return sum(a * b + b for a, b in pairwise(sizes))


def conv(kernel: int, *channels: int) -> int:
    """Count the parameters of convolutions with biases."""
    return sum(a * b * kernel**2 + b for a, b in pairwise(channels))


@pytest.mark.parametrize(
    ("key", "shape", "classes", "count"),
    [
        ("lenet5", GREY, 10, 61_706),
        ("lenet5", COLOUR, 10, 62_006),
        ("cnn-mini", GREY, 10, 105_914),
        ("mlp-1200x2", GREY, 10, dense(784, 1200, 1200, 10)),
        ("mlp-800x2", GREY, 10, dense(784, 800, 800, 10)),
        ("mlp-400x2", GREY, 10, dense(784, 400, 400, 10)),
        ("mlp-300x2", GREY, 10, dense(784, 300, 300, 10)),
        ("mlp-256x2", GREY, 10, dense(784, 256, 256, 10)),
        ("resnet8", COLOUR, 10, 78_042),
        # Without batch norm's two per channel, but with a bias per channel.
        ("resnet18-nobn", COLOUR, 10, 11_173_962 - (5 * 64 + 5 * 128 + 5 * 256 + 5 * 512)),
        # He et al.'s parameter-free shortcuts would leave the two 1x1 convolutions out.
        ("preresnet20", COLOUR, 10, 269_722 + 16 * 32 + 32 * 64),
        ("conv2-fc2", GREY, 10, conv(5, 1, 32, 64) + dense(4 * 4 * 64, 512, 10)),
        ("conv6-fc3", (3, 48, 48), 43, conv(3, 3, 32, 32, 64, 64, 128, 128) + dense(6 * 6 * 128, 512, 512, 43)),
        ("conv6-fc3-half", COLOUR, 43, conv(3, 3, 16, 16, 32, 32, 64, 64) + dense(4 * 4 * 64, 256, 256, 43)),
        ("cnn-4conv2fc", COLOUR, 10, conv(3, 3, 64, 64, 128, 128) + dense(5 * 5 * 128, 256, 256, 10)),
        ("cnn-3conv2fc", COLOUR, 10, conv(3, 3, 64, 64, 128) + dense(6 * 6 * 128, 200, 200, 10)),
        ("convnet-p", GREY, 10, conv(5, 1, 16, 32) + dense(7 * 7 * 32, 128, 10)),
        ("convnet-p-wide", COLOUR, 20, conv(5, 3, 32, 64) + dense(8 * 8 * 64, 256, 20)),
        ("convnet-p-half", GREY, 10, conv(5, 1, 8, 16) + dense(7 * 7 * 16, 64, 10)),
        ("convnet-p-quarter", GREY, 10, conv(5, 1, 4, 8) + dense(7 * 7 * 8, 32, 10)),
        ("deepid", FACE, 1283, 601_643),
        ("alexnet", COLOUR, 10, conv(5, 3, 64, 192) + conv(3, 192, 384, 256, 256) + dense(4 * 4 * 256, 10)),
        ("alexnet-bn", COLOUR, 10, 2_492_234 + 64 + 192 + 384 + 256 + 256),
        ("vgg16", COLOUR, 100, 14_774_436),
        ("textcnn", TEXT, 6, 300 * VOCABULARY + 362_106),
        ("lstm", TEXT, 6, 300 * VOCABULARY + 572_934),
    ],
)
def test_parameter_counts(key: str, shape: tuple[int, ...], classes: int, count: int) -> None:
    assert sum(p.numel() for p in build(key, shape, classes).parameters()) == count


@pytest.mark.parametrize(("key", "shape"), CASES)
def test_forward_backward_and_round_trip(key: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    model, inputs = build(key, shape).train(), samples(shape)
    logits = model(inputs)
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.dim() == 1 or p.grad.any(), name  # a bias in front of batch norm has none
    model.eval()
    save_tree(tmp_path / "m", model.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        other = fresh(key, shape).eval()
    other.load_state_dict(load_tree(tmp_path / "m"))
    with torch.no_grad():
        assert torch.equal(model(inputs), other(inputs))
    assert not any("normalize" in name or "positions" in name for name in other.state_dict())


@pytest.mark.parametrize(("key", "shape"), CASES)
def test_precision_tracing_and_dropout(key: str, shape: tuple[int, ...]) -> None:
    model, inputs = build(key, shape).eval(), samples(shape)
    with torch.no_grad():
        logits = model(inputs)
        assert torch.equal(model(inputs), logits)
        assert torch.equal(fx.symbolic_trace(model)(inputs), logits)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(inputs).float() - logits).abs().max() < 0.05 * logits.abs().max() + 0.01
        with torch.random.fork_rng(devices=[]):
            drops = any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
            assert torch.equal(model.train()(inputs), model(inputs)) is not drops
        double = build(key, shape).double().eval()(inputs.double() if len(shape) == 3 else inputs)
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), logits, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("key", sorted(set(IMAGES) - {"resnet18", "resnet18-nobn", "vgg16"}))
def test_images_of_64_pixels(key: str) -> None:
    with torch.no_grad():
        assert build(key, LARGE, 7).eval()(samples(LARGE)).shape == (2, 7)


@pytest.mark.parametrize(("key", "shape"), [(key, TEXT if kind_of(key) == "text" else LARGE) for key in ARCHITECTURES])
def test_initial_weights_depend_on_the_stream_alone(key: str, shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one, free = build(key, shape).state_dict(), fresh(key, shape).state_dict()
        torch.manual_seed(2)
        other = build(key, shape).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], free[name]) for name in one)


def test_normalize_is_the_first_module_and_uses_its_constants() -> None:
    for key in IMAGES:
        model = build(key, LARGE)
        assert isinstance(next(model.children()), Normalize)
        assert isinstance(model.normalize, Normalize)
    out = Normalize((0.5, 0.0, 1.0), (0.5, 1.0, 2.0))(torch.ones(1, 3, 1, 1))
    assert out.flatten().tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("lenet5", (1, 8, 8), "16x16, got 8x8"),
        ("vgg16", GREY, "vgg16 needs images of at least 32x32, got 28x28"),
        ("alexnet", (3, 7, 32), "8x8, got 7x32"),
        ("deepid", GREY, "31x31, got 28x28"),
        ("conv2-fc2", (1, 15, 28), "16x16, got 15x28"),
        ("conv6-fc3", (1, 7, 7), "8x8, got 7x7"),
        ("cnn-4conv2fc", (1, 8, 8), "16x16, got 8x8"),
        ("textcnn", (4,), "at least 5 tokens, got 4"),
    ],
)
def test_inputs_that_are_too_small(key: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words) as refused:
        build(key, shape)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("key", "side"), [("lenet5", 16), ("vgg16", 32), ("alexnet", 8), ("deepid", 31)])
@pytest.mark.parametrize("odd", [0, 1])
def test_the_smallest_inputs(key: str, side: int, odd: int) -> None:
    shape = (1, side + odd, side + odd)
    assert build(key, shape).eval()(samples(shape)).shape == (2, 10)


@pytest.mark.parametrize("key", ["conv2-fc2", "conv6-fc3", "cnn-4conv2fc", "cnn-3conv2fc", "convnet-p"])
def test_plans_foresee_the_size_of_the_last_maps(key: str) -> None:
    for side in (16, 17, 23, 30):
        shape = (1, side, side + 3)
        assert build(key, shape).eval()(samples(shape)).shape == (2, 10)


def test_plans_scale_in_width() -> None:
    assert TRAFFIC.times(1 / 2) == Plan(((16, 16), (32, 32), (64, 64)), (256, 256), 3, 1)


def test_a_shuffle_unit_passes_half_of_the_channels() -> None:
    unit, x = ShuffleUnit(8, 8, 1).eval(), torch.randn(2, 8, 5, 5)
    assert torch.equal(unit(x)[:, ::2], x[:, :4])
    assert ShuffleUnit(8, 12, 2).eval()(x).shape == (2, 12, 3, 3)


def test_an_inverted_residual_adds_its_input_where_it_can() -> None:
    x = torch.randn(2, 8, 5, 5)
    same, strided, wider = (InvertedResidual(8, *numbers, 6).eval() for numbers in ((8, 1), (8, 2), (12, 1)))
    assert torch.equal(same(x), x + same.body(x))
    assert torch.equal(strided(x), strided.body(x))
    assert torch.equal(wider(x), wider.body(x))


def test_the_lstm_reads_up_to_the_last_word() -> None:
    model = build("lstm", TEXT).eval()
    assert isinstance(model, LSTM)
    tokens = samples(TEXT, 3)
    tokens[0, 5:], tokens[1, 1:] = 0, 0
    for row, length in ((0, 5), (1, 1), (2, 12)):
        alone = model.fc(model.lstm(model.embedding(tokens[row : row + 1, :length]))[1][0][0])
        assert torch.allclose(model(tokens)[row], alone[0], atol=1e-6)
    longer = build("lstm", (20,)).eval()
    assert torch.allclose(longer(torch.nn.functional.pad(tokens, (0, 8))), model(tokens), atol=1e-6)
    assert model(torch.zeros(1, 12, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("key", TEXTS)
def test_padding_is_never_trained(key: str) -> None:
    model = build(key, TEXT)
    assert isinstance(model, (LSTM, TextCNN))
    tokens = samples(TEXT)
    tokens[:, 4:] = 0
    model(tokens).sum().backward()
    assert model.embedding.weight.grad is not None
    assert not model.embedding.weight[0].any()
    assert not model.embedding.weight.grad[0].any()
    assert model.embedding.weight.grad[tokens[0, 0]].any()
    assert torch.equal(model.eval()(tokens.int()), model(tokens))


def test_relu_after_pooling_is_pooling_after_relu() -> None:
    x = torch.randn(3, 4, 6, 6, requires_grad=True)
    one = nn.functional.relu(nn.functional.max_pool2d(x, 2))
    other = nn.functional.max_pool2d(nn.functional.relu(x), 2)
    assert torch.equal(one, other)
    weights = torch.randn_like(one)
    grads = [torch.autograd.grad((y * weights).sum(), x, retain_graph=True)[0] for y in (one, other)]
    assert torch.equal(*grads)


def wide(shape: Shape, classes: int, normalize: Normalize) -> nn.Module:
    return LeNet5(shape, classes, normalize)


def test_a_plugin_adds_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "_entries", dict(ARCHITECTURES._entries))
    monkeypatch.setattr(architectures, "_KINDS", {})
    register_architecture("wide", wide)
    assert kind_of("wide") == "image"
    again = FunctionType(wide.__code__, globals(), "wide")  # what executing the plugin's file a second time defines
    assert again is not wide
    register_architecture("wide", again)
    assert isinstance(build("wide", GREY), LeNet5)
    for key in ("wide", "lenet5"):
        with pytest.raises(BadInput, match=f"architecture '{key}' is registered already"):
            register_architecture(key, lambda shape, classes, normalize: nn.Linear(1, 1))
    with pytest.raises(BadInput, match="lower-case"):
        register_architecture("Wide Net", wide)
    register_architecture("words", wide, kind="text")
    assert kind_of("words") == "text"
