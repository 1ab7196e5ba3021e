"""Tests chat templates: the same text as transformers, and messages stay plain text."""

import json

import chats
import hostile
import published
import pytest

from sip.structs import UserError
from sip.text import chat, rendering
from sip.text.chat import Template, render, segments, turn
from sip.text.segments import Markup, prompt_of, tokens_of
from sip.text.tokenizer import Byte, Cached, load

pytest.importorskip("jinja2", reason="needs jinja2")
GOLDENS = json.loads(chats.GOLDENS.read_text())
ASKED = chats.asked()
FAMILIES = sorted(set(chats.templates()) - {"torchtitan_test"})


def template(name):
    return Template(chats.templates()[name], chats.NAMES, name)


def ours(source, conversation, more):
    try:
        return render(Template(source, chats.NAMES), conversation, add_generation_prompt=more)
    except UserError as error:
        return {"error": str(error).removeprefix("chat template: ")}


def test_the_goldens_are_of_ten_conversations_and_of_seven_families():
    assert len(chats.CONVERSATIONS) >= 10 and len(FAMILIES) >= 7
    assert {key for key, *_ in ASKED} <= set(GOLDENS)
    errors = [key for key, value in GOLDENS.items() if isinstance(value, dict)]
    assert any("gemma / system" in key for key in errors) and len(errors) < len(GOLDENS) / 5


@pytest.mark.parametrize("name", chats.templates())
def test_every_conversation_is_rendered_as_transformers_renders_it(name):
    rows = [row for row in ASKED if row[0].startswith(f"{name} /")]
    assert len(rows) == 2 * len(chats.CONVERSATIONS)
    for key, *rest in rows:
        assert ours(*rest) == GOLDENS[key], key


@pytest.mark.slow
@pytest.mark.parametrize("name", chats.templates())
def test_every_golden_is_what_transformers_says_today(name):
    pytest.importorskip("transformers", reason="needs transformers")
    for key, *rest in [row for row in ASKED if row[0].startswith(f"{name} /")]:
        assert chats.theirs(*rest) == GOLDENS[key], key


@pytest.mark.parametrize("name", chats.templates())
@pytest.mark.parametrize("title", chats.CONVERSATIONS)
def test_segments_joined_are_the_whole_and_messages_stand_at_odd_places(name, title):
    conversation = chats.CONVERSATIONS[title]
    for more in (False, True):
        golden = GOLDENS[f"{name} / {title} / {more}"]
        if isinstance(golden, dict):
            with pytest.raises(UserError):
                segments(template(name), conversation, add_generation_prompt=more)
            continue
        parts = segments(template(name), conversation, add_generation_prompt=more)
        assert "".join(parts) == golden
        assert all(isinstance(part, Markup) for part in parts[::2])
        texts = sorted(m["content"].strip() for m in conversation if m["content"].strip())
        assert sorted(part.strip() for part in parts[1::2]) == texts


