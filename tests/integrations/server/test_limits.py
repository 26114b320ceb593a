"""What one request may take of time, memory and the queue, so that others have their share."""

import base64
import inspect
import io
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import httpx
import pytest
import torch
from av.stream import Disposition
from dover_integrations.rewards import RewardError
from dover_integrations.rewards.reading import Failure
from dover_integrations.server import ServerSettings, media
from dover_integrations.server.memory import Budget, Held
from dover_integrations.server.schemas import ComputeRequest, ScoreRequest
from dover_integrations.server.wire import SAFETENSORS, encode_clips
from PIL import Image

from dover_eval.cli.serve import MIB
from dover_eval.cli.serve import serve as command

HEADERS = {"Content-Type": SAFETENSORS}


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(serve, still_serves, chunked):
    server = serve(max_body=100_000)
    body = iter([b"x" * 10_000] * 50) if chunked else b"x" * 500_000
    with server.http() as http:
        answer = http.post("/score", content=body, headers=HEADERS)
    assert answer.status_code == 413
    assert "at most 100000 bytes" in answer.json()["detail"]
    still_serves(server)


def test_a_large_announcement_is_refused_before_the_body_comes(serve, still_serves):
    server = serve(max_body=100_000)
    with server.connect() as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 413 " in connection.recv(4096)
    still_serves(server)


def test_a_body_that_never_ends_times_out(serve, still_serves):
    server = serve(body_timeout=0.3)
    with server.connect() as connection:
        connection.sendall(
            b"POST /score HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert b" 408 " in connection.recv(4096)
    still_serves(server)


def test_a_body_that_came_in_time_may_be_scored_for_longer(serve, client, slow_model, videos, prompts):
    entered, go = slow_model
    remote = client(serve(body_timeout=0.5))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(remote, videos[:1], prompts[:1])
        assert entered.wait(10)
        time.sleep(0.8)
        go.set()
        assert asked.result(20).isfinite().all()


def test_slow_clients_do_not_hold_up_others(serve, client, reward, videos, prompts):
    server = serve()
    slow = [server.connect() for _ in range(20)]
    for connection in slow:
        head = f"POST /score HTTP/1.1\r\nHost: [::1]\r\nContent-Type: {SAFETENSORS}\r\nContent-Length: 1000\r\n\r\nab"
        connection.sendall(head.encode())
    start = time.monotonic()
    torch.testing.assert_close(client(server)(videos, prompts), reward(videos, prompts))
    assert time.monotonic() - start < 10
    for connection in slow:
        connection.close()


def test_clients_that_hang_up_are_forgotten(serve, still_serves, videos, prompts):
    server = serve()
    body = encode_clips(list(videos), prompts)
    head = f"POST /score HTTP/1.1\r\nHost: [::1]\r\nContent-Type: {SAFETENSORS}\r\nContent-Length: {len(body)}\r\n\r\n"
    for sent in (head.encode()[:20], head.encode(), head.encode() + body[:5000], head.encode() + body):
        with server.connect() as connection:
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a hard reset
    for _ in range(100):
        with server.http() as http:
            if http.get("/health").json()["waiting"] == 0:
                break
        time.sleep(0.05)
    still_serves(server)


def test_a_full_queue_answers_429_and_the_client_comes_again(serve, client, slow_model, reward, videos, prompts):
    entered, go = slow_model
    server = serve(queue_size=2)
    first, second = client(server), client(server, retries=5)
    results = {}
    holder = threading.Thread(target=lambda: results.update(first=first(videos[:2], prompts[:2])))
    holder.start()
    assert entered.wait(10)
    with pytest.raises(RewardError, match=r"429: .*2 of 2 clips are waiting"):
        client(server)(videos[2:3], prompts[2:3])
    patient = threading.Thread(target=lambda: results.update(second=second(videos[2:3], prompts[2:3])))
    patient.start()
    time.sleep(0.3)
    go.set()
    holder.join(20)
    patient.join(20)
    torch.testing.assert_close(torch.cat([results["first"], results["second"]]), reward(videos[:3], prompts[:3]))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"queue_size": 1}, "expected at most 1 clips, the whole queue, got 2"),
        ({"max_clips": 1}, "expected at most 1 clips, got 2"),
    ],
)
def test_more_clips_than_are_ever_taken_together_are_refused(serve, slow_decoding, asking, videos, limits, words):
    begun, _ = slow_decoding
    path, body = asking
    server = serve(**limits)
    tensors = {"content": encode_clips(list(videos[:2]), ["a", "b"]), "headers": HEADERS}
    with server.http() as http:
        for answer in (http.post(path, **body), http.post("/score", **tensors)):
            assert answer.status_code == 413
            assert words in answer.json()["detail"]
    assert not begun


