"""Reports a workdir, finished or not: plots, a table, and an HTML page to browse candidates.

python -m sip.report DIR [OTHER]

DIR is a workdir of sip.train, with or without --seeds; OTHER is one to compare with. Writes
DIR/plots/*.png, DIR/summary.json if all runs are finished, and DIR/report.html, one file that a
browser opens without a server or a network (extra `report`). What is missing is named.
"""

from collections.abc import Iterable

from absl import flags
from etils import epath

from sip import cli
from sip import workdir as workdirs
from sip.report import contents, outputs, page
from sip.structs import UserError

_HTML = cli.path_flag(
    "html", None, "HTML file to write; default: DIR/report.html. Empty: no HTML file."
)
_PRICE = flags.DEFINE_float(
    "price_per_million_tokens",
    0.0,
    "Price of a million tokens of judging, in any currency, for the table of costs.",
    lower_bound=0.0,
)


def main(argv) -> None:
    """Runs the command line."""
    if len(argv) not in (2, 3):
        raise UserError("usage: python -m sip.report DIR [OTHER]")
    html = str(_HTML.value or "")
    if html and (not html.endswith(".html") or epath.Path(html).is_dir()):
        raise UserError(f"--html {html}: must be a file that ends in .html")
    every = [contents.opened(workdirs.place(path)) for path in argv[1:]]
    found = [outputs.write_present(every[0].config, every[0].begun, every[0].path)]
    found += [outputs.present(x.config, x.begun, x.path) for x in every[1:]]
    if _HTML.value == "":
        _say(x for _, missing in found for x in missing)
        return
    page.check_packages()
    names = labels(argv[1:])
    places = [
        page.place(name, one, *figures)
        for name, one, figures in zip(names, every, found, strict=True)
    ]
    path = str(html or epath.Path(every[0].path) / "report.html")
    left_out = page.write(path, places, float(_PRICE.value or 0))
    _say([*(x for one in places for x in one.missing), *left_out])
    print(f"{path}: open it in a browser")


def _say(what: Iterable[str]) -> None:
    for one in dict.fromkeys(what):
        print(one)


def labels(paths: list[str]) -> list[str]:
    """Returns a short label of each workdir: none for a single one, else A and B."""
    return [""] if len(paths) == 1 else ["A", "B"]


if __name__ == "__main__":
    cli.run(main)
