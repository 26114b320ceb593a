"""The compiler's word on the shipped configurations, for GPUs that need not be there: no spills, and the work where it
should be. The whole table is `python -m bench.offline`."""

from itertools import islice

import pytest

from .conftest import INTERPRETED

if INTERPRETED:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bench.offline import ARCHITECTURES, TENSOR_CORE_STACK, cases, compile_case, tensor_core_cases

#: The first choice of each role of the first stage, inference with LayerNorm along. The input gradient is the forward
#: kernel turned around, and left to the table.
SHIPPED = {case.role: case for case in reversed(list(cases(96, 3, "bf16"))) if case.constants.get("EVEN", True)}
SHIPPED["inference"] = next(case for case in cases(96, 1, "fp32") if case.role == "inference")
del SHIPPED["input_gradient"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("role", SHIPPED)
def test_compiles_without_a_spill(role, architecture, monkeypatch):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")  # the default to come, which would cost half of the speed
    report = compile_case(SHIPPED[role], architecture)
    assert report.stack == 0, report
    assert 0 < report.registers <= 255, report
    if role in ("training", "weight_gradient") and architecture < 100:
        assert report.products > 0.5, report


@pytest.mark.parametrize("k_t", [1, 3, 5, 7])
def test_a_line_of_the_table_names_one_configuration(k_t):
    names = [str(case) for case in tensor_core_cases(96, k_t, "bf16")]
    assert len(set(names)) == len(names)


#: The first choice of each number of frames, forward, and the weight gradient; none where Triton lacks Gluon.
ON_TENSOR_CORES = [case for k_t in (1, 3, 5, 7) for case in islice(tensor_core_cases(96, k_t, "bf16"), 1)]
ON_TENSOR_CORES += list(tensor_core_cases(96, 3, "fp16"))[-1:]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", ON_TENSOR_CORES, ids=str)
def test_tensor_core_kernels_compile_and_hardly_spill(case, architecture):
    report = compile_case(case, architecture)
    assert report.stack <= TENSOR_CORE_STACK, report
    assert 0 < report.registers <= (case.maxnreg or 255), report
    assert report.products > 0.03, report
