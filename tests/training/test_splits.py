"""Who is who by content, and training and validation apart."""

import shutil
import zlib
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from dover_eval.evaluation import RatedClip
from dover_eval.hashing import file_sha256
from dover_eval.training import clips
from dover_eval.training.clips import ClipIdentity, ClipStore, frames_look, look_alikes, survey
from dover_eval.training.splits import DuplicateError, SplitError, check_apart, split_examples
from dover_eval.video.decode import VideoError, decode_clip
from dover_eval.video.sample import prepare_clip
from tests.training.small import CLIPS

NEAR = 0.06


@pytest.fixture
def store(small_config, tmp_path):
    return ClipStore(small_config, tmp_path / "cache", 10**8)


def reencode(source, target, *, crf, height, width):
    """The clip again at another size and quality, through a real encoder."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = write.add_stream("libx264", rate=8, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i, frame in enumerate(read.decode(video=0)):
            pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
            again = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            again.pts = i
            write.mux(stream.encode(again))
        write.mux(stream.encode())
    return target


def test_the_store_gives_what_a_scorer_sees(store, small_config):
    path = CLIPS / "star_clean.mp4"
    want = prepare_clip(decode_clip(path, small_config.num_frames).frames, small_config)
    for _ in range(2):  # decoded, then from the disk
        assert torch.equal(store.load(str(path), file_sha256(path)), want)


def test_another_sampling_is_another_entry(store, small_config, tmp_path):
    path = str(CLIPS / "star_clean.mp4")
    sha256 = file_sha256(path)
    first = store.load(path, sha256)
    second = ClipStore(replace(small_config, num_frames=6), tmp_path / "cache", 10**8).load(path, sha256)
    assert first.shape[1] == 4
    assert second.shape[1] == 6


def test_another_decoder_reads_a_clip_anew(store, small_config, tmp_path, monkeypatch):
    path = str(CLIPS / "heart_clean.mp4")
    store.identify(path)
    monkeypatch.setattr(clips, "DECODERS", ("0.1.0", "99.0.0"))
    later = ClipStore(small_config, tmp_path / "cache", 10**8)

    def refuse(*_):
        raise VideoError("damaged, as was found out since")

    monkeypatch.setattr(clips, "decode_clip", refuse)
    with pytest.raises(VideoError, match="found out since"):
        later.identify(path)
    with pytest.raises(VideoError, match="found out since"):
        later.load(path, file_sha256(path))


def test_a_file_that_is_replaced_after_the_survey_is_refused_and_nothing_is_kept_of_it(store, tmp_path):
    path, sha256 = tmp_path / "clip.mp4", file_sha256(CLIPS / "star_clean.mp4")
    shutil.copy(CLIPS / "star_noisy.mp4", path)
    with pytest.raises(VideoError, match=f"clip.mp4 has changed: expected the content of sha256 {sha256[:12]}"):
        store.load(str(path), sha256)
    clean = str(CLIPS / "star_clean.mp4")
    want = ClipStore(store.config, tmp_path / "another", 10**8).load(clean, sha256)
    assert torch.equal(store.load(clean, sha256), want)


def test_a_survey_tells_every_clip_and_every_failure_and_works_in_processes(store, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((CLIPS / "heart_clean.mp4").read_bytes()[:2000])
    paths = [str(path) for path in (CLIPS / "heart_clean.mp4", broken, CLIPS / "star_clean.mp4")]
    identities, errors = survey(paths, store, workers=2)
    assert identities == survey(paths, store, workers=0)[0]
    assert list(identities) == [paths[0], paths[2]]
    assert "broken.mp4" in errors[str(broken)]
    assert identities[paths[0]].sha256 == file_sha256(paths[0])


def test_looks_stay_when_a_clip_is_encoded_again_and_not_between_clips(store, tmp_path):
    names = ("heart_clean", "star_clean")
    first = [store.identify(str(CLIPS / f"{name}.mp4")) for name in names]
    second = [
        store.identify(str(reencode(CLIPS / f"{n}.mp4", tmp_path / f"{n}.mp4", crf=30, height=96, width=128)))
        for n in names
    ]
    assert {a.sha256 for a in first}.isdisjoint(b.sha256 for b in second)
    assert look_alikes(first, second, NEAR) == [(0, 0), (1, 1)]
    assert look_alikes(first, second, 0) == []


def test_looks_of_other_pictures_differ_in_about_half_their_bits():
    looks = [frames_look(torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8)) for _ in range(8)]
    bits = np.unpackbits(np.frombuffer(b"".join(looks), np.uint8).reshape(8, 32), axis=1)
    apart = [int((bits[i] != bits[j]).sum()) for i in range(8) for j in range(i)]
    assert min(apart) > 90
    assert max(apart) < 166


def test_flat_clips_have_no_look_and_resemble_nothing():
    black = frames_look(torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    assert black == b""
    flat = [ClipIdentity("a", None), ClipIdentity("b", None)]
    assert look_alikes(flat, flat, NEAR) == []


def rated(clip, prompt, content=None):
    return RatedClip(clip, prompt, {"Overall": 3.0}, content)


def identity(name, bits=None):
    """Of a file of its own, which looks like nothing else unless `bits` says."""
    if bits is None:
        bits = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, 32, dtype=np.uint8).tobytes().hex()
    return ClipIdentity(f"sha-{name}", bits)


def identities_of(examples):
    return {video: identity(video) for example in examples for video in example.videos}


def sides(examples, identities, share=0.3, seed=0):
    training, validation = split_examples(examples, identities, share, near=NEAR, seed=seed)
    assert len(training) + len(validation) == len(examples)
    return training, validation


def test_rows_of_one_prompt_stay_together():
    examples = [rated(f"{prompt}-{model}", prompt) for prompt in "abcdefghij" for model in range(5)]
    training, validation = sides(examples, identities_of(examples))
    assert len(validation) == 15
    assert {e.prompt for e in training}.isdisjoint(e.prompt for e in validation)


def test_a_prompt_in_other_capitals_and_with_other_blanks_is_the_same():
    spellings = ("A Cat  number {}", "a cat number {} ")
    examples = [rated(f"{i}-{k}", text.format(i)) for i in range(10) for k, text in enumerate(spellings)]
    training, validation = sides(examples, identities_of(examples))
    numbers = lambda side: {e.videos[0].split("-")[0] for e in side}
    assert numbers(training).isdisjoint(numbers(validation))


def test_rows_of_one_file_stay_together_under_other_names_and_prompts():
    examples = [rated(f"{i}-{name}", f"prompt {i} {name}") for i in range(10) for name in ("one", "two")]
    identities = {video: identity(video.split("-")[0]) for e in examples for video in e.videos}
    training, validation = sides(examples, identities)
    numbers = lambda side: {e.videos[0].split("-")[0] for e in side}
    assert numbers(training).isdisjoint(numbers(validation))


def test_clips_that_look_alike_stay_together():
    examples = [rated(f"{i}-{name}", f"prompt {i} {name}") for i in range(10) for name in ("one", "two")]
    looks = {str(i): identity(str(i)).look for i in range(10)}
    identities = {v: identity(v, looks[v.split("-")[0]]) for e in examples for v in e.videos}
    training, validation = sides(examples, identities)
    numbers = lambda side: {e.videos[0].split("-")[0] for e in side}
    assert numbers(training).isdisjoint(numbers(validation))
    check_apart(training, validation, identities, near=NEAR)


def test_a_content_column_decides_alone():
    examples = [rated(f"clip {i}", "the same prompt", content=str(i % 10)) for i in range(20)]
    training, validation = sides(examples, identities_of(examples))
    assert len(validation) == 6
    assert {e.content for e in training}.isdisjoint(e.content for e in validation)


def test_a_split_hangs_on_the_seed_and_not_on_the_order():
    examples = [rated(f"clip {i}", f"prompt {i // 2}") for i in range(40)]
    identities = identities_of(examples)
    names = lambda side: {e.videos[0] for e in side}
    _, first = sides(examples, identities)
    _, again = sides(examples[::-1], identities)
    _, other = sides(examples, identities, seed=1)
    assert names(first) == names(again)
    assert names(first) != names(other)


def test_a_large_content_is_not_set_apart_for_a_small_share():
    examples = [rated(f"clip {i}", "one prompt of nearly all") for i in range(50)]
    examples += [rated(f"other {i}", f"prompt {i}") for i in range(8)]
    for seed in range(5):
        _, validation = sides(examples, identities_of(examples), share=0.1, seed=seed)
        assert 4 <= len(validation) <= 8


def test_one_content_cannot_be_split():
    examples = [rated(f"clip {i}", "one prompt") for i in range(9)]
    with pytest.raises(SplitError, match="9 rows are of 1 contents: too few to set 30% apart"):
        sides(examples, identities_of(examples))


def test_a_clip_that_the_content_column_calls_two_contents_is_refused_as_that():
    examples = [rated(f"clip {i % 10}", "a prompt", content=f"rater {i // 10}") for i in range(30)]
    with pytest.raises(DuplicateError, match=r"clip \d and clip \d\. The column `content` sets their rows apart"):
        split_examples(examples, identities_of(examples), 0.3, near=NEAR, seed=0)


def test_duplicates_across_splits_are_found_and_refused(store, tmp_path):
    """The same bytes under another name, and the same clip encoded again."""
    clean, star = CLIPS / "heart_clean.mp4", CLIPS / "star_clean.mp4"
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clean.read_bytes())
    again = reencode(clean, tmp_path / "again.mp4", crf=26, height=120, width=160)
    identities = {str(path): store.identify(str(path)) for path in (clean, star, copy, again)}
    of = lambda path: rated(str(path), path.stem)
    check_apart([of(clean)], [of(star)], identities, near=NEAR)
    with pytest.raises(DuplicateError, match=r"1 clips .* with the same bytes: .*heart_clean\.mp4 and .*copy\.mp4"):
        check_apart([of(clean)], [of(star), of(copy)], identities, near=NEAR)
    with pytest.raises(DuplicateError, match=r"nearly the same frames: .*heart_clean\.mp4 and .*again\.mp4"):
        check_apart([of(clean)], [of(star), of(again)], identities, near=NEAR)
    check_apart([of(clean)], [of(star), of(again)], identities, near=0)  # asked for: bytes alone
