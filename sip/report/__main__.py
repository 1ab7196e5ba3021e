"""What a finished recipe shows: summary.json, a table on the terminal, plots.

python -m sip.report DIR      (sip.train does this at its end; DIR may be one of several seeds)
"""

import json

from etils import epath
from ml_collections import ConfigDict

from sip import cli
from sip.report.outputs import write, write_seeds
from sip.stages import seeds
from sip.structs import UserError


def main(argv) -> None:
    """The command line."""
    if len(argv) != 2:
        raise UserError("usage: python -m sip.report DIR")
    directory, begun = argv[1], seeds.known(argv[1])
    path = epath.Path(seeds.directory(directory, begun[0]) if begun else directory) / "config.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: is this a workdir?")
    config = ConfigDict(json.loads(path.read_text()))
    if begun:
        write_seeds(config, begun, directory)
    else:
        write(config, directory)


if __name__ == "__main__":
    cli.run(main)
