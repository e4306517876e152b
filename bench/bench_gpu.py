"""The scenarios of ``python bench/gpu.py`` under pytest-benchmark, on the first GPU; skipped where there is none.

Every call ends with a synchronisation, so that the clock sees the work and not its launch.
"""

import pytest
import torch

from bench.gpu_scenarios import SCENARIOS, reference_setting
from bench.measure import synchronised

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device; the CPU has benchmarks of its own", allow_module_level=True)


@pytest.mark.parametrize("batch", [1, 32, 256])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(benchmark, name, batch):
    setting = reference_setting(torch.device("cuda", 0))
    work = SCENARIOS[name].make(setting, batch)
    error = work.error_db(work.call(*work.inputs))
    assert error < 2e-2, f"{name} gets no speed: it is off by {error:.2g} dB"
    call = synchronised(lambda: work.call(*work.inputs))
    call()
    benchmark.group = f"GPU, {SCENARIOS[name].title}, B = {batch}"
    benchmark.pedantic(call, rounds=20, warmup_rounds=3)
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name(0), batch=batch, points=batch * setting.points, error_db=error
    )
