"""Compares texts decoded from the last tokens of a prefix with those decoded from all of them."""

import os
import random

from sip.text.tokenizer import continuation


def by_the_whole(tok, prefix, ids):
    """The text that `ids` add, decoded with the whole prefix."""
    whole = tok.decode([*prefix, *ids])
    return whole[len(os.path.commonprefix([tok.decode(prefix), whole])) :]


def check(tok, texts, *, seed=0, rounds=300):
    """Decodes random tokens, most of them from `texts`, in parts that meet anywhere.

    Special, added and unknown tokens, broken characters and bytes are among them. Returns the share
    of places where a part starts.
    """
    rng, started, places = random.Random(seed), 0, 0
    odd = [*tok.specials.values(), tok.bos, tok.eos, tok.pad, -1, tok.vocab_size + 3]
    known = [tok.encode(text) for text in texts]
    bytes_ = [i for text in ("é€𓀀日", "\x00\x07") for i in tok.encode(text)]
    for _ in range(rounds):
        ids = []
        for _ in range(rng.randrange(1, 6)):
            row = rng.choice(known)
            at = rng.randrange(len(row))
            ids += row[at : at + rng.randrange(1, 9)]
            ids += rng.choices([*odd, *bytes_], k=rng.randrange(3))
            ids += rng.choices(range(tok.vocab_size), k=rng.randrange(3))
        whole = tok.decode(ids)
        for i in range(1, len(ids)):
            places += 1
            if tok.starts(ids[i]):
                started += 1
                assert tok.decode(ids[:i]) + tok.decode(ids[i:]) == whole, (ids, i)
            found = continuation(tok, ids[:i], ids[i:])
            assert found == by_the_whole(tok, ids[:i], ids[i:]), (ids, i)
    return started / places
