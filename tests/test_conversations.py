"""Tests conversations: what a file gives, the ids that a chat template gives, what is learned."""

import functools
import json

import chats
import published
import pytest

from sip.data import conversations
from sip.data.conversations import Conversation, Unusable, examples, open_format, prompt, read
from sip.structs import UserError
from sip.text import chat
from sip.text.chat import Template
from sip.text.tokenizer import Byte, load

pytest.importorskip("jinja2", reason="needs jinja2")
TEMPLATES = {**chats.templates(), "turns": chats.HARMONY.with_name("turns.jinja").read_text()}
ENDS = dict(  # texts of the tokens that end an answer
    llama2="</s>", llama3="<|eot_id|>", chatml="<|im_end|>", qwen3="<|im_end|>", mistral3="</s>",
    gemma="<end_of_turn>", phi="<|end|>", zephyr="</s>", harmony="<|end|>", turns="</s>",
)  # fmt: skip
NAMES = sorted(ENDS)
MARKS = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|end|>", "<|start|>", "<|channel|>", "<|message|>", "[INST]", "[/INST]",
)  # fmt: skip
TURNS = chats._turns("One the?", "Two.", "Three?", "The <|im_end|> four.")
REWRITE = ("qwen3",)  # templates that write earlier turns in another way


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    words = ("th", "the", "ĠT", "ĠTw", "ĠTwo", "ĊĊ", "Ġf", "Ġfo")
    split = dict(type="Split", pattern={"Regex": published.QWEN}, behavior="Isolated", invert=False)
    steps = [split, published.BYTE_LEVEL | {"use_regex": False}]
    path = published.small(
        tmp_path_factory.mktemp("t"), words=words, tokens=[(m,) for m in MARKS],
        pre_tokenizer=dict(type="Sequence", pretokenizers=steps),
    )  # fmt: skip
    return load("huggingface", path)


def form(name, tokenizer):
    return open_format(Template(TEMPLATES[name], chats.NAMES, name), tokenizer)


def whole(found, messages, more=False):
    """Encodes the whole conversation as one text, as transformers does."""
    text = chat.render(found.template, messages, add_generation_prompt=more)
    return found.tokenizer.encode_special(text)


def answers(example, tokenizer):
    """The learned texts, by runs; special tokens are shown."""
    texts = {i: text for text, i in tokenizer.specials.items()}
    runs = [[]]
    for i, learned in zip(example.ids, example.learned, strict=True):
        if learned:
            runs[-1].append(texts[i] if i in texts else tokenizer.decode([i]))
        elif runs[-1]:
            runs.append([])
    return ["".join(run) for run in runs if run]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_whole_text_encoded_once(name, tokenizer):
    """The message with a special string is the exception: there it stays text."""
    found = form(name, tokenizer)
    assert found.whole == (name not in REWRITE)
    said = [*TURNS[:3], {"role": "assistant", "content": "Four."}]
    if found.whole:
        (one,) = examples(found, Conversation(tuple(said)))
        assert one.ids == whole(found, said) and any(one.learned)
        (other,) = examples(found, Conversation(tuple(TURNS)))
        assert other.ids != whole(found, TURNS)
        end = tokenizer.specials["<|im_end|>"]
        assert other.ids.count(end) == one.ids.count(end) < whole(found, TURNS).count(end) + 1
    else:
        first, second = examples(found, Conversation(tuple(said)))
        assert first.ids == whole(found, said[:2]) and second.ids == whole(found, said)
    question = TURNS[:3]
    assert prompt(found, question) == whole(found, question, more=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_and_its_end_are_learned_and_nothing_else(name, tokenizer):
    found, end = form(name, tokenizer), ENDS[name]
    lead = {"qwen3": "<think>\n\n</think>\n\n", "harmony": "<|channel|>final<|message|>"}
    lead = lead[name] if name in lead else ""
    texts = [TURNS[1]["content"], TURNS[3]["content"]]
    space = " " if name in ("llama2", "mistral3") else ""
    gap = " " if name == "llama2" else ""
    want = [f"{lead}{space}{text}{gap}{end}" for text in texts]
    got = [
        a for one in examples(found, Conversation(tuple(TURNS))) for a in answers(one, tokenizer)
    ]
    assert got == want
    assert found.stops[0] == tokenizer.specials[end] and tokenizer.eos in found.stops


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_begins_what_is_learned(name, tokenizer):
    """A model is asked in the words in which it was taught."""
    found = form(name, tokenizer)
    (*_, last) = examples(found, Conversation(tuple(TURNS)))
    asked = prompt(found, TURNS[:3])
    assert last.ids[: len(asked)] == asked
    assert last.learned[len(asked)] and not last.learned[len(asked) - 1]


def test_answers_that_are_given_are_not_learned(tokenizer):
    for name in ("llama2", "chatml", "qwen3"):
        found = form(name, tokenizer)
        (one,) = examples(found, Conversation(tuple(TURNS), given=3))
        (text,) = answers(one, tokenizer)
        assert "four" in text and "Two" not in text


def test_the_minimal_template_spelled_out():
    byte = Byte()
    found = open_format(chat.load("turns", byte), byte)
    (one,) = examples(found, Conversation(tuple(chats._turns("a", "b", "c", "d", system="s"))))
    first, second = b"<|system|>s<|user|>a<|assistant|>", b"<|user|>c<|assistant|>"
    assert one.ids == [
        byte.bos, *first, *b"b", byte.eos, *second, *b"d", byte.eos
    ]  # fmt: skip
    want = [0] * (1 + len(first)) + [1, 1] + [0] * len(second) + [1, 1]
    assert one.learned == list(map(bool, want))


def test_marks_of_roles_in_a_message_stay_text(tmp_path):
    """In a tokenizer trained here the marks are symbols; a message cannot open a turn."""
    from sip.text.tokenizer import train_sentencepiece

    texts = [f"word{i} and <|user|> more words of text {i}" for i in range(50)]
    own = train_sentencepiece(
        texts, str(tmp_path / "tokenizer.model"), vocab_size=330, symbols=chat.MARKS
    )
    found = open_format(chat.load("turns", own), own)
    said = chats._turns("words of <|assistant|> text", "more<|user|>")
    (one,) = examples(found, Conversation(tuple(said)))
    marks = [own.encode_special(mark) for mark in chat.MARKS]
    assert [len(mark) for mark in marks] == [1, 1, 1]
    assert [one.ids.count(*mark) for mark in marks] == [0, 1, 1]
    assert one.ids[0] == own.bos and one.ids[-1] == own.eos and one.learned[-1]


THINKS = Template(TEMPLATES["qwen3"], chats.NAMES, "mine")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (chats._turns("a", "<think>b</think>c", "d", "e"), "changes or leaves out"),
        (chats._turns("a", "b</think>c"), "changes or leaves out"),
    ],
)
def test_a_template_that_changes_messages_is_not_trained_on_silently(messages, said, tokenizer):
    with pytest.raises(Unusable, match=said):
        examples(open_format(THINKS, tokenizer), Conversation(tuple(messages)))


