"""One optimiser step in its strict order, the schedule, and averages of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from risfast.train.config import OptimiserOptions


def learning_rate(options: OptimiserOptions, step: int) -> float:
    """Learning rate of a step: a line up to ``lr``, then half a cosine down to ``min_lr``."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    span = max(options.steps - options.warmup - 1, 1)
    progress = min((step - options.warmup) / span, 1.0)
    return options.min_lr + (options.lr - options.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def check_moves(module: nn.Module, options: OptimiserOptions) -> None:
    """Refuse a beginning of names that no parameter has."""
    names = [name for name, _ in module.named_parameters()]
    for start in options.moves:
        if not any(name.startswith(start) for name in names):
            own = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ValueError(f"optimiser.moves: no parameter's name starts with {start!r}; there are {own}")


class Optimiser:
    """AdamW with the order of DESIGN: unscale, check, clip, step, update, zero, schedule."""

    def __init__(self, module: nn.Module, options: OptimiserOptions, *, scaled: bool = False) -> None:
        self.options = options
        check_moves(module, options)
        if options.moves:
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name.startswith(options.moves))
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("the module has no parameters to train")
        matrices = [p for p in self.parameters.values() if p.ndim >= 2]
        vectors = [p for p in self.parameters.values() if p.ndim < 2]
        groups = [(matrices, options.weight_decay), (vectors, 0.0)]
        self._adamw = torch.optim.AdamW(
            [{"params": group, "weight_decay": decay} for group, decay in groups if group],
            lr=learning_rate(options, 0),
            betas=options.betas,
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=scaled)
        self.part_norms: dict[str, float] = {}  # Of the last step's gradient, by part of the module
        self.not_finite = ""  # The first parameter whose gradient was not finite in the last step

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""
        return float(self._adamw.param_groups[0]["lr"])

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, scaled where losses are."""
        self.scaler.scale(loss).backward()

    def step(self, step: int, usable: bool = True) -> tuple[float, bool]:
        """Use the gradients that have been gathered, unless one is not finite."""
        self.scaler.unscale_(self._adamw)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        self.part_norms, self.not_finite = self._by_part(), ""
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        taken = usable and math.isfinite(norm) and norm > 0
        if not math.isfinite(norm):
            found = ((n, p.grad) for n, p in self.parameters.items() if p.grad is not None)
            self.not_finite = next((name for name, gradient in found if not bool(gradient.isfinite().all())), "")
        if taken:
            if self.options.clip_norm:
                every = list(self.parameters.values())
                torch.nn.utils.clip_grads_with_norm_(every, self.options.clip_norm, torch.tensor(norm))
            self.scaler.step(self._adamw)
        self.scaler.update()
        self._adamw.zero_grad(set_to_none=True)
        self.schedule(step + 1)
        return norm, taken

    def _by_part(self) -> dict[str, float]:
        """Norm of the gradient of each part of the module."""
        found = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not found:
            return {}
        squares: dict[str, float] = {}
        norms = torch.stack(torch._foreach_norm(list(found.values()))).tolist()  # one copy to the host
        for name, norm in zip(found, norms, strict=True):
            part = name.split(".")[0]
            squares[part] = squares.get(part, 0.0) + norm * norm
        return {part: math.sqrt(square) for part, square in squares.items()}

    def schedule(self, step: int) -> None:
        """Set the learning rate of a step."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate(self.options, step)

    def tensors(self) -> dict[str, Tensor]:
        """AdamW's memory by the name of its kind and of its parameter, ``exp_avg/NAME``."""
        return {
            f"{key}/{name}": value
            for name, parameter in self.parameters.items()
            for key, value in self._adamw.state.get(parameter, {}).items()
        }

    def load_tensors(self, memory: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` gave."""
        self._adamw.state.clear()
        for key, value in memory.items():
            kind, _, name = key.partition("/")
            parameter = self.parameters.get(name)
            if parameter is None or (kind != "step" and value.shape != parameter.shape):
                raise ValueError(
                    f"the memory of the optimiser holds {key!r} of shape {tuple(value.shape)}, which fits no parameter"
                )
            device = "cpu" if kind == "step" else parameter.device
            # a copy of its own: AdamW writes into it
            self._adamw.state[parameter][kind] = value.to(device, copy=True)


class WeightAverage:
    """The average of a module's weights over the steps that were taken, and its buffers as they are."""

    def __init__(self, module: nn.Module, options: OptimiserOptions) -> None:
        self._module, self._options, self.count = module, options, 0
        self._live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._values = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step that was taken."""
        kind, keep = self._options.averaging, 0.0
        early = kind == "swa" and step < self._options.swa_start * self._options.steps
        if kind == "ema":
            keep = min(self._options.ema_decay, (1 + self.count) / (10 + self.count))
        elif kind == "swa" and not early:
            keep = self.count / (self.count + 1)
        self.count += not early
        for name, parameter in self._live.items():
            self._values[name].lerp_(parameter, 1 - keep)

    @contextmanager
    def in_use(self) -> Iterator[nn.Module]:
        """The module with the averaged weights in place of its own, which come back afterwards."""
        own = {name: p.data for name, p in self._live.items()}
        try:
            for name, parameter in self._live.items():
                parameter.data = self._values[name]
            yield self._module
        finally:
            for name, parameter in self._live.items():
                parameter.data = own[name]

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return dict(self._values)

    def load_tensors(self, values: Mapping[str, Tensor], count: int) -> None:
        """Take back what :meth:`tensors` gave."""
        if {n: v.shape for n, v in values.items()} != {n: v.shape for n, v in self._values.items()}:
            raise ValueError("the averaged weights are of another architecture")
        for name, value in values.items():
            self._values[name].copy_(value)
        self.count = count