def test_a_prompt_beyond_the_limit_is_refused_before_anything_is_decoded(serve, slow_decoding, asking, videos):
    begun, _ = slow_decoding
    path, body = asking
    long = {"data": {"prompts": ["a", "b" * 10_001]}}
    if path == "/compute":
        long = {"json": body["json"] | {"prompt": ["a", "b" * 10_001]}}
    elif "json" in body:
        item = body["json"]["requests"][0]
        turn = item["history"][0] | {"text": "b" * 10_001}
        long = {"json": {"requests": [item, {"history": [turn]}]}}
    tensors = {"content": encode_clips(list(videos[:2]), ["a", "b" * 10_001]), "headers": HEADERS}
    with serve().http() as http:
        for answer in (http.post(path, **body | long), http.post("/score", **tensors)):
            assert answer.status_code == 400
            assert answer.json()["detail"] == "expected at most 10000 characters of prompt 1, got 10001"
    assert not begun


@pytest.mark.parametrize(
    ("path", "many"),
    [
        ("/score", {"requests": [{"history": [{"text": ""}]}] * 1100}),
        ("/score", {"requests": [{"history": [{"text": ""}], "required_rewards": [[]] * 2100}]}),
        ("/score", {"requests": [{"history": [{"text": ""}], "metadata": list(range(4200))}]}),
        ("/compute", {"prompt": ["a"], "video": [[""] * 4200]}),
    ],
)
def test_json_of_more_values_than_clips_need_is_refused_before_it_is_parsed(serve, monkeypatch, path, many):
    for model in (ScoreRequest, ComputeRequest):
        monkeypatch.setattr(model, "model_validate_json", lambda _: pytest.fail("parsed"))
    with serve(max_clips=2, max_frames=4).http() as http:
        answer = http.post(path, json=many)
    assert answer.status_code == 413
    assert "expected at most 4104 commas and opening brackets in JSON, got 4" in answer.json()["detail"]


def test_a_prompt_may_have_many_commas(serve, mp4):
    turn = {"text": "a, " * 2000, "video_b64": base64.b64encode(mp4.read_bytes()).decode()}
    with serve(max_clips=1, max_frames=5).http() as http:
        answer = http.post("/score", json={"requests": [{"history": [turn]}]})
    assert answer.json()["errors"] == [{}]


def start_of_a_body(server, sent, length="Content-Length: 60000"):
    """A connection on which this much of a body has come, and no more will."""
    connection = server.connect()
    head = f"POST /score HTTP/1.1\r\nHost: [::1]\r\nContent-Type: {SAFETENSORS}\r\n{length}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def test_bytes_at_work_are_bounded_too(serve, client, videos, prompts):
    server = serve(max_body=60_000, max_memory=130_000)
    with start_of_a_body(server, b"x" * 59_999):
        time.sleep(0.3)
        with pytest.raises(RewardError, match=r"429: .*too many bytes"):
            client(server)(videos[:2], prompts[:2])
    time.sleep(0.3)
    assert client(server)(videos[:2], prompts[:2]).isfinite().all()


@pytest.mark.parametrize("length", ["Content-Length: 60000", "Transfer-Encoding: chunked"])
def test_bytes_that_have_not_come_hold_up_nobody(serve, client, videos, prompts, length):
    server = serve(max_body=60_000, max_memory=130_000)
    with start_of_a_body(server, b"", length), start_of_a_body(server, b"", length):
        time.sleep(0.3)
        assert client(server)(videos[:2], prompts[:2]).isfinite().all()