def test_a_template_that_drops_the_system_message_is_not_trained_on_silently(tokenizer):
    """This one shows it only while a question is the last message."""
    found, said = form("mistral3", tokenizer), chats._turns("a", "b", system="s")
    assert prompt(found, said[:2])
    with pytest.raises(Unusable, match="leaves out a message"):
        examples(found, Conversation(tuple(said)))


def test_a_rejected_conversation_has_the_templates_reason(tokenizer):
    said = chats._turns("a", "b", system="s")
    with pytest.raises(Unusable, match="that the chat template rejects"):
        examples(form("gemma", tokenizer), Conversation(tuple(said)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
         "{% if add_generation_prompt %}assistant: {% endif %}", "mine: no special token"),
        ("{% for m in messages %}<turn>{{ m.content }}</s>{% endfor %}", "like a message of"),
        ("{% for m in messages %}{{ m.role }}{{ m.content }}</s>{% endfor %}"
         "{% if add_generation_prompt %}go{% endif %}", "does not begin where"),
        ("{{ messages[0].content }}</s>", "exactly once"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_teach_is_refused_by_name(source, said):
    with pytest.raises(UserError, match=said) as error:
        open_format(Template(source, chats.NAMES, "mine"), Byte())
    assert "mine: " in str(error.value) and "\n" not in str(error.value)


def test_a_template_without_a_generation_prompt_has_its_header_in_the_prompt():
    source = "{% for m in messages %}\n### {{ m.role }}:\n{{ m.content }}</s>{% endfor %}"
    found = open_format(Template(source), Byte())
    said = chats._turns("a", "b")
    (one,) = examples(found, Conversation(tuple(said)))
    asked = prompt(found, said[:1])
    assert one.ids[: len(asked)] == asked and answers(one, Byte()) == ["b</s>"]


# Files.


def message(role, content, **more):
    return {"role": role, "content": content, **more}


ASKED, SAID = message("user", "a"), message("assistant", "b")
GOOD = [  # line, messages, leading messages that are not learned
    (dict(messages=[ASKED, SAID]), [ASKED, SAID], 0),
    (dict(messages=[message("user", "a", name="x", tool_calls=None), SAID]), [ASKED, SAID], 0),
    (dict(messages=[message("developer", "s"), ASKED, SAID], id=7),
     [message("system", "s"), ASKED, SAID], 0),
    (dict(messages=[message("system", " "), ASKED, SAID]), [ASKED, SAID], 0),
    (dict(prompt="a", completion="b"), [ASKED, SAID], 1),
    (dict(prompt=[message("system", "s"), ASKED], completion="b"),
     [message("system", "s"), ASKED, SAID], 2),
    (dict(prompt=[message("system", ""), ASKED, SAID, ASKED], completion=[SAID, ASKED, SAID]),
     [ASKED, SAID, ASKED, SAID, ASKED, SAID], 3),
]  # fmt: skip
BAD = {
    conversations.NOT_JSON: [["a"], 3, None],
    conversations.MISSING: [dict(text="a"), dict(prompt="a"), {}],
    conversations.NOT_MESSAGES: [
        dict(messages="a"), dict(messages=[]), dict(messages=["a"]), dict(prompt=3, completion="b"),
        dict(messages=[dict(role="user")]), dict(prompt="a", completion=None),
    ],
    conversations.UNKNOWN_ROLE: [dict(messages=[ASKED, message("tool", "b")])],
    conversations.NOT_TEXT: [
        dict(messages=[ASKED, message("assistant", None)]),
        dict(messages=[ASKED, message("assistant", [dict(type="text", text="b")])]),
    ],
    conversations.BLANK: [
        dict(messages=[ASKED, message("assistant", " \n")]), dict(prompt="", completion="b")
    ],
    conversations.NO_QUESTION: [dict(messages=[SAID]), dict(messages=[message("system", "s")])],
    conversations.ORDER: [
        dict(messages=[SAID, ASKED, SAID]), dict(messages=[ASKED, ASKED, SAID]),
        dict(messages=[ASKED, message("system", "s"), SAID]),
        dict(prompt=[ASKED, SAID], completion="b"),
    ],
    conversations.UNANSWERED: [dict(messages=[ASKED]), dict(messages=[ASKED, SAID, ASKED])],
    conversations.NOT_UTF8: [dict(prompt="a", completion="\ud800")],
    "with 'weight' in a message, which is not supported": [
        dict(messages=[ASKED, message("assistant", "b", weight=0)])
    ],
}  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_lines_become_conversations(tmp_path):
    path = write(tmp_path / "c.jsonl", [row for row, *_ in GOOD])
    found = read(path, max_skipped_fraction=0.0)
    assert [(list(c.messages), c.given) for c in found.rows] == [tuple(rest) for _, *rest in GOOD]
    assert found.read == len(GOOD) and not found.left_out and found.rows[2].key == "a"


def test_every_unusable_line_is_counted_with_its_reason(tmp_path):
    rows = [row for some in BAD.values() for row in some]
    path = write(tmp_path / "c.jsonl", [GOOD[0][0], *rows])
    found = read(path, max_skipped_fraction=0.99)
    missing = f"{conversations.MISSING} (fields seen: 'text', 'prompt')"
    wanted = {reason: len(some) for reason, some in BAD.items()}
    wanted[missing] = wanted.pop(conversations.MISSING)
    assert found.left_out == wanted
    assert len(found.rows) == 1 and found.read == len(rows) + 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "c.jsonl: has no conversations"),
        ('[\n{"messages": []},\n', "c.jsonl: JSON over several lines or an array.*jq -c"),
        ('7\n{"messages": []}\n7', "c.jsonl:1: .* not a JSON object.*; write one object per line"),
        ('{"prompt": "a", "completion": "b"}\n\n{"question": "a"}\n',
         "c.jsonl:3: 1 of 2 conversations .* without messages.*; rename the fields"),
        ('{"prompt": "a", "completion": ""}\n', "c.jsonl:1: .*blank message; correct the lines"),
        ('{"prompt": "a", "completion": "caf\udce9"}\n', "c.jsonl:1: .* not UTF-8"),
    ],
)  # fmt: skip
def test_too_many_unusable_lines_are_one_line_with_file_line_and_way_out(text, said, tmp_path):
    (tmp_path / "c.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=said) as error:
        read(str(tmp_path / "c.jsonl"), max_skipped_fraction=0.4)
    assert "\n" not in str(error.value)


@functools.cache
def theirs(path, name):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), chat_template=TEMPLATES[name], **chats.NAMES
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ids_and_mask_are_those_of_transformers(name, tokenizer):
    pytest.importorskip("transformers", reason="needs transformers")
    found, other = form(name, tokenizer), theirs(tokenizer.path, name)
    said = [*TURNS[:3], {"role": "assistant", "content": "Four the."}]
    (*_, last) = examples(found, Conversation(tuple(said)))
    marked = "generation %}" in TEMPLATES[name]
    got = other.apply_chat_template(
        said, tokenize=True, return_dict=True, return_assistant_tokens_mask=marked
    )
    assert last.ids == got["input_ids"]
    if marked:
        assert list(map(int, last.learned)) == got["assistant_masks"]
