"""The compiler's word on the shipped configurations, for GPUs that need not be there: no spills, and the work where it
should be. The whole table is `python -m bench.offline`."""

import pytest

from .conftest import INTERPRETED

if INTERPRETED:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bench.offline import ARCHITECTURES, cases, compile_case

#: The first choice of each role of the first stage. The input gradient is the forward kernel turned around, and fused
#: inference compiles for long: both are left to the table.
SHIPPED = {case.role: case for case in reversed(list(cases(96, 3, "bf16"))) if case.constants.get("EVEN", True)}
del SHIPPED["input_gradient"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("role", SHIPPED)
def test_compiles_without_a_spill(role, architecture):
    report = compile_case(SHIPPED[role], architecture)
    assert report.stack == 0, report
    assert 0 < report.registers <= 255, report
    if role in ("training", "weight_gradient") and architecture < 100:
        assert report.ffma > 0.5, report
