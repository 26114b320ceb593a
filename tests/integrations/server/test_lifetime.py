"""Starting, stopping and starting again: what was accepted is answered, and clients wait for a restart."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from dover_integrations.rewards import RewardError

from tests.conftest import free_port


def test_stopping_answers_what_was_accepted_and_takes_nothing_new(serve, client, slow_model, reward, videos, prompts):
    entered, go = slow_model
    server = serve()
    accepted, late = client(server), client(server)
    results = {}
    thread = threading.Thread(target=lambda: results.update(found=accepted(videos[:2], prompts[:2])))
    thread.start()
    assert entered.wait(10)
    server.stop()
    time.sleep(0.5)
    with pytest.raises(RewardError, match="no rewards from"):
        late(videos[:1], prompts[:1])
    go.set()
    thread.join(20)
    server.join()
    torch.testing.assert_close(results["found"], reward(videos[:2], prompts[:2]))


class Command:
    """`dover-eval serve` as a process of its own."""

    def __init__(self, checkpoint, port, *options):
        code = "import sys; from dover_eval.cli import main; sys.argv[0] = 'dover-eval'; main()"
        arguments = ["serve", "--model", str(checkpoint), "--device", "cpu", "--port", str(port), *options]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, env=environment
        )
        for line in self.process.stderr:
            if found := re.search(r"http://[^ ]+:\d+", line):
                self.url = found[0]
                break
        else:
            pytest.fail("the server did not start")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # or its pipe fills up


def test_a_client_outlives_a_server_that_is_killed_and_started_again(checkpoint, client, reward, videos, prompts):
    port = free_port()
    command = Command(checkpoint, port)
    try:
        remote = client(command.url, retries=30)  # a busy machine takes a minute to start a server
        expected = reward(videos, prompts)
        torch.testing.assert_close(remote(videos, prompts), expected)
        command.process.send_signal(signal.SIGKILL)
        command.process.wait(10)
        with pytest.raises(RewardError, match=r"no rewards from .* ConnectError"):
            client(command.url)(videos, prompts)
        results = {}
        thread = threading.Thread(target=lambda: results.update(found=remote(videos, prompts)))
        thread.start()
        command = Command(checkpoint, port)
        thread.join(120)
        torch.testing.assert_close(results["found"], expected)
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(15) == -signal.SIGTERM  # as uvicorn ends: 143 in a shell
    finally:
        command.process.kill()
        command.process.wait(10)


def test_the_command_refuses_to_listen_to_everyone_without_a_token(checkpoint):
    from typer.testing import CliRunner

    from dover_eval.cli import app

    result = CliRunner().invoke(app, ["serve", "--model", str(checkpoint), "--host", "0.0.0.0"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "expected a token" in result.output


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--weight", "Alignment=much"], 2, "expected a weight such as"),
        (["--log-level", "loud"], 2, "'loud' is not one of"),
        (["--device", "gpu"], 2, "--device gpu: "),
        (["--model", "FOLDER"], 1, "FOLDER cannot be loaded"),
    ],
)
def test_the_command_says_what_is_wrong_before_it_listens(tmp_path, options, status, words):
    from typer.testing import CliRunner

    from dover_eval.cli import app

    folder = str(tmp_path)
    options = [option.replace("FOLDER", folder) for option in options]
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code == status, result.output
    assert words.replace("FOLDER", folder) in result.output
    assert "Traceback" not in result.output


def test_a_taken_port_is_a_failure_with_its_reason(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = "import sys; from dover_eval.cli import main; sys.argv[0] = 'dover-eval'; main()"
        arguments = ["serve", "--model", str(checkpoint), "--device", "cpu", "--port", str(port)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert f"nothing listens on 127.0.0.1 port {port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr
