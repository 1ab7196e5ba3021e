"""A store of files, gs://bucket, for tests: it is a local folder."""

import contextlib
from pathlib import Path

from etils import epath


@contextlib.contextmanager
def store(root):
    """Serves the paths gs://bucket/.. from files below `root`."""
    local = lambda path: str(path).replace("gs://bucket", str(root))
    back = lambda path: str(path).replace(str(root), "gs://bucket")
    real = lambda name: lambda _, path: getattr(Path(local(path)), name)()
    with epath.testing.mock_epath(
        exists=real("exists"),
        isdir=real("is_dir"),
        listdir=lambda _, path: [p.name for p in Path(local(path)).iterdir()],
        glob=lambda _, path: [back(p) for p in root.glob(local(path)[len(str(root)) + 1 :])],
        open=lambda _, path, mode: open(local(path), mode),
        stat=lambda stat, path: stat(local(path)),
    ):
        yield
