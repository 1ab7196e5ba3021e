"""Sinks of a run's metrics beside metrics.jsonl: TensorBoard, Weights & Biases, Trackio.

The two trackers have one interface, and `log.tracker` names the package (extra `track`). Where they
write, and who may read it, is their own configuration: `wandb login` or WANDB_MODE=offline; Trackio
is local by default. A tracker that cannot begin is an error, before any run trains if that is known
without a request.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import tensorboardX
from etils import epath
from tensorboardX import summary

from sip import processes, workdir
from sip.metrics import LOSS
from sip.structs import UserError
from sip.training.loop import LogConfig

# What to do if a tracker does not begin.
WAYS_OUT = {
    "wandb": "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline",
    "trackio": "check its settings (TRACKIO_*)",
}
Texts = Sequence[tuple[str, str]]  # (prompt, text)


class Sink(Protocol):
    """A place where metrics go to be looked at."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds the numbers of a step by name."""
        ...

    def texts(self, step: int, texts: Texts) -> None:
        """Adds prompts with the texts that the model wrote to them."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class TensorBoard:
    """Writes RUN_DIR/tensorboard: scalars, samples as text, and the run's settings as hparams.

    Steps from `first` + 1 on replace those of an interrupted run.
    """

    def __init__(self, run_dir: str, settings: Mapping[str, Any], first: int):
        directory = str(epath.Path(run_dir) / "tensorboard")
        self._writer = tensorboardX.SummaryWriter(directory, purge_step=first + 1)
        # `add_hparams` would make a run of its own for the settings, without the curves.
        files: Any = self._writer.file_writer
        for one in summary.hparams(dict(flat(settings)), {LOSS: 0.0})[:2]:
            files.add_summary(one)

    def write(self, step, numbers):
        """Adds scalars."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def texts(self, step, texts):
        """Adds each text below its prompt, both shown as they are and not as markup."""
        for i, (prompt, text) in enumerate(texts):
            self._writer.add_text(f"samples/{i}", f"{_verbatim(prompt)}\n\n{_verbatim(text)}", step)

    def close(self):
        """Closes the files."""
        self._writer.close()


def _verbatim(text: str) -> str:
    """Returns a text as an indented block of Markdown, which shows it as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


class Tracker:
    """Sends scalars to Weights & Biases or Trackio. A resumed run continues its own there."""

    def __init__(
        self, library: str, project: str, run_dir: str, name: str, settings: Mapping[str, Any]
    ):
        check_installed(library)
        self._library = importlib.import_module(library)
        own: dict[str, Any] = {}
        if library == "wandb":  # Trackio resumes by name
            identity = hashlib.sha256(str(workdir.absolute(run_dir)).encode()).hexdigest()[:16]
            own = {"id": identity} | ({} if "://" in str(run_dir) else {"dir": str(run_dir)})
        settings = dict(flat(settings))
        how: dict[str, Any] = dict(project=project, name=name, config=settings, resume="allow")
        with begins(library):
            self._library.init(**how, **own)

    def write(self, step, numbers):
        """Sends scalars."""
        self._library.log(dict(numbers), step=step)

    def texts(self, step, texts):
        """Sends nothing: the two packages have no common table, and samples.jsonl has the texts."""

    def close(self):
        """Ends the run there."""
        self._library.finish()


def check_installed(library: str) -> None:
    """Raises UserError if the package of a tracker is not installed."""
    spec = importlib.util.find_spec(library)
    # A directory of that name, such as the one that wandb writes, is found too, without an origin.
    if spec is None or spec.origin is None:
        raise UserError(
            f"log.tracker {library!r}: needs the package {library}: pip install 'sip-jax[track]'"
        )


def check_tracker(library: str) -> None:
    """Raises UserError if a tracker is not installed, or has no login. No tracker is no error.

    In a terminal wandb asks for the login. The server is not asked if it is right.
    """
    if not library:
        return
    check_installed(library)
    if library == "wandb":
        _login()


@functools.cache  # once for all runs of a recipe
def _login() -> None:
    """Looks for the login of wandb: WANDB_API_KEY, its files, or WANDB_MODE=offline."""
    with begins("wandb"):
        importlib.import_module("wandb").login(verify=False)


@contextlib.contextmanager
def begins(library: str) -> Iterator[None]:
    """Turns any exception of a tracker inside into a UserError with the way out."""
    try:
        yield
    except Exception as error:  # each package has its own: no login, no network, no permission
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"log.tracker {library!r}: {said.rstrip('.')}; {WAYS_OUT[library]}, or train without "
            "it: log.tracker="
        ) from error


def opened(
    config: LogConfig, run_dir: str, name: str, settings: Mapping[str, Any], first: int
) -> list[Sink]:
    """Opens the sinks of a run's `log` section, on process 0 alone.

    `settings` is the run's config, `first` the number of steps that are done already.
    """
    found: list[Sink] = []
    if not processes.lead():
        return found
    if config.tensorboard:
        found.append(TensorBoard(run_dir, settings, first))
    if config.tracker:
        where = epath.Path(workdir.workdir_of(run_dir))
        seeds = (where.parent / workdir.SEEDS).exists()
        parts = (where.parent.name, where.name) if seeds else (where.name,)
        shown = "-".join((*parts, name))
        found.append(Tracker(config.tracker, config.project, run_dir, shown, settings))
    return found


def flat(settings: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of a nested config; values are numbers, booleans and texts."""
    for key, value in settings.items():
        name = f"{at}.{key}" if at else key
        if isinstance(value, Mapping):
            yield from flat(value, name)
        else:
            yield name, value if isinstance(value, bool | int | float) else str(value)
