"""Layers of users' networks that are not pure functions of parameters and inputs: handled, or refused by name.

The package's own networks are pure functions. A network of `torch.nn` layers may draw random numbers (dropout) or keep
a state (running statistics), and torch's transforms do not support every layer.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

STATELESS = (
    "build it with track_running_stats=False, freeze its statistics with .eval(), or take a GroupNorm, a LayerNorm or "
    "metarl_l2f.networks.images.Norm instead"
)


def refuse_running_statistics(network: nn.Module) -> None:
    """Refuse layers that write running statistics while they compute, since all tasks and inner steps would share them.

    Args:
        network: the user's network.
    Raises:
        ValueError: a normalisation layer is in training mode and tracks running statistics.
    """
    for name, layer in network.named_modules():
        kind = isinstance(layer, nn.modules.batchnorm._NormBase)
        if kind and layer.training and layer.running_mean is not None:
            raise ValueError(
                f"{_label(name, layer)} tracks running statistics, which no adaptation to single tasks can share; "
                f"{STATELESS}"
            )


class RandomLayers:
    """Layers that draw random numbers, such as dropout: off while a network is judged, seeded by task while it learns.

    They are found by computing: a layer draws random numbers if torch's generator has changed when it returns.

    Args:
        network: the network whose layers are searched.
        compute: a function that runs the network on one task and returns its outputs, the first entry before
            adaptation; it is called a few times.
        device: the device of the computation.
    Raises:
        ValueError: random numbers are drawn that cannot be switched off or repeated, or the network keeps a state.
    """

    def __init__(self, network: nn.Module, compute: Callable[[], Tensor], device: torch.device) -> None:
        self._device = device
        self._seeds: Iterator[int] = iter(())
        self.found: dict[str, nn.Module] = {}
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with self._apart():
            while drawing := _layers_that_draw(network, compute, device):
                for name, layer in drawing.items():
                    if not layer.training:
                        raise ValueError(
                            f"{_label(name, layer)} draws random numbers even out of training mode, so no evaluation "
                            "could be repeated; let it draw only while its `training` is true, or draw in "
                            "Problem.sample, from its generator"
                        )
                    layer.training = False
                self.found |= drawing
            first, second = compute()[0], compute()[0]
        if not torch.allclose(first, second, rtol=1e-3, equal_nan=True):
            raise ValueError(
                f"the outputs of the network ({type(network).__name__}) differ between two calls with the same inputs "
                "and parameters, so no number could be repeated; draw what is random in Problem.sample, from its "
                "generator, and keep no state between calls"
            )
        if changed := [name for name, buffer in network.named_buffers() if not torch.equal(buffer, buffers[name])]:
            raise ValueError(
                f"the network ({type(network).__name__}) changes its buffers {changed} while it computes; networks "
                "keep no state between tasks and inner steps: register none that a forward pass writes to"
            )

    @property
    def label(self) -> str:
        """The name of the first of these layers, for messages."""
        return _label(*next(iter(self.found.items())))

    def switch(self, on: bool) -> None:
        """Put these layers into training mode, or take them out of it."""
        for layer in self.found.values():
            layer.training = on

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Leave the process's random numbers as they were."""
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            yield

    @contextlib.contextmanager
    def learning(self, seeds: Iterator[int]) -> Iterator[None]:
        """Switch these layers on within the context.

        Args:
            seeds: one seed per task; `next_task` sets the next one.
        """
        if not self.found:
            yield
            return
        with self._apart():
            self.switch(True)
            self._seeds = seeds
            try:
                yield
            finally:
                self.switch(False)
                self._seeds = iter(())

    def next_task(self) -> None:
        """Within `learning`, set the generator to the next task's seed; elsewhere do nothing."""
        if (seed := next(self._seeds, None)) is not None:
            torch.manual_seed(seed)


def _layers_that_draw(network: nn.Module, compute: Callable[[], Any], device: torch.device) -> dict[str, nn.Module]:
    """The innermost layers after which torch's generator has moved on, by name."""
    found: dict[str, nn.Module] = {}
    before: list[Tensor] = []

    def state() -> Tensor:
        on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return torch.cat([torch.get_rng_state(), *on_device])

    def watch(name: str) -> list[Any]:
        def leave(layer: nn.Module, *_: Any) -> None:
            inside = f"{name}." if name else ""
            if not torch.equal(before.pop(), state()) and not any(other.startswith(inside) for other in found):
                found[name] = layer

        layer = network.get_submodule(name)
        return [
            layer.register_forward_pre_hook(lambda *_: before.append(state())),
            layer.register_forward_hook(leave),
        ]

    hooks = [hook for name, _ in network.named_modules() for hook in watch(name)]
    start = state()
    try:
        compute()
    finally:
        for hook in hooks:
            hook.remove()
    if not found and not torch.equal(start, state()):
        raise ValueError(
            "the problem's outputs, loss or score draws random numbers outside of the network's layers, so no number "
            "could be repeated; draw them in Problem.sample, from its generator"
        )
    return found


@contextlib.contextmanager
def explained(network: nn.Module, vmapped: bool) -> Iterator[None]:
    """Within the context, use attention that has second derivatives, and explain errors of torch's transforms.

    Args:
        network: the network; errors name its layer.
        vmapped: whether tasks are vmapped. Each task alone is known to compute, so an error is due to `vmap`.
    Raises:
        ValueError: a layer cannot be computed in this way; the error names the layer and a remedy.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        where = f"{_innermost(network, error)} cannot be computed like this (torch: {said})"
        if "would mutate" in said:
            raise ValueError(f"{where}: layers may not write to a state while they compute; {STATELESS}") from error
        if "derivative for" in said and "not implemented" in said:
            raise ValueError(
                f"{where}: adaptation is differentiated twice; take a layer that has second derivatives (recurrent "
                "ones on a GPU with torch.backends.cudnn.enabled = False), or do without them (first_order=True)"
            ) from error
        if vmapped:
            raise ValueError(f"{where}: tasks cannot be vmapped through it; use batching='loop'") from error
        raise


def _innermost(network: nn.Module, error: BaseException) -> str:
    """The innermost layer of a network in which an error was raised, or the network where it was in none."""
    named = {id(layer): (name, layer) for name, layer in network.named_modules()}
    found = ("", network)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = named.get(id(frame.f_locals.get("self")), found)
    return _label(*found)


def _label(name: str, layer: nn.Module) -> str:
    return f"the layer {name} ({type(layer).__name__})" if name else f"the network ({type(layer).__name__})"