def test_clips_of_a_client_that_went_away_are_not_scored(serve, client, slow_model, reward, videos, prompts):
    entered, go = slow_model
    reward.load()._queue._max_batch = 1
    server = serve()
    with pytest.raises(RewardError, match="ReadTimeout"):
        client(server, timeout=0.5)(videos, prompts)
    assert entered.wait(10)
    with server.http() as http:
        deadline = time.monotonic() + 10
        while (waiting := http.get("/health").json()["waiting"]) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert waiting == 1  # the one that the model has begun with
    go.set()
    torch.testing.assert_close(client(server)(videos[:1], prompts[:1]), reward(videos[:1], prompts[:1]))


def test_what_is_not_scored_in_time_gets_504(serve, client, slow_model, videos, prompts):
    _, go = slow_model
    server = serve(timeout=0.3)
    with pytest.raises(RewardError, match=r"504: .*not scored within 0\.3 seconds"):
        client(server)(videos[:1], prompts[:1])
    go.set()


def test_a_request_too_large_for_its_time_goes_in_halves_and_one_clip_alone_only_once(serve, client, reward, videos):
    timed = []

    def slow(frames, prompts):
        timed.append(len(prompts))
        time.sleep(0.4)
        return {"mos": torch.full((len(prompts), 5), 3.0)}

    reward.scorer.score_prepared = slow
    reward.load()._queue._max_batch = 1
    server = serve(timeout=2)
    assert client(server, retries=3)(videos[:6], "a cat").tolist() == [3.0] * 6
    timed.clear()
    with pytest.raises(RewardError, match=r"504: .*not scored within 0\.2 seconds"):
        client(serve(timeout=0.2), retries=3, nan_policy="nan")(videos[:1], "a cat")
    assert timed == [1]


@pytest.fixture(params=["form", "json", "frames"])
def asking(request, mp4):
    """Path and body of a request of two videos, in each form that the server has to decode."""
    if request.param == "form":
        return "/score", {"files": [("videos", mp4.read_bytes())] * 2, "data": {"prompts": ["a", "b"]}}
    if request.param == "json":
        turn = {"text": "a", "video_b64": base64.b64encode(mp4.read_bytes()).decode()}
        return "/score", {"json": {"requests": [{"history": [turn]}] * 2}}
    data = io.BytesIO()
    Image.new("RGB", (48, 40)).save(data, "PNG")
    frames = [base64.b64encode(data.getvalue()).decode()] * 4
    return "/compute", {"json": {"prompt": ["a", "b"], "video": [frames] * 2}}


@pytest.fixture
def slow_decoding(monkeypatch):
    """Decoding of each clip waits until told to go on; `begun` are the names of those that do."""
    begun, go = [], threading.Event()

    def slowed(decode):
        def slow(*arguments):
            begun.append(arguments[-1])
            assert go.wait(20)
            return decode(*arguments)

        return slow

    for name in ("clip_from_bytes", "clip_from_frames"):
        monkeypatch.setattr(media, name, slowed(getattr(media, name)))
    yield begun, go
    go.set()


def test_what_is_not_decoded_in_time_gets_504_and_the_rest_is_left(serve, still_serves, slow_decoding, asking):
    begun, go = slow_decoding
    path, body = asking
    server = serve(timeout=2)  # a busy machine has as long for what follows
    with server.http() as http:
        answer = http.post(path, **body)
    assert answer.status_code == 504
    assert "not scored within 2 seconds" in answer.json()["detail"]
    go.set()
    still_serves(server)
    assert len(begun) == 1


def test_what_a_client_that_went_away_sent_is_not_decoded(serve, still_serves, slow_decoding, asking):
    begun, go = slow_decoding
    path, body = asking
    server = serve()
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post(path, **body, timeout=0.3)
    with server.http() as http:
        for _ in range(100):
            if f'{{path="{path}",status="503"}} 1.0' in http.get("/metrics").text:
                break
            time.sleep(0.05)
    go.set()
    still_serves(server)
    assert len(begun) == 1


