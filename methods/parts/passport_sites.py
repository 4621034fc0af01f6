"""Where passports can live in a network, and what they can be made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from assay.methods.parts.passport import PassportLayer
from assay.tasks.errors import UnsupportedModel, unknown
from assay.tasks.networks.architectures import Shape

KeyType = Literal["random", "image", "shuffle"]


@dataclass(frozen=True)
class Site:
    """A convolution directly followed by batch norm: names, shapes (C, H, W), and whether it sees the image itself."""

    conv: str
    norm: str
    inputs: Shape
    outputs: Shape
    first: bool


def find_sites(model: nn.Module, shape: tuple[int, ...]) -> list[Site]:
    """Return every convolution whose output goes unchanged into an affine batch norm, in the order of execution.

    Found by following one blank image of `shape` through the network, not by names.
    """
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, tuple[nn.Module, Shape, Tensor]] = {}  # by the output's identity; kept alive, so ids stay unique
    sites: list[Site] = []

    def follow(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, _shape(args[0]), output)
        elif module.weight is not None and id(args[0]) in made:
            conv, inputs, _ = made[id(args[0])]
            first = conv is next(iter(made.values()))[0]
            sites.append(Site(names[conv], names[module], inputs, _shape(output), first))

    watched = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    handles = [module.register_forward_hook(follow) for module in watched]
    mode = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape, device=next(model.parameters()).device))
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    return sites


def _shape(batch: Tensor) -> Shape:
    channels, height, width = batch.shape[1:]
    return channels, height, width


def choose_sites(sites: Sequence[Site], wanted: str | Sequence[str]) -> list[Site]:
    """Return the sites of the named convolutions or, for `auto`, those at the last site's resolution but the first.

    `auto` gives the published choices: blocks 4 to 6 of AlexNet, the five convolutions of ResNet-18's stage 4.

    Raises:
        UnsupportedModel: the network has no such site.
        BadInput: a name that is no site.
    """
    if isinstance(wanted, str):
        chosen = [site for site in sites if not site.first and site.outputs[1:] == sites[-1].outputs[1:]]
        if not chosen:
            raise UnsupportedModel("passports need a convolution followed by batch norm, behind the first convolution")
        return chosen
    known = {site.conv: site for site in sites}
    if not known:
        raise UnsupportedModel("passports need a convolution followed by batch norm; the network has none")
    for name in wanted:
        if name not in known:
            raise unknown("passport layer", name, known, "layers")
    return [known[name] for name in wanted]


def layer_inputs(model: nn.Module, images: Tensor, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Return what reaches each site's convolution (N, C, H, W) in eval mode, by its name, for model inputs `images`."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(site.conv).register_forward_pre_hook(
            lambda _module, args, name=site.conv: seen.__setitem__(name, args[0].detach().cpu())
        )
        for site in sites
    ]
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def shuffled_channels(activations: Tensor, generator: torch.Generator) -> Tensor:
    """Return a passport (1, C, H, W) pieced together from activations (N, C, H, W) of N images.

    Channel c takes, round-robin over the images in random order, a random channel of that image not yet used.
    """
    count, channels = activations.shape[:2]
    image = torch.randperm(count, generator=generator)[torch.arange(channels) % count]
    unused = torch.rand(count, channels, generator=generator).argsort(1)  # each image's channels in random order
    return activations[image, unused[image, torch.arange(channels) // count]].unsqueeze(0)


@dataclass(frozen=True)
class Material:
    """What passports of one network are drawn from; computed once for any number of draws.

    Attributes:
        sites: the passport layers.
        kernels, geometries: shape of each convolution's weight, and its keyword arguments.
        activations: inputs (N, C, H, W) of each convolution for N images; None for random passports.
    """

    sites: list[Site]
    kernels: list[list[int]]
    geometries: list[dict[str, Any]]
    activations: list[Tensor] | None

    @staticmethod
    def of(model: nn.Module, sites: list[Site], images: Tensor | None) -> Material:
        """Describe `sites` of `model`; with model inputs `images`, keep what reaches them."""
        kernels, geometries = [], []
        for site in sites:
            conv = model.get_submodule(site.conv)
            assert isinstance(conv, nn.Conv2d)
            padding = conv.padding if isinstance(conv.padding, str) else list(conv.padding)
            shape = {"stride": list(conv.stride), "dilation": list(conv.dilation), "groups": conv.groups}
            kernels.append(list(conv.weight.shape))
            geometries.append({**shape, "padding": padding})
        seen = layer_inputs(model, images, sites) if images is not None else {}
        return Material(sites, kernels, geometries, [seen[site.conv] for site in sites] if seen else None)

    @property
    def channels(self) -> list[int]:
        """Output channels, hence bits, of each site."""
        return [site.outputs[0] for site in self.sites]

    def layers(self, bits: Tensor, images: int, key_type: KeyType, draws: torch.Generator) -> list[PassportLayer]:
        """Draw a scale and a bias passport per site.

        Args:
            bits: wanted signs of all sites (sum of channels,).
            images: how many images a shuffled passport is pieced together from.
            key_type: uniform noise in [-1, 1), one image's activation, or shuffled channels of several.
            draws: the secret's generator.
        """
        layers = []
        for place, (site, own) in enumerate(zip(self.sites, bits.split(self.channels), strict=True)):
            scale, bias = (self._passport(place, images, key_type, draws) for _ in range(2))
            kernel, geometry = self.kernels[place], self.geometries[place]
            layers.append(PassportLayer(site.conv, site.norm, kernel, geometry, scale, bias, own.clone()))
        return layers

    def _passport(self, place: int, images: int, key_type: KeyType, draws: torch.Generator) -> Tensor:
        if self.activations is None:
            return torch.rand(1, *self.sites[place].inputs, generator=draws) * 2 - 1
        chosen = torch.randperm(len(self.activations[place]), generator=draws)[:images]
        if key_type == "image" or self.sites[place].first:  # the image itself is never pieced together
            return self.activations[place][chosen[:1]].clone()
        return shuffled_channels(self.activations[place][chosen], draws)
