"""The training benchmark: its flop formulas against torch's count, and every figure that it promises."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from risfast.geometry import SensorArray
from risfast.models import Measurement
from risfast.models.atoms import AtomAxes
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.simulate.scenes import SystemConfig, generate_scenes

ROOT = Path(__file__).resolve().parents[2]
# Appended, so that an installed risfast is what the other tests see.
sys.path.append(str(ROOT))

from bench import training  # noqa: E402

TINY = UnrolledOptions(steps=3, width=5, head_width=6, range_cells=2, columns=6, axes=AtomAxes(7, 5, 4))
SYSTEM = SystemConfig(array=SensorArray.rectangular(4, 3), n_antennas=4, n_snapshots=5, n_sources=(1, 2))


@pytest.mark.parametrize("n_snapshots", [1, 5])
@pytest.mark.parametrize(
    ("array", "options"),
    [
        (SYSTEM.array, TINY),
        (SensorArray.rectangular(5, 3), replace(TINY, steps=1, width=3, range_cells=4)),
        (SensorArray(torch.rand(7, 3, generator=torch.Generator().manual_seed(1)) - 0.5, 0.3), TINY),
    ],
)
def test_the_formulas_give_what_torch_counts(array, options, n_snapshots):
    torch.manual_seed(0)
    system = replace(SYSTEM, array=array, n_snapshots=n_snapshots)
    module = UnrolledBackbone(system.setup, options)
    for parameter in module.parameters():  # with zeros in the last layers the gradient is zero, but still computed
        torch.nn.init.normal_(parameter, std=0.1)
    # Told the noise, it has no gradient, and the layers of the context none of their inputs.
    measurement = Measurement.of(generate_scenes(system, 0, range(3)), noise_known=True)
    formula = training.step_flops(module, n_snapshots, system.n_antennas)
    counted = training.counted_flops(training.network_call(module, measurement)) / 3
    # torch counts no factorisation; the formulas leave out the layers of the context, with two inputs each, and the
    # phases of the factor's columns, three products an element.
    left_out = 2 * 2 * (options.steps * options.width + options.head_width) + 2 * 3 * len(module.positions) * 6
    assert counted - (formula.total() - formula.of("factorisations")) == pytest.approx(2 * left_out, abs=0.5)
    forward = training.counted_flops(training.inference_call(module, measurement)) / 3
    products = sum(formula.forward.values()) - formula.forward["factorisations"]
    assert forward - products == pytest.approx(left_out, abs=0.5)


def test_a_complex_product_counts_as_four_real_ones():
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    assert training.counted_flops(lambda: a @ b) == 2 * 2 * 3 * 5
    assert training.counted_flops(lambda: a.cfloat() @ b.cfloat()) == 4 * 2 * 2 * 3 * 5


def test_the_command_writes_every_figure(tmp_path, capsys):
    settings = training.Settings(
        snapshots=(5, 8), batch=2, rounds=1, ceiling_size=32, system=SYSTEM, options=TINY, threads=1
    )
    out = tmp_path / "results" / "training.json"
    threads = torch.get_num_threads()
    training.main(["--output", str(out)], settings)
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr().out
    assert "of the ceiling" in shown
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads(out.read_text())
    assert content["made"]["batch"] == 2
    assert content["made"]["backbone"]["steps"] == 3
    assert content["ceiling_gflops"] > 0
    assert set(content["sets"]) == {"L = 5", "L = 8"}
    for row in content["sets"].values():
        parts = row["ms_by_part"]
        assert set(parts) == {*training.PARTS, "everything else"}
        assert all(ms > 0 for ms in parts.values())
        assert parts[row["largest_cost"]] == max(parts.values())
        assert row["gflop"] == pytest.approx(sum(row["gflop_by_part"].values()))
        assert row["scenes_per_s"] == pytest.approx(1e3 / row["ms_step"])
        assert row["scenes_per_s_with_making"] < row["scenes_per_s"]
        assert row["share_of_ceiling"] == pytest.approx(row["gflop"] / row["ms_step"] * 1e3 / content["ceiling_gflops"])
        assert all(name.startswith("aten::") for name in row["ms_by_operator"])
        assert row["ms_alone"] > 0
        assert row["ms_batched"] > 0
    assert content["sets"]["L = 8"]["gflop"] > content["sets"]["L = 5"]["gflop"]


def test_labels_do_not_stay():
    before = training.AtomGrid.synthesis, training.fit._seen, torch.cholesky_inverse
    with training.labelled_parts():
        assert training.AtomGrid.synthesis is not before[0]
    assert (training.AtomGrid.synthesis, training.fit._seen, torch.cholesky_inverse) == before
