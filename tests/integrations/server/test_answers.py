"""What the client makes of answers that are not as they should be: an error that says what came, never a reward."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from dover_integrations.rewards import RewardError

from dover_eval.opinion import SCORE_NAMES

SCORES = dict.fromkeys(SCORE_NAMES, 3.0)


@pytest.fixture
def stub():
    """Starts servers that give every request the same answer; `asked` counts the requests."""
    with contextlib.ExitStack() as stack:

        def start(body, headers=(), wait=None, status=200):
            class Handler(BaseHTTPRequestHandler):
                def do_POST(self):
                    self.server.asked += 1
                    self.rfile.read(int(self.headers["Content-Length"]))
                    if wait is not None:
                        wait.wait(20)
                    self.send_response(status)
                    for name, value in (("Content-Length", str(len(body))), *headers):
                        self.send_header(name, value)
                    self.end_headers()
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that waits no longer
                        self.wfile.write(body)

                def log_message(self, *arguments):
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            server.asked = 0
            server.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(server.server_close)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return server

        yield start


def answer(scores):
    return json.dumps({"results": [{"dover": scores}], "errors": [{}]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (answer(SCORES | {"Overall": None}), "expected a number from 1 to 5 for each of .*'Overall': None"),
        (answer(SCORES | {"Overall": float("nan")}), "expected a number from 1 to 5 for each of .*'Overall': nan"),
        (answer(SCORES | {"Overall": 62.5}), "expected a number from 1 to 5 for each of .*'Overall': 62.5"),
        (answer(SCORES | {"Overall": 0.5}), "expected a number from 1 to 5"),
        (answer(SCORES | {"Overall": 10**400}), "expected a number from 1 to 5"),
        (answer(SCORES | {"Overall": "3"}), "expected a number from 1 to 5 for each of .*'Overall': '3'"),
        (answer(SCORES | {"Overall": True}), "expected a number from 1 to 5 for each of .*'Overall': True"),
        (answer({"Overall": 3.0}), "expected a number from 1 to 5 for each of .*got {'Overall': 3.0}"),
        (answer(None), "expected a number from 1 to 5 for each of .*got None"),
        (b'{"results": [null], "errors": [{}]}', "expected objects as result and error, got None and {}"),
        (b'{"results": [{}], "errors": ["no"]}', "expected objects as result and error, got {} and no"),
        (answer(SCORES), "expected a text as fingerprint from .*, got None"),
        (b"[" * 100_000, "expected JSON"),
    ],
    ids=[
        *("null", "NaN", "of a hundred", "below", "beyond float64", "text", "bool", "missing", "no scores"),
        *("null result", "text as error", "no fingerprint", "deep"),
    ],
)
def test_an_answer_without_five_numbers_is_an_error_that_says_what_came(stub, client, videos, prompts, body, message):
    with pytest.raises(RewardError, match=message):
        client(stub(body))(videos[:1], prompts[:1])


def test_an_answer_that_is_no_gzip_as_it_says_is_an_error(stub, client, videos, prompts):
    server = stub(answer(SCORES), [("Content-Encoding", "gzip")])
    with pytest.raises(RewardError, match=r"expected an answer that can be read from .*incorrect header check"):
        client(server, retries=5)(videos[:1], prompts[:1])
    assert server.asked == 1


def test_an_answer_that_takes_too_long_is_not_asked_for_again(stub, client, videos, prompts):
    late = threading.Event()
    server = stub(answer(SCORES), wait=late)
    with pytest.raises(RewardError, match="ReadTimeout"):
        client(server, timeout=0.2, retries=5)(videos[:1], prompts[:1])
    late.set()
    assert server.asked == 1


def test_a_servers_own_fault_is_not_asked_for_again(stub, client, videos, prompts):
    server = stub(b"", status=500)
    with pytest.raises(RewardError, match="500"):
        client(server, retries=5)(videos[:1], prompts[:1])
    assert server.asked == 1


@pytest.mark.parametrize(
    ("asked", "longest"),
    [("3", 3), ("30", 16), ("1e300", 16), ("Fri, 31 Dec 2100 00:00:00 GMT", 16), ("inf", 0.6), ("nan", 0.6)],
)
def test_a_server_may_ask_for_a_longer_wait_but_not_for_any(stub, client, monkeypatch, videos, asked, longest):
    waits = []
    monkeypatch.setattr("dover_integrations.server.client.time.sleep", waits.append)
    server = stub(b"", [("Retry-After", asked)], status=503)
    with pytest.raises(RewardError, match="503"):
        client(server, retries=1)(videos[:1], "a cat")
    assert waits == [longest] if longest > 1 else 0.4 <= waits[0] <= longest
