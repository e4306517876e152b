"""What a training step of the default backbone costs: flops, time, share of the GEMM ceiling, and where the time goes.

    python -m bench.training                                # one CPU thread, L = 16 and 64
    python -m bench.training --device cuda --batch 512

writes ``bench/results/training.json`` and ``.png``. Flops are counted from the formulas of the code and checked
against ``torch.utils.flop_counter``; a complex product is four real ones. The ceiling is the best product of two square
float32 matrices on the same thread. Times are of the processor's clock on a CPU thread of our own and of the wall's
otherwise; they need a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from bench.measure import cpu_model, interleaved, synchronised, versions
from risfast.losses import BackboneObjective
from risfast.models import Measurement
from risfast.models import unrolled as fit
from risfast.models.atoms import AtomGrid
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.simulate.scenes import Scenes, SystemConfig, generate_scenes
from risfast.train.distributed import machine_settings

RESULTS = Path(__file__).parent / "results"
SEED = 77_002
CODE_KINDS = ("dft", "random")
COMPLEX = 4  # real products in a complex one
OPERATORS = 12  # in the table of the profile
PARTS = ("atom maps", "sensing products", "factorisations", "convolutions")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    snapshots: tuple[int, ...] = (16, 64)
    batch: int = 16
    rounds: int = 7
    ceiling_size: int = 1536
    device: str = "cpu"
    threads: int = 1
    system: SystemConfig = field(default_factory=lambda: SystemConfig(code_kinds=CODE_KINDS))
    options: UnrolledOptions = field(default_factory=UnrolledOptions)


@dataclass
class Flops:
    """Floating-point operations of a scene by part, of the forward and of the backward pass."""

    forward: dict[str, float]
    backward: dict[str, float]

    def total(self) -> float:
        """Of both passes."""
        return sum(self.forward.values()) + sum(self.backward.values())

    def of(self, part: str) -> float:
        """Of both passes of one part."""
        return self.forward[part] + self.backward[part]


def map_flops(atoms: AtomGrid) -> float:
    """Of one analysis or synthesis: two thin products a family, and the signs of the mirror images."""
    families = [(getattr(atoms, f"left_{i}"), getattr(atoms, f"right_{i}")) for i in range(len(atoms.pairs))]
    products = sum(2 * left.shape[1] * (left.shape[0] + right.shape[1]) for left, right in families)
    signs = atoms.characters.numel()
    return products + (2 * signs * families[0][0].shape[0] if signs > 1 else 0)


def step_flops(module: UnrolledBackbone, n_snapshots: int, n_antennas: int) -> Flops:
    """Of a training step of one scene, by the formulas.

    Element-wise work, the layers of the context and the phases of the factor's columns are left out.

    The first step of the fit starts from the measurement alone: nothing that is learned is before it, so that it has
    no backward pass beyond the weights of its correction.
    """
    o, size, m, n = module.settings, n_snapshots, n_antennas, len(module.positions)
    cells, maps = math.prod(o.axes.shape), map_flops(module.atoms)
    outer, wide, long = size * n * n, size * m * n * n, size * m * m * n
    part = size * m * module.atoms.entries  # of a Hermitian Phi^H G Phi, what the maps look at
    both_ways = wide + part + 2 * long + size * m * n + outer  # Phi X Phi^H and Phi^H G Phi, and n of each side
    forward = 2 * COMPLEX * (o.steps * (both_ways + size * m * m) + (size * m * n + outer + part))
    backward = 2 * COMPLEX * (o.steps - 1) * (both_ways + 2 * size * m * m + 2 * size * m**3)
    step = _convolutions(cells, (4, o.width), (o.width, o.width))
    last = 2 * cells * o.width
    head = _convolutions(cells, (4, o.head_width), (o.head_width, o.head_width))
    heads = 2 * cells * o.head_width * (4 + o.range_cells + 2)
    convolutions = o.steps * (step + last) + head + heads
    return Flops(
        {
            "atom maps": maps * (3 * o.steps + 2),
            "sensing products": forward,
            "factorisations": COMPLEX * o.steps * size * m**3,
            "convolutions": convolutions,
        },
        {
            "atom maps": maps * 3 * (o.steps - 1),
            "sensing products": backward,
            "factorisations": 0.0,
            # gradients of the input and of the weights; the input of the first correction needs none
            "convolutions": 2 * convolutions - _convolutions(cells, (4, o.width)),
        },
    )


def _convolutions(cells: int, *channels: tuple[int, int]) -> int:
    """Of 3 x 3 x 3 convolutions over the map, as if its border were not one."""
    return sum(2 * 27 * cells * a * b for a, b in channels)


def counted_flops(call: Callable[[], Any]) -> float:
    """Of the matrix products and convolutions of a call, as torch counts them; complex products as four real ones."""

    def aware(formula: Callable[..., int]) -> Callable[..., int]:
        def count(*arguments: Any, **options: Any) -> int:
            complex_ = any(isinstance(a, torch.Tensor) and a.is_complex() for a in arguments)
            return formula(*arguments, **options) * (COMPLEX if complex_ else 1)

        count._get_raw = True  # type: ignore[attr-defined]  # the counter then passes tensors, not shapes
        return count

    products = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)
    with FlopCounterMode(display=False, custom_mapping={op: aware(flop_registry[op]) for op in products}) as counter:
        call()
    return float(counter.get_total_flops())


def training_call(module: UnrolledBackbone, scenes: Scenes) -> Callable[[], None]:
    """Forward, loss and backward over some scenes."""
    objective = BackboneObjective(None, module.range_cells)
    measurement = Measurement.of(scenes)

    def call() -> None:
        module.zero_grad(set_to_none=True)
        objective(module(measurement), scenes).total.backward()

    return call


def network_call(module: UnrolledBackbone, measurement: Measurement) -> Callable[[], None]:
    """Forward and backward of the network alone, from gradients of one in everything that it gives."""

    def call() -> None:
        module.zero_grad(set_to_none=True)
        found = module(measurement)
        assert found.sources is not None
        outputs = (torch.view_as_real(found.factor), found.sources.log_intensity, found.sources.offset)
        sum(output.sum() for output in outputs).backward()  # type: ignore[union-attr]

    return call


def inference_call(module: UnrolledBackbone, measurement: Measurement) -> Callable[[], None]:
    """Forward without gradients."""

    def call() -> None:
        with torch.no_grad():
            module(measurement)

    return call


@contextlib.contextmanager
def labelled_parts() -> Iterator[None]:
    """Within the block, the profiler knows which part of the network a product belongs to."""

    def labelled(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with record_function(label):
                return function(*arguments, **options)

        return call

    places = {
        "atom maps": [(AtomGrid, "synthesis"), (AtomGrid, "analysis")],
        "sensing products": [(fit, "_seen"), (fit, "_spread")],
        "factorisations": [(fit, "_factor"), (torch, "cholesky_inverse")],
    }
    with contextlib.ExitStack() as stack:
        for label, functions in places.items():
            for owner, name in functions:
                stack.enter_context(mock.patch.object(owner, name, labelled(label, getattr(owner, name))))
        yield


def profiled(call: Callable[[], Any], scenes: int, on_gpu: bool) -> dict[str, Any]:
    """Milliseconds a scene by part and by operator, of one call."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with labelled_parts(), profile(activities=activities) as recorded, record_function("step"):
        call()
    rows = {row.key: row for row in recorded.key_averages() if row.device_type.name == "CPU"}
    clock = "device_time_total" if on_gpu else "cpu_time_total"
    own = f"self_{clock}"

    def spent(name: str) -> float:
        return getattr(rows[name], clock) / 1e3 / scenes if name in rows else 0.0

    parts = {part: spent(part) for part in PARTS[:3]}
    parts["convolutions"] = spent("aten::convolution") + spent("aten::convolution_backward")
    whole = sum(getattr(row, own) for row in rows.values()) / 1e3 / scenes if on_gpu else spent("step")
    parts["everything else"] = whole - sum(parts.values())
    operators = sorted((r for r in rows.values() if r.key.startswith("aten::")), key=lambda r: -getattr(r, own))
    return {
        "ms_by_part": parts,
        "ms_by_operator": {r.key: getattr(r, own) / 1e3 / scenes for r in operators[:OPERATORS]},
    }


