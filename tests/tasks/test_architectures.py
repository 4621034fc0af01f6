"""Architectures: sizes, shapes, gradients everywhere, plain state dicts, initial weights from the stream alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tasks import architectures
from tasks.architectures import ARCHITECTURES, LeNet5, Normalize, Shape, kind_of, register_architecture
from tasks.checkpoint import load_tree, save_tree
from tasks.errors import BadInput, UnsupportedModel
from tasks.streams import global_stream

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
CASES = [(key, shape) for key in sorted(ARCHITECTURES) for shape in (GREY, COLOUR) if key != "resnet18"]


def build(key: str, shape: Shape) -> nn.Module:
    with global_stream("init"):
        return ARCHITECTURES[key](shape, 10, Normalize((0.5,) * shape[0], (0.25,) * shape[0]))


@pytest.mark.parametrize(
    ("key", "shape", "count"),
    [
        ("lenet5", GREY, 61_706),
        ("lenet5", COLOUR, 62_006),
        ("cnn-mini", GREY, 105_914),
        ("mlp-1200x2", GREY, 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10),
        ("mlp-800x2", GREY, 784 * 800 + 800 + 800 * 800 + 800 + 800 * 10 + 10),
        ("resnet8", COLOUR, 78_042),
        ("resnet18", COLOUR, 11_173_962),
    ],
)
def test_parameter_counts(key: str, shape: Shape, count: int) -> None:
    assert sum(p.numel() for p in build(key, shape).parameters()) == count


@pytest.mark.parametrize(("key", "shape"), CASES)
def test_forward_backward_and_round_trip(key: str, shape: Shape, tmp_path: Path) -> None:
    model = build(key, shape).train()
    inputs = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    logits = model(inputs)
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    save_tree(tmp_path / "m", model.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        fresh = ARCHITECTURES[key](shape, 10, Normalize((0.5,) * shape[0], (0.25,) * shape[0])).eval()
    fresh.load_state_dict(load_tree(tmp_path / "m"))
    with torch.no_grad():
        assert torch.equal(model(inputs), fresh(inputs))
        assert model.double()(inputs.double()).dtype == torch.float64
    assert not any("normalize" in name for name in fresh.state_dict())


def test_initial_weights_depend_on_the_stream_alone() -> None:
    torch.manual_seed(1)
    one = build("lenet5", GREY).state_dict()
    torch.manual_seed(2)
    other = build("lenet5", GREY).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_normalize_is_the_first_module_and_uses_its_constants() -> None:
    for key in ARCHITECTURES:
        assert isinstance(next(build(key, COLOUR).children()), Normalize)
    out = Normalize((0.5, 0.0, 1.0), (0.5, 1.0, 2.0))(torch.ones(1, 3, 1, 1))
    assert out.flatten().tolist() == [1, 1, 0]


def test_relu_after_pooling_is_pooling_after_relu() -> None:
    x = torch.randn(3, 4, 6, 6, requires_grad=True)
    one = nn.functional.relu(nn.functional.max_pool2d(x, 2))
    other = nn.functional.max_pool2d(nn.functional.relu(x), 2)
    assert torch.equal(one, other)
    weights = torch.randn_like(one)
    grads = [torch.autograd.grad((y * weights).sum(), x, retain_graph=True)[0] for y in (one, other)]
    assert torch.equal(*grads)


def test_inputs_too_small_for_lenet() -> None:
    with pytest.raises(UnsupportedModel, match="16x16, got 8x8"):
        build("lenet5", (1, 8, 8))
    assert build("lenet5", (1, 16, 16))(torch.rand(2, 1, 16, 16)).shape == (2, 10)


def wide(shape: Shape, classes: int, normalize: Normalize) -> nn.Module:
    return LeNet5(shape, classes, normalize)


def test_a_plugin_adds_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "_entries", dict(ARCHITECTURES._entries))
    monkeypatch.setattr(architectures, "_KINDS", {})
    register_architecture("wide", wide)
    assert kind_of("wide") == "image"
    again = type(wide)(wide.__code__, globals(), "wide")  # what executing the plugin's file a second time defines
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
