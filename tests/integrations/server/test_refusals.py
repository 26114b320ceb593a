"""What the server does not take: it says why, and goes on."""

import asyncio
import base64
import json
import socket
import struct

import httpx
import pytest
import torch
from dover_integrations.rewards import DoverReward, RewardError
from dover_integrations.server import ServerSettings, create_app, run
from dover_integrations.server.guard import Guard
from dover_integrations.server.schemas import ComputeRequest, ScoreRequest
from dover_integrations.server.wire import SAFETENSORS, encode_clips
from pydantic import ValidationError
from safetensors.torch import save

HEADERS = {"Content-Type": SAFETENSORS}


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
        (with_prompts({"videos": CLIP.permute(0, 2, 1, 3, 4)}, ["a"]), "'videos' of layout BTCHW with 3 channels"),
        (with_prompts({"video.0": CLIP[0].permute(1, 0, 2, 3)}, ["a"]), "'video.0' of layout TCHW with 3 channels"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(serve, still_serves, body, message):
    server = serve()
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
        ("/compute", b'{"prompt": ["a"], "video": [["aGVsbG8="]]}', 400, "frame 0 is no PNG or JPEG image"),
        ("/compute", b'{"prompt": ["a"]}', 422, "video: Field required"),
    ],
)
def test_json_of_another_form_is_refused(serve, still_serves, path, body, status, message):
    server = serve()
    with server.http() as http:
        answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert " object at 0x" not in answer.json()["detail"]
    still_serves(server)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ScoreRequest, {"requests": [1, 1, 1]}),
        (ScoreRequest, {"requests": [{"history": [1, 1, 1]}]}),
        (ScoreRequest, {"requests": [{"history": [{"text": ""}], "required_rewards": [1, 1, 1]}]}),
        (ComputeRequest, {"prompt": [1, 1, 1], "video": [["a"]]}),
        (ComputeRequest, {"prompt": ["a"], "video": [1, 1, 1]}),
        (ComputeRequest, {"prompt": ["a"], "video": [[1, 1, 1]]}),
    ],
)
def test_the_first_bad_entry_of_a_list_is_the_last_that_is_looked_at(model, body):
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(body))
    assert caught.value.error_count() == 1


def test_forms_without_videos_or_prompts_are_refused(serve, still_serves, mp4):
    server = serve()
    video = ("videos", ("clip.mp4", mp4.read_bytes()))
    with server.http() as http:
        for settings, message in [
            ({"files": [("other", b"x")], "data": {"prompts": "a"}}, "files in the field 'videos'"),
            ({"files": [video]}, "expected 1 prompts"),
            ({"files": [video, ("prompts", b"a")]}, "got a file"),
            ({"content": b"--", "headers": {"Content-Type": "multipart/form-data"}}, "boundary"),
            (
                {
                    "content": b'--x\r\nContent-Disposition: form-data; name="prompts"\r\n\r\na cat\r\n--x--\r\n',
                    "headers": {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"},
                },
                "expected a form whose texts are in its charset",
            ),
        ]:
            answer = http.post("/score", **settings)
            assert answer.status_code == 400, answer.text
            assert message in answer.json()["detail"]
    still_serves(server)


def test_tensors_beyond_the_limits_fail_alone(serve, client, reward):
    long, large = CLIP[0].repeat(10, 1, 1, 1), CLIP[0].repeat(1, 1, 4, 1)
    remote = client(serve(max_frames=16, max_pixels=2048), nan_policy="nan")
    clips = [long, CLIP[0], large]
    found = remote(clips, "a cat")
    assert found.isnan().tolist() == [True, False, True]
    torch.testing.assert_close(found[1:2], reward([CLIP[0]], "a cat"))
    remote.nan_policy = "raise"
    with pytest.raises(RewardError, match=r"videos\[0\]: video 0: expected at most 16 frames, got 20"):
        remote(clips, "a cat")
    with pytest.raises(RewardError, match=r"videos\[1\]: video 1: expected at most 2048 pixels a frame, got 32x128"):
        remote(clips[1:], "a cat")


def test_a_clip_that_is_too_thin_fails_alone(serve):
    body = encode_clips([torch.zeros(2, 3, 1, 9000, dtype=torch.uint8), CLIP[0]], ["a", "b"])
    with serve().http() as http:
        answer = http.post("/score", content=body, headers=HEADERS).json()
    assert [list(result) for result in answer["results"]] == [[], ["dover"]]
    reason = "video 0: expected one side at most 64 times the other, got frames of 9000x1"
    assert answer["errors"] == [{"dover": reason}, {}]


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
            for path in ("/metrics", "/openapi.json", "/score", "/nothing", "/healthy", "/health/"):
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


class TestWebPages:
    @pytest.mark.parametrize(
        ("headers", "message"),
        [
            ({"Host": "evil.example"}, "expected an IP address or localhost as Host, got 'evil.example'"),
            ({"Host": "localhost.evil.example:8000"}, "expected an IP address or localhost as Host"),
            ({"Host": "[::1"}, "expected an IP address or localhost as Host"),
            ({"Host": ""}, "expected an IP address or localhost as Host, got ''"),
            ({"Origin": "http://evil.example"}, "expected no web page to ask, got one of Origin 'http://evil.example'"),
            ({"Origin": "null"}, "expected no web page to ask"),
            ({"Sec-Fetch-Site": "cross-site"}, "expected no web page to ask, got Sec-Fetch-Site 'cross-site'"),
            ({"Sec-Fetch-Site": "same-site"}, "expected no web page to ask"),
        ],
    )
    def test_without_a_token_they_are_kept_out(self, serve, mp4, headers, message):
        form = {"files": [("videos", mp4.read_bytes())], "data": {"prompts": "a"}}
        with serve().http(headers=headers) as http:
            for answer in (http.get("/health"), http.post("/score", **form)):
                assert answer.status_code == 403
                assert answer.json()["detail"].startswith(f"without a token, {message}")

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8000", "10.0.0.7:8000"])
    def test_addresses_and_localhost_come_in(self, serve, host):
        with serve().http(headers={"Host": host, "Sec-Fetch-Site": "none"}) as http:
            assert http.get("/health").status_code == 200

    def test_with_a_token_any_name_will_do(self, serve):
        names = {"Host": "rewards.example", "Origin": "https://x.example"}
        with serve(token="s3cret").http(headers=names | {"Authorization": "Bearer s3cret"}) as http:
            assert http.get("/metrics").status_code == 200


def test_exactly_one_source_of_a_video_is_asked_for(serve, mp4):
    video = base64.b64encode(mp4.read_bytes()).decode()
    items = [{"history": [{"text": "a", "video_b64": video, "video_path": "x"}]}, {"history": [{"text": "a"}]}]
    with serve().http() as http:
        answer = http.post("/score", json={"requests": items}).json()
    assert all("exactly one" in error["dover"] for error in answer["errors"])


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000])
def test_a_length_that_no_server_in_front_has_checked_is_refused(length):
    async def ask():
        transport = httpx.ASGITransport(app=Guard(None, ServerSettings()))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.post("/score", headers={"Content-Length": length.encode("latin-1")})

    answer = asyncio.run(ask())
    assert answer.status_code == 400
    assert "expected a whole number as Content-Length" in answer.text


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
