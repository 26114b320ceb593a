"""What the server does not take: it says why, and goes on."""

import base64
import io
import json
import socket
import struct
import threading
import time

import av
import httpx
import pytest
import torch
from av.stream import Disposition
from dover_integrations.rewards import DoverReward, RewardError
from dover_integrations.server import ServerSettings, create_app, media, run
from dover_integrations.server.wire import SAFETENSORS, encode_clips
from PIL import Image
from safetensors.torch import save

HEADERS = {"Content-Type": SAFETENSORS}


@pytest.fixture
def still_serves(client, videos, prompts):
    """A good request after the bad one is answered, and nothing is left waiting."""

    def check(server):
        assert client(server)(videos[:2], prompts[:2]).isfinite().all()
        with server.http() as http:
            assert http.get("/health").json()["waiting"] == 0

    return check


def with_prompts(tensors, prompts):
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(tensors, metadata={"prompts": json.dumps(prompts)})


CLIP = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)
HEADER = b'{"__metadata__":null,"videos":{"dtype":"U8","shape":[1,1,3,1,1],"data_offsets":[0,3]}}'
NULL_METADATA = struct.pack("<Q", len(HEADER)) + HEADER + b"rgb"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not a safetensors body"),
        (b"garbage" * 100, "not a safetensors body"),
        (struct.pack("<Q", 2**60) + b"{}", "not a safetensors body"),
        (b"\x80\x04\x95cposix\nsystem\n(S'true'\ntR.", "not a safetensors body"),
        (with_prompts({"videos": CLIP}, ["a"])[:-10], "not a safetensors body"),
        (with_prompts({"videos": CLIP.float()}, ["a"]), r"expected uint8 (U8) for 'videos', got F32"),
        (with_prompts({"videos": CLIP[0]}, ["a"]), "of 5 dimensions"),
        (with_prompts({"videos": CLIP[:, :0]}, ["a"]), "none of them 0"),
        (with_prompts({"weights": CLIP}, ["a"]), "expected a tensor 'videos'"),
        (with_prompts({}, []), "expected a tensor 'videos'"),
        (save({"videos": CLIP}), "expected a JSON list of prompts"),
        (NULL_METADATA, "expected a JSON list of prompts"),
        (save({"videos": CLIP}, metadata={"prompts": "[" * 100_000}), "expected a JSON list of prompts"),
        (with_prompts({"videos": CLIP}, [7]), "expected a list of texts"),
        (with_prompts({"videos": CLIP}, ["a", "b"]), "expected 1 prompts, one a clip, got 2"),
        (with_prompts({"videos": CLIP}, [" "]), "expected a text for prompt 0"),
        (with_prompts({"videos": CLIP.permute(0, 2, 1, 3, 4)}, ["a"]), r"expected (T,3,H,W), got shape (3, 2, 32, 32)"),
        (with_prompts({"videos": CLIP.expand(5, -1, -1, -1, -1)}, ["a"] * 5), "expected at most 4 clips, got 5"),
        (with_prompts({"videos": CLIP.repeat(1, 10, 1, 1, 1)}, ["a"]), "expected at most 16 frames, got 20"),
        (with_prompts({"videos": CLIP.repeat(1, 1, 1, 4, 1)}, ["a"]), "expected at most 2048 pixels a frame"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(serve, still_serves, body, message):
    server = serve(max_clips=4, max_frames=16, max_pixels=2048)
    with server.http() as http:
        answer = http.post("/score", content=body, headers=HEADERS)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]
    still_serves(server)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/score", b"{", 422, "Invalid JSON"),
        ("/score", b'{"requests": []}', 422, "requests: List should have at least 1 item"),
        ("/score", b'{"requests": [{"history": []}]}', 422, "requests.0.history"),
        ("/score", b"[" * 100_000, 422, ""),
        ("/score", b'{"requests": [{"history": [{"text": "\xff"}]}]}', 422, ""),
        ("/compute", b'{"prompt": ["a"], "video": [[]]}', 400, "expected 1 to 1024 frames, got 0"),
        ("/compute", b'{"prompt": ["a"], "video": [["%%%"]]}', 400, "not base64"),
        ("/compute", b'{"prompt": ["a"]}', 422, "video: Field required"),
    ],
)
def test_json_of_another_form_is_refused(serve, still_serves, path, body, status, message):
    server = serve()
    with server.http() as http:
        answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    still_serves(server)


def test_forms_without_videos_or_prompts_are_refused(serve, still_serves, mp4):
    server = serve()
    video = ("videos", ("clip.mp4", mp4.read_bytes()))
    with server.http() as http:
        for settings, message in [
            ({"files": [("other", b"x")], "data": {"prompts": "a"}}, "files in the field 'videos'"),
            ({"files": [video]}, "expected 1 prompts"),
            ({"files": [video, ("prompts", b"a")]}, "got a file"),
            ({"content": b"--", "headers": {"Content-Type": "multipart/form-data"}}, "boundary"),
        ]:
            answer = http.post("/score", **settings)
            assert answer.status_code == 400, answer.text
            assert message in answer.json()["detail"]
    still_serves(server)


