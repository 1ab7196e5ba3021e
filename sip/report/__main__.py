"""Reports a finished workdir: writes summary.json and plots, prints a table.

python -m sip.report DIR

DIR is a workdir of sip.train, with or without --seeds. sip.train writes the same report at its end.
"""

from etils import epath
from ml_collections import ConfigDict

from sip import cli
from sip import workdir as workdirs
from sip.report.outputs import write, write_seeds
from sip.stages import seeds
from sip.structs import UserError


def main(argv) -> None:
    """Runs the command line."""
    if len(argv) != 2:
        raise UserError("usage: python -m sip.report DIR")
    directory = workdirs.place(argv[1])
    begun = seeds.known(directory)
    path = epath.Path(seeds.directory(directory, begun[0]) if begun else directory) / "config.json"
    if not path.exists():
        raise UserError(f"{path} does not exist; DIR must be a workdir of sip.train")
    config = ConfigDict(workdirs.read_json(path))
    if begun:
        write_seeds(config, begun, directory)
    else:
        write(config, directory)


if __name__ == "__main__":
    cli.run(main)
