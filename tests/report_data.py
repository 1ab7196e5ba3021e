"""Workdirs made by hand for tests of the report: configs, metrics and candidates, no training."""

import json
import random
from pathlib import Path

import tiny_recipe

from sip import workdir as workdirs

# Texts that would do harm if the page took them for more than text.
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<svg onload=window.hacked=1>",
    "<!--<script>",
    "-->",
    "<iframe srcdoc='<script>parent.hacked=1</script>'>",
    "<a href='javascript:window.hacked=1'>x</a>",
    "' onmouseover='window.hacked=1",
    '" onfocus="window.hacked=1" autofocus="',
    "<style>*{display:none}</style>",
    "{{ 7*7 }}",
    "{% for x in range(9) %}",
    "${7*7}",
    "`${window.hacked=1}`",
    "{{ config.__class__ }}",
    "\u2028window.hacked=1\u2029",
    "\u202egnp.exe\u202c",
    "\u2066abc\u2069",
    "a\u0000b",
    "\u0000",
    "\ufeffbom",
    "\x1b[31mred\x1b[0m",
    "\x07\x08\x7f\x9b",
    "]]>",
    "<![CDATA[<b>]]>",
    "&lt;b&gt; &amp;amp; &#60;",
    "&#x3c;script&#x3e;",
    "\ud83d",
    "\udc00\ud800",
    "👩‍👩‍👧 e\u0301 \u200b",
    "שלום <b>עולם</b>",
    "x" * 60_000,
    "y " * 3_000,
    "\r\n\r\n\t\v\f",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><input name=q>",
    "\\u003cscript\\u003e",
    "soft\u00adhyphen \u180e \u3164 \u115f\u1160 \u034f \u2800 \uffa0",
    "\u2764\ufe0f \ufe00 \U000e0100",
    "tags \U000e0001\U000e0041\U000e007f",
    "joined\u200d\u200c\u200dletters",
    "constructor",
    "__proto__",
    "#at=0:x:1:0&q=%3Cb%3E",
)
WORDS = "the river ran under an old stone bridge and nobody knew who had built it first".split()


def candidate(source: str, text: str, score: float | None = 0.5, **more) -> dict:
    """Returns a candidate as the log has it."""
    plain = dict(aspects={"quality": score}, valid=score is not None, why=None, chosen=False)
    plain |= dict(rejected=False, advantage=None, tokens=8, ended=None, said=[])
    return {"source": source, "text": text, "score": score, **plain, **more}


def prefix(step: int, row: int, prompt: str, candidates: list[dict]) -> dict:
    """Returns a line of candidates.jsonl."""
    kind = dict(kind="candidates", prompt=prompt, reference=None)
    return {"step": step, "row": row, **kind, "candidates": candidates}


def write_lines(path: Path, rows: list[dict]) -> None:
    """Writes JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prefixes(steps: int, rows: int, seed: int = 0) -> list[dict]:
    """Makes lines of candidates.jsonl with six candidates each; the last one is invalid."""
    draw = random.Random(seed)
    text = lambda n: " ".join(draw.choices(WORDS, k=n))
    found = []
    for step in range(10, 10 * steps + 1, 10):
        for row in range(rows):
            kinds = ("suffix", "rewrite", *("rollout",) * 3)
            some = [candidate(k, text(24), round(draw.random(), 3)) for k in kinds]
            best = max(some, key=lambda x: x["score"])
            worst = min(some, key=lambda x: x["score"])
            best["chosen"], worst["rejected"] = True, True
            vote = dict(aspect="quality", against=1, text=f"Better: {text(9)}", value=1.0)
            some[0]["said"] = [vote, {**vote, "against": None, "value": None}]
            some.append(candidate("rollout", some[0]["text"], None, why="duplicate"))
            # Prompts do not depend on the seed: two workdirs read the same documents.
            prompt = f"Prefix {step} {row}: " + " ".join(WORDS[(row + i) % 15] for i in range(30))
            found.append(prefix(step, row, prompt, some))
    return found


def workdir(to: Path, lines: list[dict], run: str = "sip_learned") -> Path:
    """Makes a workdir of the tiny recipe with metrics and the candidates `lines` of one run."""
    config = tiny_recipe.get_config()
    to.mkdir(parents=True, exist_ok=True)
    workdirs.write_json(to / "config.json", workdirs.resolved(config))
    reward = {"reward/suffix": 0.4, "reward/rollout": 0.5, "chosen/rollout": 0.7}
    rows = [
        {"step": s, "loss/total": 5 - s / 10, "speed/seconds": 2.0, "speed/share/judge": 0.5}
        | {k: v + s / 100 for k, v in reward.items()}
        for s in (1, 2)
    ]
    write_lines(to / "runs" / run / "metrics.jsonl", rows)
    write_lines(to / "runs" / run / "candidates.jsonl", lines)
    texts = [
        dict(step=s, prompt=f"Prompt {i}", text=f"text {s} {i}") for s in (1, 2) for i in (0, 1)
    ]
    write_lines(to / "runs" / run / "samples.jsonl", texts)
    return to
