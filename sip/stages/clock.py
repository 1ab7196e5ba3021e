"""Total cost of a run over all attempts: seconds, and steps that were lost and repeated."""

import time
from typing import Any

from etils import epath

from sip import metrics
from sip.workdir import read_json, write_json


class Clock:
    """Counts the seconds of a run over all attempts, and its lost steps, in RUN_DIR/wall.json.

    A lost step was logged but has to run again after a crash. Seconds since the last `save` are
    not counted if the process crashes.
    """

    def __init__(self, directory: str):
        self._path = epath.Path(directory) / "wall.json"
        self._directory = directory
        self._since = time.monotonic() - self._kept()["seconds"]

    def _kept(self) -> dict[str, Any]:
        found = {"seconds": 0.0, "lost_steps": 0}
        return found | (read_json(self._path, seconds=(int, float)) if self._path.exists() else {})

    def resumed(self, step: int) -> None:
        """Records that the run continues after `step`; later steps in its log are lost."""
        logged = max((line["step"] for line in metrics.read(self._directory)), default=step)
        lost = self.lost_steps + max(0, logged - step)
        if lost:
            write_json(self._path, {**self._kept(), "lost_steps": lost})

    @property
    def lost_steps(self) -> int:
        """Number of lost steps of all attempts.

        Always read from the file, since a run and its command have a Clock each.
        """
        return self._kept()["lost_steps"]

    def seconds(self) -> float:
        """Returns the seconds of earlier attempts and this one."""
        return time.monotonic() - self._since

    def save(self) -> None:
        """Writes the seconds so far, for the next attempt."""
        write_json(self._path, {**self._kept(), "seconds": self.seconds()})