def test_a_file_that_is_no_video_has_its_reason_and_the_others_are_scored(serve, mp4):
    files = [("videos", content) for content in (mp4.read_bytes(), b"no video", mp4.read_bytes()[:300])]
    with serve().http() as http:
        answer = http.post("/score", files=files, data={"prompts": ["a", "b", "c"]}).json()
    assert [list(result) for result in answer["results"]] == [["dover"], [], []]
    assert "expected a video file" in answer["errors"][1]["dover"]
    assert "video 2: " in answer["errors"][2]["dover"]
    assert "/tmp" not in str(answer["errors"])


def test_a_codec_that_nobody_knows_is_the_reason_and_the_others_are_scored(serve, mp4):
    good = mp4.read_bytes()
    odd = good.replace(b"mp4v", b"zzzz").replace(b"esds", b"zzzz")
    titled = good.replace(b"VideoHandler", b"Vid\xe9oHandler")  # Latin-1, which is no fault of the frames
    assert good not in (odd, titled)
    files = [("videos", data) for data in (odd, good, titled)]
    with serve().http() as http:
        answer = http.post("/score", files=files, data={"prompts": ["a", "b", "b"]})
    assert answer.status_code == 200, answer.text
    assert [list(result) for result in answer.json()["results"]] == [[], ["dover"], ["dover"]]
    message = "video 0: expected a video, got one of a codec that FFmpeg does not know"
    assert message in answer.json()["errors"][0]["dover"]


def test_a_playlist_that_names_other_files_is_no_video(serve, mp4):
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{mp4}\n#EXT-X-ENDLIST\n".encode()
    with serve().http() as http:
        answer = http.post("/score", files=[("videos", playlist)], data={"prompts": "a"}).json()
    assert answer["results"] == [{}]
    assert "expected a video file" in answer["errors"][0]["dover"]


def test_a_content_type_that_is_not_served_is_named(serve):
    with serve().http() as http:
        answer = http.post("/score", content=b"x", headers={"Content-Type": "application/python-pickle"})
        assert answer.status_code == 415
        assert http.get("/score").status_code == 405


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
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 413 " in connection.recv(4096)
    still_serves(server)


