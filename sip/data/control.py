"""Control tokens: one token between prefix and suffix that says what kind of suffix follows.

Conditional pretraining (arXiv 2302.08582) puts a good or a bad token in front of every segment of
a document, chosen by the segment's score. Here the suffix is the segment, so the token stands at
the fork. It is given, never predicted: who asks for a continuation chooses it.
Letters: B chunks, T tokens of prefix and suffix.
"""

import numpy as np

from sip.data.chunks import Batch
from sip.structs import UserError
from sip.text.tokenizer import Tokenizer

NONE = -1  # in place of a token id: no control token


def token(tokenizer: Tokenizer, text: str, key: str) -> int:
    """Returns the id of a control token. Raises UserError, naming the config key or flag `key`, if
    it is not one token."""
    ids = tokenizer.encode_special(text)
    if len(ids) != 1:
        raise UserError(
            f"{key} {text!r}: is {len(ids)} tokens of the tokenizer, not one; add it to "
            "tokenizer.symbols, or name a special token that the tokenizer has"
        )
    return ids[0]


def insert(rows: Batch, control_B: np.ndarray, pad: int) -> Batch:
    """Returns the batch with the tokens `control_B` at the forks; NONE leaves a row as it is.

    Prefixes are longer by the token, and T by one. The key `given_BT` of the result is True at the
    control tokens, which no loss predicts. `pad` is the token id at masked positions.
    """
    fork_B1 = rows["fork_B"][:, None]
    has_B1 = (control_B != NONE)[:, None]
    at_BT = np.arange(rows["tokens_BT"].shape[1] + 1)[None]
    given_BT = has_B1 & (at_BT == fork_B1)
    source_BT = at_BT - (has_B1 & (at_BT > fork_B1))  # the suffix moves on by one
    moved = lambda x_BT, fill: np.take_along_axis(_wider(x_BT, fill), source_BT, axis=1)
    return {
        **rows,
        "tokens_BT": np.where(given_BT, control_B[:, None], moved(rows["tokens_BT"], pad)),
        "mask_BT": given_BT | moved(rows["mask_BT"], False),
        "fork_B": (rows["fork_B"] + has_B1[:, 0]).astype(np.int32),
        "given_BT": given_BT,
    }


def _wider(x_BT: np.ndarray, fill) -> np.ndarray:
    """Returns the array with one more column of `fill`."""
    return np.pad(x_BT, ((0, 0), (0, 1)), constant_values=fill)


def labels(
    score_B: np.ndarray,
    valid_B: np.ndarray,
    draw_B: np.ndarray,
    *,
    threshold: float,
    good: int,
    bad: int,
    unmarked: float,
) -> np.ndarray:
    """Returns the control token of each chunk: `good` from the threshold on, else `bad`.

    It is NONE if the score is not valid, or if the draw of [0, 1) is below the share `unmarked`.
    """
    marked_B = valid_B & (draw_B >= unmarked)
    return np.where(marked_B, np.where(score_B >= threshold, good, bad), NONE).astype(np.int32)
