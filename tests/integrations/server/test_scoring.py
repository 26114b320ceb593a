"""Every answer to a good request is right, whichever way it is asked."""

import asyncio
import base64
import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dover_integrations.rewards import DoverReward, RewardError
from dover_integrations.server.client import _seconds
from dover_integrations.server.wire import SAFETENSORS, encode_clips
from PIL import Image
from safetensors.torch import save

from dover_eval import VideoScorer
from dover_eval.opinion import SCORE_NAMES


def test_the_client_gives_what_the_reward_gives(serve, client, reward, videos, prompts):
    remote = client(serve())
    torch.testing.assert_close(remote.scores(videos, prompts), reward.scores(videos, prompts))
    torch.testing.assert_close(remote(videos, prompts), reward(videos, prompts))
    assert remote([], []).shape == (0,)


def test_a_trainer_swaps_one_for_the_other(serve, client, model, videos, prompts):
    settings = {"layout": "BCTHW", "value_range": (-1, 1), "weights": {"Alignment": 0.7, "Temporal": 0.3}, "std": 2}
    local = DoverReward(model, device="cpu", **settings)
    remote = client(serve(), **settings)
    frames = videos.permute(0, 2, 1, 3, 4) / 127.5 - 1
    for reward in (local, remote):
        reward.to("cpu").offload()
        reward.onload()
    torch.testing.assert_close(remote(frames, prompts), local(frames, prompts), atol=1e-4, rtol=0)
    found = asyncio.run(remote.scores_async(frames, prompts))
    torch.testing.assert_close(found, local.scores(frames, prompts), atol=1e-4, rtol=0)


def test_many_clients_at_once_each_get_their_own_answer(serve, client, reward, videos, prompts):
    remote = client(serve())
    pairs = [(i % 6, (i * 5 + 1) % 6) for i in range(48)]
    expected = torch.cat([reward(videos[i : i + 1], prompts[j]) for i, j in pairs])
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda pair: remote(videos[pair[0] : pair[0] + 1], prompts[pair[1]]), pairs))
    torch.testing.assert_close(torch.cat(found), expected)


def test_a_long_list_goes_in_several_requests_and_keeps_its_order(serve, client, reward, videos, prompts):
    clips = [videos[i % 6, : 1 + i % 5] for i in range(37)]
    texts = [prompts[i % 6] for i in range(37)]
    server = serve()
    torch.testing.assert_close(client(server)(clips, texts), reward(clips, texts))
    with server.http() as http:
        assert 'dover_requests_total{path="/score",status="200"} 3.0' in http.get("/metrics").text


