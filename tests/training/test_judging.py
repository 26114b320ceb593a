"""What a validation can and cannot judge."""

import pytest
import torch

from dover_eval.evaluation import JudgedPair, RatedClip
from dover_eval.training.judging import check_judgeable, judge, quality
from dover_eval.training.splits import SplitError


def rated(clip, rating=3.0):
    return RatedClip(f"{clip}", "a prompt", {"Overall": rating})


def compared(first, second, verdict):
    return JudgedPair(f"{first}", f"{second}", "a prompt", {"Overall": verdict})


def test_pairs_are_judged_where_the_ratings_of_their_score_are_too_few():
    validation = [rated(0), rated(1, 4.0), *(compared(i + 1, i, 1) for i in range(4))]
    check_judgeable(validation)
    keys = [(f"{i}", "a prompt") for i in range(5)]
    report = judge(validation, keys, torch.arange(5.0)[:, None].expand(-1, 5), resamples=0)
    assert report.aspects["Overall"].count == 4
    assert quality(report) == 1
    assert report.left_out["Overall"] == "2 rated clips, at least 5 are needed: the figures are of its pairs"


NOTHING_TO_JUDGE = {
    "three clips, by two raters each": ([rated(i % 3, 2.0 + i % 3) for i in range(6)], "3 rated clips, at least 5"),
    "ratings that are all equal": ([rated(i) for i in range(6)], "every rating is 3"),
    "pairs that are all ties": ([compared(i + 1, i, 0) for i in range(6)], "every pair is a tie"),
    "no opinions": ([RatedClip("0", "a prompt", {})], "no ratings and no verdicts"),
}


@pytest.mark.parametrize("what", NOTHING_TO_JUDGE)
def test_a_validation_by_which_no_checkpoint_could_be_chosen_is_refused_with_the_reason(what):
    validation, reason = NOTHING_TO_JUDGE[what]
    with pytest.raises(SplitError, match=f"nothing could be judged on it .*{reason}"):
        check_judgeable(validation)
