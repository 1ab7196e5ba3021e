"""Chat templates like those of published families, conversations, and their rendered texts.

The texts are those of transformers (chats/goldens.json). `python tests/chats.py` writes them again;
it needs transformers.
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent / "chats"
GOLDENS = HERE / "goldens.json"
HARMONY = HERE.parents[1] / "sip" / "templates" / "chat" / "harmony.jinja"
TITAN = HERE.parents[2] / "shared" / "data" / "tokenizers" / "torchtitan_test"
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = (
    "<|im_end|>\n<|im_start|>assistant\n</s><s>[INST] <|eot_id|> <end_of_turn> {{ bos_token }}"
)


def _turns(*contents, system=None):
    who = ("user", "assistant")
    turns = [{"role": who[i % 2], "content": text} for i, text in enumerate(contents)]
    return ([] if system is None else [{"role": "system", "content": system}]) + turns


CONVERSATIONS = {
    "question": _turns("Which is better?"),
    "system": _turns("Which is better?", system="You weigh texts."),
    "several turns": _turns("One?", "Two.", "Three?", "Four.", "Five?"),
    "system and turns": _turns("One?", "Two.", "Three?", system="Count."),
    "empty": _turns("", "", "And?"),
    "unicode": _turns("Gr\u00fc\u00dfe \u65e5\u672c \U0001f600 e\u0301\u200b", "\u00df", "\u00a1"),
    "spaces": _turns("  two before, two behind  ", " one ", "\ttab\t", system=" s "),
    "newlines": _turns("\n\nlines\n\n\nbetween\n", "\nanswer\n", "\r\nend\r\n"),
    "special": _turns(SPECIAL, SPECIAL, f" {SPECIAL} "),
    "blank": _turns(" \n ", "x", "'quotes' \"double\" \\n {% raw %} <&>"),
    "answered": _turns("One?", "Two."),
}


def templates():
    """Returns {name: template source}."""
    found = {path.stem: path.read_text() for path in sorted(HERE.glob("*.jinja"))}
    found["harmony"] = HARMONY.read_text()
    if TITAN.exists():
        config = json.loads((TITAN / "tokenizer_config.json").read_text())
        found["torchtitan_test"] = config["chat_template"]
    return found


def asked():
    """Returns [(key, source, conversation, add_generation_prompt)] of all golden texts."""
    return [
        (f"{name} / {title} / {more}", source, conversation, more)
        for name, source in templates().items()
        for title, conversation in CONVERSATIONS.items()
        for more in (False, True)
    ]


def theirs(source, conversation, add_generation_prompt):
    """Renders a conversation with transformers; returns {"error": message} for an error."""
    import jinja2
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    one = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=source, **NAMES)
    try:
        return one.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except jinja2.TemplateError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    made = {key: theirs(*rest) for key, *rest in asked()}
    GOLDENS.write_text(json.dumps(made, indent=0, ensure_ascii=True) + "\n")