def test_a_body_that_never_ends_times_out(serve, still_serves):
    server = serve(body_timeout=0.3)
    with server.connect() as connection:
        connection.sendall(
            b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert b" 408 " in connection.recv(4096)
    still_serves(server)


def test_slow_clients_do_not_hold_up_others(serve, client, reward, videos, prompts):
    server = serve()
    slow = [server.connect() for _ in range(20)]
    for connection in slow:
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {SAFETENSORS}\r\nContent-Length: 1000\r\n\r\nab"
        connection.sendall(head.encode())
    start = time.monotonic()
    torch.testing.assert_close(client(server)(videos, prompts), reward(videos, prompts))
    assert time.monotonic() - start < 10
    for connection in slow:
        connection.close()


def test_clients_that_hang_up_are_forgotten(serve, still_serves, videos, prompts):
    server = serve()
    body = encode_clips(list(videos), prompts)
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {SAFETENSORS}\r\nContent-Length: {len(body)}\r\n\r\n"
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


@pytest.mark.parametrize(
    "bytes_sent", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\x00" * 1000, b"POST /score HTTP/9\r\n\r\n"]
)
def test_what_is_no_http_gets_no_further(serve, still_serves, bytes_sent):
    server = serve()
    with server.connect() as connection:
        connection.sendall(bytes_sent)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(4096)
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


def test_more_clips_than_the_queue_holds_are_refused_for_good(serve, slow_decoding, asking, videos):
    begun, _ = slow_decoding
    path, body = asking
    server = serve(queue_size=1)
    tensors = {"content": encode_clips(list(videos[:2]), ["a", "b"]), "headers": HEADERS}
    with server.http() as http:
        for answer in (http.post(path, **body), http.post("/score", **tensors)):
            assert answer.status_code == 413
            assert "expected at most 1 clips, the whole queue, got 2" in answer.json()["detail"]
    assert not begun


def test_bytes_at_work_are_bounded_too(serve, client, videos, prompts):
    server = serve(max_body=60_000, max_memory=100_000)
    with server.connect() as held:
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {SAFETENSORS}\r\nContent-Length: 60000\r\n\r\n"
        held.sendall(head.encode())
        time.sleep(0.3)
        with pytest.raises(RewardError, match=r"429: .*too many bytes"):
            client(server)(videos[:2], prompts[:2])
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
    server = serve(timeout=0.3)
    with server.http() as http:
        answer = http.post(path, **body)
    assert answer.status_code == 504
    assert "not scored within 0.3 seconds" in answer.json()["detail"]
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


def body_size(http, path, body):
    return int(http.build_request("POST", path, **body).headers["content-length"])


def test_frames_count_as_bytes_at_work_before_they_are_decoded(serve, monkeypatch, reward, asking):
    path, body = asking
    with serve().http() as http:
        memory = body_size(http, path, body) + KEPT
    with serve(max_body=memory, max_memory=memory).http() as http:
        assert [http.post(path, **body).status_code for _ in range(3)] == [200] * 3
    with serve(max_body=memory - 1, max_memory=memory - 1).http() as http:
        answer = http.post(path, **body)
    assert answer.status_code == 413
    assert f"frames of at most {memory - 1} bytes, got {memory}" in answer.json()["detail"]
    decode = lambda *_: pytest.fail("decoded")
    monkeypatch.setattr(reward.scorer, "decode", decode)
    monkeypatch.setattr(Image.Image, "convert", decode)
    with serve(max_body=20_000, max_memory=20_000).http() as http:
        assert http.post(path, **body).status_code == 413


def test_frames_for_which_others_leave_no_room_may_come_again(serve, asking):
    path, body = asking
    with serve().http() as http:
        memory = body_size(http, path, body) + KEPT
    server = serve(max_body=memory, max_memory=memory)
    with server.connect() as held, server.http() as http:
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {SAFETENSORS}\r\nContent-Length: 1\r\n\r\n"
        held.sendall(head.encode())
        time.sleep(0.3)
        answer = http.post(path, **body)
    assert answer.status_code == 429
    assert "too many bytes at work" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "1"


def test_what_is_decoded_for_nobody_any_more_is_still_at_work(serve, slow_decoding, asking):
    begun, go = slow_decoding
    path, body = asking
    with serve().http() as http:
        size = body_size(http, path, body)
    with serve(max_body=size, max_memory=size, timeout=0.3).http() as http:
        assert http.post(path, **body).status_code == 504
        assert http.post(path, **body).status_code == 429
        go.set()
        for _ in range(100):
            if http.post(path, **body).status_code != 429:
                break
            time.sleep(0.05)
    assert len(begun) == 2


def test_an_error_in_the_model_is_a_500_and_no_more(serve, client, still_serves, reward, monkeypatch, videos, prompts):
    server = serve()
    score_prepared = reward.scorer.score_prepared

    def fail(*args):
        raise MemoryError("secret")

    monkeypatch.setattr(reward.scorer, "score_prepared", fail)
    with pytest.raises(RewardError, match="500: Internal Server Error") as caught:
        client(server)(videos[:1], prompts[:1])
    assert "secret" not in str(caught.value)
    monkeypatch.setattr(reward.scorer, "score_prepared", score_prepared)
    still_serves(server)


class TestToken:
    def test_a_newline_at_the_end_of_a_mounted_secret_is_none_of_it(self, serve, client, videos, prompts):
        server = serve(token="s3cret\n")
        assert client(server, token="s3cret\n")(videos[:1], prompts[:1]).isfinite().all()

    def test_every_route_but_health_asks_for_it(self, serve):
        with serve(token="s3cret").http() as http:
            assert http.get("/health").status_code == 200
            for path in ("/metrics", "/docs", "/openapi.json", "/score", "/nothing"):
                answer = http.get(path)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
            for value in ("Bearer wrong", "s3cret", "Basic s3cret", "Bearer", "Bearer \u00e9".encode("latin-1")):
                assert http.get("/metrics", headers={"Authorization": value}).status_code == 401
            assert http.get("/metrics", headers={"Authorization": "bearer s3cret"}).status_code == 200

    def test_the_client_sends_it(self, serve, client, videos, prompts):
        server = serve(token="s3cret")
        assert client(server, token="s3cret")(videos, prompts).isfinite().all()
        with pytest.raises(RewardError, match=r"401: .*bearer token"):
            client(server, token="wrong")(videos, prompts)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
    def test_no_listening_beyond_this_machine_without_one(self, reward, host):
        with pytest.raises(ValueError, match="expected a token"):
            run(reward, ServerSettings(), host=host)


def test_exactly_one_source_of_a_video_is_asked_for(serve, mp4):
    video = base64.b64encode(mp4.read_bytes()).decode()
    items = [{"history": [{"text": "a", "video_b64": video, "video_path": "x"}]}, {"history": [{"text": "a"}]}]
    with serve().http() as http:
        answer = http.post("/score", json={"requests": items}).json()
    assert all("exactly one" in error["dover"] for error in answer["errors"])


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


@pytest.mark.parametrize(
    "settings",
    [{"max_clips": 0}, {"timeout": -1}, {"token": " "}, {"token": "tök"}, {"max_memory": 5}],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        ServerSettings(**settings)


def test_a_reward_of_another_layout_cannot_be_served(model):
    with pytest.raises(ValueError, match="expected layout"):
        create_app(DoverReward(model, layout="CTHW", value_range=(0, 255)))
