"""Requests that schemathesis makes up from the server's own description, over a real socket."""

import pytest

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/score"), ("POST", "/compute"), ("GET", "/health"), ("GET", "/metrics")]
)
def test_no_request_breaks_the_server_and_every_answer_is_as_described(serve, method, path):
    server = serve()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")

    @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy())
    def ask(case):
        case.call_and_validate(checks=CHECKS, timeout=20)

    ask()
