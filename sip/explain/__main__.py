"""Explains config keys: meaning, type and default of each.

python -m sip.explain optim.lr checkpoint     prints the keys that contain one of the words
python -m sip.explain > docs/config.md        prints the whole page

`python -m sip.train --config=FILE --print_config` prints the values that a config gives to them.
"""

from sip import cli
from sip.explain import reference
from sip.structs import UserError


def main(argv) -> None:
    """Runs the command line."""
    words = argv[1:]
    if not words:
        print(reference.page(), end="")
        return
    found = reference.matching(words)
    if not found:
        raise UserError(f"no config key contains {' or '.join(map(repr, words))}")
    print("\n".join(found))


if __name__ == "__main__":
    cli.run(main)