KEPT = 2 * 4 * 40 * 48 * 3  # bytes of the frames that the model samples from the two clips of `asking`


def bytes_of(path, body):
    """What a request of `asking` takes of the memory but for its frames: itself and what is copied out of it."""
    size = int(httpx.Request("POST", f"http://x{path}", **body).headers["content-length"])
    return size * (3 if "json" in body else 2)


def test_frames_count_as_bytes_at_work_before_they_are_decoded(serve, monkeypatch, reward, asking):
    path, body = asking
    memory = bytes_of(path, body) + KEPT
    with serve(max_body=memory // 2, max_memory=memory).http() as http:
        assert [http.post(path, **body).status_code for _ in range(3)] == [200] * 3
    with serve(max_body=memory // 2 - 1, max_memory=memory - 1).http() as http:
        answer = http.post(path, **body)
    assert answer.status_code == 413
    assert f"frames of at most {memory - 1} bytes, got {memory}" in answer.json()["detail"]
    decode = lambda *_: pytest.fail("decoded")
    monkeypatch.setattr(reward.scorer, "decode", decode)
    monkeypatch.setattr(Image.Image, "convert", decode)
    with serve(max_body=10_000, max_memory=20_000).http() as http:
        assert http.post(path, **body).status_code == 413


def test_frames_for_which_others_leave_no_room_may_come_again(serve, asking):
    path, body = asking
    memory = bytes_of(path, body) + KEPT
    server = serve(max_body=memory // 2, max_memory=memory)
    with start_of_a_body(server, b"x", "Content-Length: 2"), server.http() as http:
        time.sleep(0.3)
        answer = http.post(path, **body)
    assert answer.status_code == 429
    assert "too many bytes at work" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "1"


def test_tensors_count_beside_the_body_that_brought_them(serve, videos):
    body = encode_clips(list(videos[:1]), ["a"])
    memory = 2 * len(body)
    with serve(max_body=len(body), max_memory=memory).http() as http:
        assert [http.post("/score", content=body, headers=HEADERS).status_code for _ in range(3)] == [200] * 3
    with serve(max_body=len(body) - 1, max_memory=memory - 1).http() as http:
        answer = http.post("/score", content=iter([body]), headers=HEADERS)
    assert answer.status_code == 413


def test_what_is_decoded_for_nobody_any_more_is_still_at_work(serve, slow_decoding, asking):
    begun, go = slow_decoding
    path, body = asking
    memory = bytes_of(path, body)
    with serve(max_body=memory // 2, max_memory=memory, timeout=0.3).http() as http:
        assert http.post(path, **body).status_code == 504
        assert http.post(path, **body).status_code == 429
        go.set()
        for _ in range(100):
            if http.post(path, **body).status_code != 429:
                break
            time.sleep(0.05)
    assert len(begun) == 2


def test_what_a_request_took_is_given_back_once():
    budget = Budget(100)
    held = Held(budget)
    with held:
        held.take(10)
    with held:  # a thread that begins to decode when the request is over
        pass
    assert budget.taken == 0


def test_clips_that_fail_at_once_wait_for_nothing(serve, client, reward, videos, monkeypatch):
    monkeypatch.setattr(reward, "submit", lambda clips, prompts: [Failure("no")] * len(clips))
    server = serve(queue_size=2)
    remote = client(server, nan_policy="nan")
    assert all(remote(videos[:2], "a cat").isnan().all() for _ in range(2))
    with server.http() as http:
        assert http.get("/health").json()["waiting"] == 0


def test_a_video_larger_than_the_limits_is_refused_by_its_header(serve, mp4):
    files = [("videos", mp4.read_bytes())]
    for settings in ({"max_pixels": 1000}, {"max_frames": 4}):
        with serve(**settings).http() as http:
            answer = http.post("/score", files=files, data={"prompts": "a"}).json()
        assert answer["results"] == [{}]
        assert "expected at most" in answer["errors"][0]["dover"]


@pytest.mark.parametrize(
    ("container", "options"), [("matroska", {}), ("mp4", {"movflags": "frag_keyframe+empty_moov"})]
)
def test_frames_that_no_header_counts_are_limited_too(serve, mp4, tmp_path, container, options):
    path = tmp_path / "uncounted"
    with av.open(str(mp4)) as counted, av.open(str(path), "w", container, options) as uncounted:
        stream = uncounted.add_stream_from_template(counted.streams.video[0])
        for packet in counted.demux():
            if packet.size:
                packet.stream = stream
                uncounted.mux(packet)
    with av.open(str(path)) as uncounted:
        assert uncounted.streams.video[0].frames == 0
    files = [("videos", path.read_bytes())]
    with serve(max_frames=4).http() as http:
        answer = http.post("/score", files=files, data={"prompts": "a"}).json()
    assert answer["errors"][0]["dover"] == "video 0: expected at most 4 frames, got 5"
    with serve(max_frames=5).http() as http:
        answer = http.post("/score", files=files, data={"prompts": "a"}).json()
    assert answer["errors"] == [{}]


def avi_of_pngs(path, sides):
    """Pictures of these sides, none of them compared with what the header says."""
    with av.open(str(path), "w", "avi") as container:
        stream = container.add_stream("png", rate=10, width=sides[0], height=sides[0], pix_fmt="rgb24")
        stream.encode(av.VideoFrame(sides[0], sides[0], "rgb24"))  # opens it
        for i, side in enumerate(sides):
            data = io.BytesIO()
            Image.new("RGB", (side, side)).save(data, "PNG")
            packet = av.Packet(data.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 10)
            container.mux(packet)
    return path.read_bytes()


def test_a_frame_larger_than_the_limits_is_not_even_decoded(serve, tmp_path):
    grows, large = avi_of_pngs(tmp_path / "grows", [64, 64, 2000]), avi_of_pngs(tmp_path / "large", [2000] * 3)
    with serve(max_pixels=2048 * 1024).http() as http:
        files = [("videos", grows), ("videos", large)]
        errors = http.post("/score", files=files, data={"prompts": ["a", "b"]}).json()["errors"]
    assert "video 0: cannot be decoded as a video" in errors[0]["dover"]  # by us it would be "frames of 64x64 and ..."
    assert errors[1]["dover"] == "video 1: found no frame of at most 2097152 pixels, expected a video"


def test_a_cover_before_the_video_hides_nothing_from_the_limits(serve, mp4, tmp_path):
    path = tmp_path / "covered.mp4"
    with av.open(str(mp4)) as bare, av.open(str(path), "w") as covered:
        cover = covered.add_stream("png", width=16, height=16, pix_fmt="rgb24")
        cover.disposition = Disposition.attached_pic.value
        stream = covered.add_stream_from_template(bare.streams.video[0])
        covered.mux(cover.encode(av.VideoFrame(16, 16, "rgb24")))
        for packet in bare.demux():
            if packet.size:
                packet.stream = stream
                covered.mux(packet)
    data = path.read_bytes()
    start, udta = data.index(b"moov") + 4, data.index(b"udta") - 4  # covers are in udta, the last part of moov
    data = data[:start] + data[udta:] + data[start:udta]
    with av.open(io.BytesIO(data)) as container:
        assert [stream.codec_context.name for stream in container.streams.video] == ["png", "mpeg4"]
    with serve(max_frames=4).http() as http:
        answer = http.post("/score", files=[("videos", data)], data={"prompts": "a"}).json()
    assert answer["errors"][0]["dover"] == "video 0: expected at most 4 frames, got 5"


def test_the_command_has_the_settings_limits():
    own = ServerSettings()
    options = {name: option.default for name, option in inspect.signature(command).parameters.items()}
    assert (options["max_body_mib"] * MIB, options["max_memory_mib"] * MIB) == (own.max_body, own.max_memory)
    for name in ("max_clips", "max_frames", "max_pixels", "queue_size", "timeout", "body_timeout"):
        assert options[name] == getattr(own, name), name