def measure(settings: Settings) -> dict[str, Any]:
    """Flops, times, throughput and profile for every L."""
    torch.manual_seed(0)
    device = torch.device(settings.device)
    module = UnrolledBackbone(settings.system.setup, settings.options).to(device).train()
    square = torch.randn(settings.ceiling_size, settings.ceiling_size, device=device)
    calls: dict[str, tuple[Callable[[], Any], int]] = {"ceiling": (synchronised(lambda: square @ square), 3)}
    sets = {}
    for n in settings.snapshots:
        system = SystemConfig(**{**vars(settings.system), "n_snapshots": n})
        scenes = generate_scenes(system, SEED, range(settings.batch), device)
        sets[n] = (system, scenes)
        measurement = Measurement.of(scenes)
        making = lambda system=system: generate_scenes(system, SEED, range(settings.batch), device)  # noqa: E731
        calls |= {
            f"train {n}": (synchronised(training_call(module, scenes)), 1),
            f"batched {n}": (synchronised(inference_call(module, measurement)), 1),
            f"alone {n}": (synchronised(inference_call(module, measurement[:1])), 3),
            f"making {n}": (synchronised(making), 1),
        }
    times = interleaved(calls, settings.rounds)
    clock = "cpu" if device.type == "cpu" and settings.threads == 1 else "wall"
    ceiling = 2 * settings.ceiling_size**3 / min(getattr(times["ceiling"], clock))
    results: dict[str, Any] = {"clock": clock, "ceiling_gflops": ceiling / 1e9, "sets": {}}
    for n, (system, scenes) in sets.items():
        seconds = {
            name: statistics.median(getattr(times[f"{name} {n}"], clock))
            for name in ("train", "batched", "alone", "making")
        }
        flops = step_flops(module, n, system.n_antennas)
        found = profiled(training_call(module, scenes), settings.batch, device.type == "cuda")
        results["sets"][f"L = {n}"] = _row(settings, seconds, flops, ceiling, found) | {
            "gflop_counted": counted_flops(network_call(module, Measurement.of(scenes))) / settings.batch / 1e9
        }
    return results


