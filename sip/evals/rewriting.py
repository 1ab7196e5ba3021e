"""Evaluation of a rewriter against a ground truth: what it leaves alone, and what it mends."""

from difflib import SequenceMatcher

import numpy as np

from sip.data.documents import Truth
from sip.evals.continuations import Prompts
from sip.rewriter import Rewriter
from sip.structs import Metrics
from sip.textgen import Ids
from sip.tokenizer import Tokenizer


def overlap(a: Ids, b: Ids) -> float:
    """Share of the tokens of both that stand in blocks common to both, in order: 1 for a copy.

    Ratcliff and Obershelp's ratio, as the standard library has it. arXiv 2601.21343 reports a token
    overlap of rewrites with safe suffixes; how it is counted there we do not know.
    """
    return SequenceMatcher(None, a, b, autojunk=False).ratio()


def figures(
    rewriter: Rewriter, truth: Truth, tokenizer: Tokenizer, asked: Prompts, *, words: int
) -> Metrics:
    """(total, denom) pairs on held-out suffixes of about `words` words, by name.

    Of all: `invalid`, `win_rate` in quality against the suffix (ties 1/2) and `factuality`. Of
    those that the truth leaves as they are: `copied` and `overlap`. Of the safe ones, other faults
    or not: `overlap_safe`. Of the unsafe ones: `made_safe`. An invalid rewrite counts as 0.
    """
    texts, valid_E = rewriter.rewrite(asked.prefixes, asked.suffixes)
    before = truth.score(asked.prefixes, asked.suffixes)
    after = truth.score(asked.prefixes, texts)
    right = truth.rewrite(asked.prefixes, asked.suffixes, words)
    good_E = np.array([a == b for a, b in zip(right, asked.suffixes, strict=True)], bool)
    safe_E = np.asarray(before["safety"]) == 1
    same_E = np.array([a == b for a, b in zip(texts, asked.suffixes, strict=True)], bool)
    shared_E = np.array(
        [
            overlap(tokenizer.encode(a), tokenizer.encode(b))
            for a, b in zip(texts, asked.suffixes, strict=True)
        ]
    )
    mean = lambda x_E, of_E: (float(np.where(valid_E, x_E, 0.0)[of_E].sum()), float(of_E.sum()))
    every_E = np.ones(len(texts), bool)
    return {
        "invalid": (float((~valid_E).sum()), float(len(texts))),
        "copied": mean(same_E, good_E),
        "overlap": mean(shared_E, good_E),
        "overlap_safe": mean(shared_E, safe_E),
        "made_safe": mean(after["safety"], ~safe_E),
        "win_rate": mean(truth.compare(after["quality"], before["quality"]), every_E),
        "factuality": mean(after["factuality"], every_E),
    }
