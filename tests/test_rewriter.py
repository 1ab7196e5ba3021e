"""The ground truth as a rewriter."""

from sip.rewriter import TruthRewriter


class FakeTruth:
    def rewrite(self, prefixes, suffixes, words):
        return [" ".join((p + s).split()[:words]) for p, s in zip(prefixes, suffixes, strict=True)]


def test_the_truth_rewrites_to_the_words_asked_for():
    texts, valid = TruthRewriter(FakeTruth(), 2).rewrite(["a", "b"], [" c d", " e f"])
    assert texts == ["a c", "b e"] and valid.tolist() == [True, True]


def test_an_empty_rewrite_is_invalid():
    texts, valid = TruthRewriter(FakeTruth(), 2).rewrite(["a", " "], [" c", " "])
    assert texts == ["a c", ""] and valid.tolist() == [True, False]