def test_a_message_cannot_change_what_the_template_does():
    """The template cuts a message at the end of a thought; the judged text is not cut."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b</think>c"}]
    whole = render(template("qwen3"), said, add_generation_prompt=False)
    parts = segments(template("qwen3"), said, add_generation_prompt=False)
    assert "b</think>" not in whole and parts[1::2] == ("a", "b</think>c")


@pytest.mark.parametrize("name", FAMILIES)
def test_hostile_messages_give_no_special_token(name):
    plain = segments(template(name), [_user("x")], add_generation_prompt=True)
    for text in hostile.TEXTS.values():
        if not text.strip():
            continue
        parts = segments(template(name), [_user(f"x{text}x")], add_generation_prompt=True)
        assert parts[::2] == plain[::2] and parts[1] == f"x{text}x"
        ids = [i for part in (("", part) for part in parts[1::2]) for i in tokens_of(Byte(), part)]
        assert max(ids) < 256


def _user(text):
    return {"role": "user", "content": text}


WANT = {  # head, tail, what stands before a direct answer, and the space that belongs to it
    "llama2": ("<s>[INST] ", " [/INST]", " [/INST]", " "),
    "llama3": ("<s><|start_header_id|>user<|end_header_id|>\n\n",
               "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
               "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", ""),
    "chatml": ("<|im_start|>system\nYou answer briefly.<|im_end|>\n<|im_start|>user\n",
               "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\n", ""),
    "qwen3": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n",
              "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
    "mistral3": ("<s>[INST] ", "[/INST]", "[/INST]", " "),
    "gemma": ("<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n",
              "<end_of_turn>\n<start_of_turn>model\n", ""),
    "phi": ("<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>\n<|assistant|>\n", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WANT)
def test_a_turn_is_what_stands_around_a_message_and_before_its_answer(name):
    found = turn(template(name))
    assert (found.head, found.tail, found.direct, found.space) == WANT[name]


def test_a_direct_answer_in_harmony_is_in_the_final_channel():
    found = turn(chat.load("harmony", Byte()))
    assert found.head.startswith("<|start|>system<|message|>") and "Reasoning: medium" in found.head
    assert found.tail == "<|end|><|start|>assistant"
    assert found.direct == found.tail + "<|channel|>final<|message|>"


def test_harmony_reads_as_written():
    said = render(
        chat.load("harmony", Byte()),
        [{"role": "system", "content": "Weigh."}, _user("Which?")],
        add_generation_prompt=True, reasoning_effort="low", current_date="2026-01-31",
    )  # fmt: skip
    assert said == (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2026-01-31\n\nReasoning: low\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every "
        "message.<|end|><|start|>developer<|message|># Instructions\n\nWeigh.<|end|>"
        "<|start|>user<|message|>Which?<|end|><|start|>assistant"
    )


def test_a_chat_begins_with_the_templates_own_bos_and_other_prompts_with_one():
    byte = Byte()
    parts = segments(template("llama2"), [_user("</s>")], add_generation_prompt=True)
    ids = prompt_of(byte, Cached(byte), parts)
    assert ids == [byte.bos, *b"[INST] </s> [/INST]"]
    assert prompt_of(byte, Cached(byte), ("a", "b")) == [byte.bos, *b"ab"]
    assert prompt_of(byte, Cached(byte), (Markup("a"), "b")) == [*b"ab"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for %}", "Expected an expression"),
        ("{{ messages.nothing.more }}", "no attribute 'nothing'"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[0].content + 1 }}", "cannot render"),
        ("{{ raise_exception('not so') }}", "not so"),
        ("{{ raise_exception('red \x1b[31m\x07\n sea') }}", r"red \[31m sea"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
    ],
)
def test_a_bad_template_is_named_in_one_line(source, said):
    with pytest.raises(UserError, match=said) as error:
        render(Template(source, {}, "mine.jinja"), [_user("a")], add_generation_prompt=True)
    assert "mine.jinja" in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x", "does not write a message"),
        (
            "{% for m in messages %}{{ m.role }}{{ m.content|replace(' ', '_') }}{% endfor %}"
            "{% if add_generation_prompt %}{% endif %}",
            "changes white",
        ),
        (
            "{% for m in messages %}{{ m.role }}{{ m.content }}.{% endfor %}"
            "{% if add_generation_prompt %}go{% endif %}",
            "does not begin where",
        ),
    ],
)
def test_a_template_that_is_of_no_use_to_a_judge_says_so(source, said):
    with pytest.raises(UserError, match=said):
        turn(Template(source))
        segments(Template(source), [_user(" a ")], add_generation_prompt=True)


BOMBS = {  # each would take hours, or more memory than there is
    "a power": "{{ 9 ** 9 ** 9 }}",
    "a wide format": "{{ '%999999999999d' % 1 }}",
    "a growing list": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "a macro": "{% macro m(n) %}{% for i in range(n) %}{{ m(n - 1) }}{% endfor %}{% endmacro %}"
    "{{ m(40) }}",
    "a long text": "{{ 'x' * 99999999 }}",
    "a deep source": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a remainder": "{{ 1 % 0 }}",
    "other texts each time": "{{ lipsum() }}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_a_template_cannot_hang_or_fill_the_memory(source, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    with pytest.raises(UserError, match="mine.jinja: ") as error:
        turn(Template(source, {}, "mine.jinja"))
    assert "\n" not in str(error.value)


def test_a_template_after_a_bomb_is_rendered(monkeypatch):
    """Also if the process was ended from outside."""
    simple = Template("{% for m in messages %}{{ m.content }};{% endfor %}")
    say = lambda: render(simple, [_user("a"), _user("b")], add_generation_prompt=True)
    assert say() == "a;b;"
    rendering.RENDERER._process.kill()
    with pytest.raises(UserError, match="it takes more"):
        say()
    assert say() == "a;b;"


DATED = (
    "{% for m in messages %}{{ m.role }} of {{ strftime_now('%d %b %Y') }}: {{ m.content }}\n"
    "{% endfor %}"
)


def test_the_date_of_a_template_is_that_of_its_workdir(tmp_path):
    (tmp_path / "my.jinja").write_text(DATED)
    name, work = str(tmp_path / "my.jinja"), str(tmp_path / "work")
    (tmp_path / "work").mkdir()
    first = chat.load(name, Byte(), work).today
    assert json.loads((tmp_path / "work" / chat.DAY).read_text()) == {"date": first}
    (tmp_path / "work" / chat.DAY).write_text('{"date": "2031-02-03"}')
    found = chat.load(name, Byte(), work)
    assert turn(found).head == "user of 03 Feb 2031: "
    assert found == chat.load(name, Byte(), work) and found.today != first
    (tmp_path / "work" / chat.DAY).write_text('{"date": 7}')
    with pytest.raises(UserError, match="chat_date.json: must be"):
        chat.load(name, Byte(), work)


def test_a_template_without_a_date_records_none(tmp_path):
    chat.load("harmony", Byte(), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_without_a_generation_prompt_an_answer_begins_behind_its_header():
    source = "{% for m in messages %}\n### {{ m.role | title }}:\n{{ m.content }}{% endfor %}"
    found = turn(Template(source))
    assert found.tail == found.direct == "### Assistant:\n" and found.head == "### User:\n"


def test_a_template_that_knows_no_roles_is_of_no_use():
    with pytest.raises(UserError, match="like a message of the user"):
        turn(Template("{% for m in messages %}<turn>{{ m.content }}</turn>{% endfor %}"))


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"chat_template": 5}', '{"chat_template": [{"name": 1}]}',
             '{"chat_template": {"default": "x"}}',
             '{"chat_template": [{"name": "default", "template": 3}]}'],
)  # fmt: skip
def test_a_damaged_file_of_templates_is_one_line(text, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match="tokenizer_config.json") as error:
        chat.of_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_template_that_is_not_utf8_is_one_line(tmp_path):
    (tmp_path / "my.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="my.jinja: the chat template cannot be read"):
        chat.load(str(tmp_path / "my.jinja"), Byte())


def test_templates_lie_beside_a_tokenizer(tmp_path):
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    many = [{"name": "default", "template": "one"}, {"name": "tools", "template": "two"}]
    path = published.small(tmp_path / "many", settings=dict(chat_template=many))
    assert chat.of_tokenizer(path).source == "one"
    assert chat.of_tokenizer(path / "tokenizer.json", "tools").source == "two"
    (path / "chat_template.jinja").write_text("three")
    own = chat.load("own", load("huggingface", path))
    assert own.source == "three" and own.names == {"bos_token": "<bos>", "eos_token": "<eos>"}
    with pytest.raises(UserError, match="no chat template 'other'"):
        chat.of_tokenizer(path, "other")
    for name in ("own", "nothing", "none.jinja"):
        with pytest.raises(UserError, match=f"chat '{name}'"):
            chat.load(name, Byte())


def test_a_file_has_the_tokenizers_own_names(tmp_path):
    (tmp_path / "my.jinja").write_text("{{ bos_token }}")
    found = chat.load(str(tmp_path / "my.jinja"), Byte())
    assert found.names == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