def test_a_proxy_of_the_environment_is_not_between_client_and_server(serve, client, videos, prompts, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert client(serve())(videos[:1], prompts[:1]).isfinite().all()


def test_files_are_scored_as_in_process(serve, client, reward, mp4, monkeypatch):
    monkeypatch.setenv("HOME", str(mp4.parent))
    found = client(serve()).scores((file for file in (mp4, f"~/{mp4.name}")), "a cat")
    torch.testing.assert_close(found, reward.scores([mp4, mp4], "a cat"))


def test_frames_with_nan_never_leave_the_client(serve, client, videos, prompts):
    frames = videos.float() / 255
    frames[2] = torch.nan
    with pytest.raises(RewardError, match=r"videos\[2\]: frames .* hold NaN"):
        client(serve(), value_range=(0, 1))(frames, prompts)
    found = client(serve(), value_range=(0, 1), nan_policy="nan")(frames, prompts)
    assert found.isnan().tolist() == [False, False, True, False, False, False]


def test_files_and_tensors_mix_and_what_cannot_be_read_fails_alone(serve, client, reward, videos, mp4, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(mp4.read_bytes()[:300])
    clips = [videos[0], mp4, tmp_path / "broken.mp4", videos[1], tmp_path / "missing.mp4", mp4]
    found = client(serve(), nan_policy="nan").scores(clips, "a cat")
    assert found.isnan().any(dim=1).tolist() == [False, False, True, False, True, False]
    torch.testing.assert_close(found[[0, 3, 1, 5]], reward.scores([videos[0], videos[1], mp4, mp4], "a cat"))
    with pytest.raises(RewardError, match=r"videos\[4\]: .*missing\.mp4: No such file"):
        client(serve())([videos[0]] * 4 + [tmp_path / "missing.mp4"], "a cat")


def test_requests_are_small_in_bytes_too(serve, client, reward, videos, prompts, monkeypatch):
    size = videos[0].numel()
    monkeypatch.setattr("dover_integrations.server.client.BYTES_PER_REQUEST", 2 * size)
    found = client(serve(max_body=2 * size + 2000))(videos, prompts)
    torch.testing.assert_close(found, reward(videos, prompts))
    found = client(serve(max_body=2 * size + 2000))(videos.repeat(1, 2, 1, 1, 1)[:2], prompts[:2])  # one a request
    assert found.isfinite().all()


def test_a_request_that_is_too_large_for_the_server_goes_in_halves(serve, client, reward, videos, prompts, mp4):
    for server in (serve(queue_size=2), serve(max_clips=2)):
        torch.testing.assert_close(client(server)(videos[:5], prompts[:5]), reward(videos[:5], prompts[:5]))
        torch.testing.assert_close(client(server)([mp4] * 5, prompts[:5]), reward([mp4] * 5, prompts[:5]))


def test_a_clip_that_no_request_can_bring_is_that_clip_s_failure(serve, client, videos):
    small, large = videos[0, :1], videos[0].repeat(4, 1, 1, 1)
    server = serve(max_body=large.numel())
    found = client(server, nan_policy="nan")([small, large], "a cat")
    assert found.isnan().tolist() == [False, True]
    with pytest.raises(RewardError, match=r"videos\[1\]: .*413: .*at most \d+ bytes"):
        client(server)([small, large], "a cat")


def ask_in_child(client, video, prompt, answers):
    answers.put((prompt, [client(video, prompt).item() for _ in range(5)]))


def test_forked_children_do_not_speak_on_their_parents_connection(serve, client, reward, videos, prompts):
    remote = client(serve())
    remote(videos[:1], prompts[:1])
    expected = {prompt: reward(videos[i : i + 1], prompt).item() for i, prompt in enumerate(prompts)}
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    asking = [(remote, videos[i : i + 1], prompt, answers) for i, prompt in enumerate(prompts)]
    children = [fork.Process(target=ask_in_child, args=arguments) for arguments in asking]
    for child in children:
        child.start()
    found = dict(answers.get(timeout=60) for _ in children)
    for child in children:
        child.join(20)
    for prompt, values in found.items():
        assert values == pytest.approx([expected[prompt]] * 5, rel=1e-5)


def test_retry_after_is_seconds_or_a_date():
    assert [_seconds(header) for header in ("3", "0.5", "", "soon", "inf")] == [3, 0.5, 0, 0, 0]
    assert _seconds(f"Fri, 31 Dec {'9' * 30} 00:00:00 GMT") == 0
    assert _seconds("Thu, 01 Jan 1970 00:00:00 GMT") < 0 < 1e6 < _seconds("Fri, 31 Dec 2100 00:00:00 GMT")


def test_a_client_is_picklable_and_has_no_gradients(serve, client, reward, videos, prompts):
    remote = client(serve())
    remote(videos[:1], prompts[:1])
    copy = pickle.loads(pickle.dumps(remote))
    torch.testing.assert_close(copy(videos, prompts), reward(videos, prompts))
    copy.close()
    with pytest.raises(RewardError, match="no gradients come back"):
        remote.differentiable(videos, prompts)


def test_another_model_on_the_same_port_is_an_error_until_it_is_agreed_to(serve, client, reward, model, videos):
    server = serve()
    remote = client(server, nan_policy="nan")
    assert remote.fingerprint is None
    before = remote(videos, "a cat")
    known = remote.fingerprint
    assert known == reward.scorer.fingerprint.digest
    server.stop()
    server.join()
    other = DoverReward(copy.deepcopy(model), layout="BTCHW", value_range=(0, 255), device="cpu", nan_policy="nan")
    with torch.no_grad():
        next(other.scorer.model.mos_predictor.parameters()).mul_(1.5)
    serve(other, port=server.port)
    for asking in (remote, pickle.loads(pickle.dumps(remote))):
        with pytest.raises(RewardError, match=f"fingerprint {known} from .*, got those of .* fingerprint to None"):
            asking(videos, "a cat")
        asking.fingerprint = None
        assert not torch.equal(asking(videos, "a cat"), before)
        assert asking.fingerprint == other.scorer.fingerprint.digest
        asking.close()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "ftp://localhost", "unix:///socket", "http://", ""])
def test_a_url_of_another_form_is_refused_at_once(client, url):
    with pytest.raises(ValueError, match="expected a URL such as"):
        client(url)