def _row(
    settings: Settings, seconds: dict[str, float], flops: Flops, ceiling: float, found: dict[str, Any]
) -> dict[str, Any]:
    per_scene = seconds["train"] / settings.batch
    parts = found["ms_by_part"]
    return {
        "gflop": flops.total() / 1e9,
        "gflop_by_part": {part: flops.of(part) / 1e9 for part in PARTS},
        "scenes_per_s": 1 / per_scene,
        "scenes_per_s_with_making": 1 / (per_scene + seconds["making"] / settings.batch),
        "ms_step": 1e3 * per_scene,
        "ms_batched": 1e3 * seconds["batched"] / settings.batch,
        "ms_alone": 1e3 * seconds["alone"],
        "share_of_ceiling": flops.total() / per_scene / ceiling,
        "share_of_ceiling_by_part": {p: flops.of(p) / (parts[p] * 1e-3) / ceiling for p in PARTS if parts[p] > 0},
        "largest_cost": max(parts, key=parts.__getitem__),
        **found,
    }


def table(results: dict[str, Any]) -> str:
    """What the terminal shows."""
    lines = [f"GEMM ceiling {results['ceiling_gflops']:.1f} GFLOP/s; a scene, forward and backward:"]
    for name, row in results["sets"].items():
        lines.append(
            f"{name}: {row['gflop']:.2f} GFLOP ({row['gflop_counted']:.2f} counted by torch), {row['ms_step']:.1f} ms, "
            f"{row['scenes_per_s']:.1f} scenes/s, {row['share_of_ceiling']:.0%} of the ceiling; "
            f"forward alone {row['ms_batched']:.1f} ms batched, {row['ms_alone']:.1f} ms for one scene"
        )
        for part, ms in row["ms_by_part"].items():
            share = row["share_of_ceiling_by_part"].get(part)
            reached = "" if share is None else f"  {row['gflop_by_part'][part]:6.2f} GFLOP  {share:4.0%} of the ceiling"
            lines.append(f"  {part:20s} {ms:7.2f} ms{reached}")
        lines.append("  by operator: " + ", ".join(f"{op} {ms:.1f}" for op, ms in row["ms_by_operator"].items()))
    return "\n".join(lines)


def picture(results: dict[str, Any], path: Path) -> None:
    """Milliseconds a scene by part, with the share of the ceiling that each part reaches."""
    figure = Figure(figsize=(5.5 * len(results["sets"]), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, row) in zip(
        figure.subplots(1, len(results["sets"]), squeeze=False)[0], results["sets"].items(), strict=True
    ):
        parts = row["ms_by_part"]
        bars = axes.barh(list(parts), list(parts.values()), color="tab:blue")
        shares = [row["share_of_ceiling_by_part"].get(part) for part in parts]
        labels = ["" if share is None else f"{share:.0%} of the ceiling" for share in shares]
        axes.bar_label(bars, labels, padding=3, fontsize="small")
        axes.margins(x=0.35)
        axes.invert_yaxis()
        axes.set_xlabel("profiled ms a scene, forward and backward")
        axes.set_title(f"{name}: {row['scenes_per_s']:.1f} scenes/s, {row['share_of_ceiling']:.0%} of the ceiling")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None, settings: Settings | None = None) -> None:
    """The command; ``settings`` replace the system and the backbone that are measured."""
    base = settings or Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, nargs="+", default=list(base.snapshots), help="values of L")
    parser.add_argument("--batch", type=int, default=base.batch, help="scenes of a step")
    parser.add_argument("--rounds", type=int, default=base.rounds, help="how often everything is timed in turn")
    parser.add_argument("--device", default=base.device)
    parser.add_argument("--threads", type=int, default=base.threads)
    parser.add_argument("--output", type=Path, default=RESULTS / "training.json")
    chosen = vars(parser.parse_args(arguments))
    output: Path = chosen.pop("output")
    made = Settings(**{**vars(base), **chosen, "snapshots": tuple(chosen["snapshots"])})
    with machine_settings(made.threads, deterministic=False):
        results = measure(made)
    print(table(results))
    output.parent.mkdir(parents=True, exist_ok=True)
    what = {name: value for name, value in chosen.items()} | {"seed": SEED, "backbone": asdict(made.options)}
    content = {"made": what, "cpu": cpu_model(), "versions": versions(), **results}
    output.write_text(json.dumps(content, indent=1) + "\n")
    picture(results, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
