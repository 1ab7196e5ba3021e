"""Tests that the first step of instruction tuning is that of TRL's SFTTrainer."""

import importlib
import json
import math

import families
import published
import pytest
import tiny_recipe
from workdirs import lines

from sip.data import documents
from sip.run import Run
from sip.stages import recipe
from sip.tasks.supervised import conversations as task

pytest_plugins = ["tiny_fixtures"]
pytestmark = pytest.mark.slow
SHARED = tiny_recipe.ROOT.parent / "shared" / "data"
# ChatML with a line end before each message, so that nothing follows the last answer.
CHATML = """{%- for message in messages %}
    {{- ('' if loop.first else '\\n') + '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}{{- message.content + '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\\n<|im_start|>assistant\\n' }}{% endif %}"""
LENGTH = 512


def turns(*texts):
    who = ("user", "assistant")
    return [{"role": who[i % 2], "content": text} for i, text in enumerate(texts)]


def read(path):
    if not path.exists():
        pytest.skip(f"no {path.name} in the data directory beside the repository")
    return [json.loads(line) for line in path.read_text().splitlines()]


def sums():
    """Conversations of one and two turns, some with a system message."""
    rows = read(tiny_recipe.ROOT / "configs" / "examples" / "conversations.jsonl")
    return [row for row in rows if "messages" in row]


def problems():
    rows = read(SHARED / "gsm8k" / "train_2000.jsonl")[:60]
    return [
        {"prompt": turns(r["question"]), "completion": turns("", r["answer"])[1:]} for r in rows
    ]


def questions():
    """Two questions each, with answers of GPT-4."""
    said = {
        r["question_id"]: r for r in read(SHARED / "pairwise" / "mt_bench_reference_gpt4.jsonl")
    }
    rows = []
    for row in read(SHARED / "pairwise" / "mt_bench_questions.jsonl"):
        if row["question_id"] in said:
            (a, b), (c, d) = row["turns"], said[row["question_id"]]["choices"][0]["turns"]
            rows.append({"messages": turns(a, c, b, d)})
    return [row for row in rows if sum(len(m["content"]) for m in row["messages"]) < 1200]


def question(row):
    said = row["messages"] if "messages" in row else row["prompt"]
    return next(m["content"] for m in said if m["role"] == "user")


SETS = {"sums": sums, "problems": problems, "questions": questions}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Llama with Qwen's tokenizer and a chat template."""
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    found, settings = published.qwen()
    size = max(token["id"] for token in found["added_tokens"]) + 1
    raw = {**families.config("llama31"), "vocab_size": size, "max_position_embeddings": LENGTH}
    path = families.write(raw, tmp_path_factory.mktemp("llama") / "model")
    published.write(path, found, **settings, chat_template=CHATML)
    return path


def ours(checkpoint, rows, workdir):
    """Returns (loss, gradient norm, conversations) of the first step on all training rows."""
    # The held-out parts, which must not be empty, are those of the example file.
    others = [row for row in sums() if documents.part(question(row)) != "train"]
    lines_of = [json.dumps(row) for row in (*rows, *(o for o in others if o not in rows))]
    (workdir / "c.jsonl").write_text("\n".join(lines_of))
    config = importlib.import_module("sft").get_config(f"{checkpoint},debug")
    run = config.runs.assistant
    run.update(steps=1, batch=1)
    run.task.update(path=str(workdir / "c.jsonl"), length=LENGTH)
    run.optim.warmup_steps = 0
    assert run.task.chat == "own" and run.task.packed
    # One step sees every row.
    c = recipe.STAGES["supervised"].resolve(config, "assistant")
    seen = Run(config, "assistant", str(workdir))
    found = task.examples(seen, c)
    run.batch = len(task.rows(seen, c, found, "train", "c.jsonl"))
    recipe.check(config, str(workdir))
    recipe.STAGES["supervised"].train(Run(config, "assistant", str(workdir)))
    first = next(line for line in lines(workdir, "assistant") if "loss/ce" in line)
    used = documents.select(found, "train", lambda one: one[0].part)
    return first["loss/ce"], first["grad/norm"], [one for one, _ in used]


def theirs(checkpoint, rows, workdir):
    """Returns (loss, gradient norm) of the first step of TRL's trainer on one batch of `rows`."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    conversational = "messages" in rows[0]
    args = SFTConfig(
        output_dir=str(workdir / "trl"), per_device_train_batch_size=len(rows), max_steps=1,
        learning_rate=1e-9, logging_steps=1, report_to=[], use_cpu=True, bf16=False,
        max_length=None, save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
        assistant_only_loss=conversational, completion_only_loss=not conversational,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32"),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    trainer.train()
    found = trainer.state.log_history[0]
    return float(found["loss"]), float(found["grad_norm"])


@pytest.mark.parametrize("name", SETS)
def test_the_first_step_is_that_of_trl(name, checkpoint, quick, tmp_path):
    pytest.importorskip("trl", reason="needs trl")
    rows = SETS[name]()
    loss, norm, used = ours(checkpoint, rows, tmp_path)
    by_question = {}
    for row in rows:
        said = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
        by_question[json.dumps(said)] = row
    mine = [by_question[json.dumps(list(one.messages))] for one in used]
    assert len(mine) >= 8
    want_loss, want_norm = theirs(checkpoint, mine, tmp_path)
    print(f"{name}: {len(mine)} conversations, loss {loss} {want_loss}, norm {norm} {want_norm}")
    assert math.isclose(loss, want_loss, rel_tol=1e-4)
    assert math.isclose(norm, want_norm, rel_tol=1e-4)