def test_one_tensor_of_videos_is_a_body_too(serve, reward, videos, prompts):
    body = save({"videos": videos}, metadata={"prompts": '["' + '", "'.join(prompts) + '"]'})
    with serve().http() as http:
        answer = http.post("/score", content=body, headers={"Content-Type": SAFETENSORS})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [next(iter(result["dover"])) for result in results] == ["Overall"] * 6
    found = torch.tensor([[result["dover"][name] for name in SCORE_NAMES] for result in results])
    torch.testing.assert_close(found, reward.scores(videos, prompts))


def test_unirl_gets_its_protocol(serve, reward, mp4):
    """As its remote backend does: health first, then items with identities, and one that asks for another reward."""
    video = base64.b64encode(mp4.read_bytes()).decode()
    identity = {"request_id": "r1", "sample_id": "s1", "group_id": None, "source_rank": 0, "idempotency_key": "k"}
    good = {"history": [{"text": "a cat", "video_b64": video}], "required_rewards": ["dover"], "metadata": None}
    other = good | {"required_rewards": ["dover", "hpsv3"], "request_id": "r2"}
    broken = {"history": [{"text": "a cat", "video_b64": base64.b64encode(b"no video").decode()}]}
    with serve().http() as http:
        health = http.get("/health").json()
        answer = http.post("/score", json={"protocol_version": "1", "requests": [good | identity, other, broken]})
    assert health["status"] == "ok"
    assert list(health["rewards"]) == ["dover"]
    body = answer.json()
    assert body["protocol_version"] == "1"
    assert next(iter(body["results"][0]["dover"].values())) == pytest.approx(reward([mp4], "a cat").item(), rel=1e-5)
    assert body["errors"][0] == {}
    assert body["results"][1] == {}
    assert set(body["errors"][1]) == {"dover", "hpsv3"}
    assert body["results"][2] == {}
    assert "expected a video file" in body["errors"][2]["dover"]
    assert body["identities"][0] == identity | {"policy_version": None, "scorer_version": None}
    assert body["fingerprint"] == health["fingerprint"]


def png(frame):
    data = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def test_flow_factory_gets_its_protocol(serve, reward, videos, prompts):
    payload = {
        "prompt": prompts[:2],
        "image": None,
        "video": [[png(frame) for frame in clip] for clip in videos[:2]],
        "condition_images": None,
        "condition_videos": None,
        "kwargs": None,
    }
    with serve().http() as http:
        answer = http.post("/compute", json=payload).json()
        failed = http.post("/compute", json=payload | {"video": [["AAAA"], ["AAAA"]]})
    assert not answer.get("error")
    assert answer["rewards"] == pytest.approx(reward(videos[:2], prompts[:2]).tolist(), rel=1e-5)
    assert failed.status_code == 400
    assert "no PNG or JPEG" in failed.json()["detail"]


def test_weights_are_digested_once(serve, client, reward, videos, prompts, monkeypatch):
    server = serve()
    digest = reward.scorer.fingerprint.digest
    monkeypatch.setattr(VideoScorer, "fingerprint", property(lambda _: pytest.fail("digested again")))
    with server.http() as http:
        assert http.get("/health").json()["fingerprint"] == digest
    remote = client(server)
    assert remote(videos, prompts).isfinite().all()
    assert remote.fingerprint == digest


def test_metrics_count_what_was_done(serve, client, videos, prompts):
    server = serve()
    client(server)(videos, prompts)
    with server.http() as http:
        http.get("/nothing/here")
        text = http.get("/metrics").text
    assert 'dover_clips_total{outcome="scored"} 6.0' in text
    assert 'dover_requests_total{path="/score",status="200"} 1.0' in text
    assert 'dover_requests_total{path="other",status="404"} 1.0' in text
    assert "dover_waiting_clips 0.0" in text


def test_the_description_is_there_to_read(serve):
    with serve().http() as http:
        schema = http.get("/openapi.json").json()
        assert [http.get(page).status_code for page in ("/docs", "/redoc")] == [404, 404]  # scripts from elsewhere
    assert set(schema["paths"]) == {"/score", "/compute", "/health", "/metrics"}
    assert SAFETENSORS in schema["paths"]["/score"]["post"]["requestBody"]["content"]


def test_a_body_survives_the_wire_bit_for_bit(videos, prompts):
    from dover_integrations.server.wire import decode_clips

    clips = [videos[0], videos[1, :2, :, :30, :20], videos[2].permute(0, 1, 3, 2)]
    found, texts = decode_clips(encode_clips(clips * 5, ['ä"\\'] * 15))
    assert texts == ['ä"\\'] * 15
    assert all(torch.equal(a, b) for a, b in zip(found, clips * 5, strict=True))
