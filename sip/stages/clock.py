"""What a run took, over all attempts: seconds, and steps that had to be done again."""

import json
import time
from typing import Any

from etils import epath

from sip import metrics
from sip.workdir import write_json


class Clock:
    """Seconds spent on a run in all attempts, and logged steps that were lost; a crash loses those
    since the last `save`."""

    def __init__(self, directory: str):
        self._path = epath.Path(directory) / "wall.json"
        self._directory = directory
        self._since = time.monotonic() - self._kept()["seconds"]

    def _kept(self) -> dict[str, Any]:
        found = {"seconds": 0.0, "lost_steps": 0}
        return found | (json.loads(self._path.read_text()) if self._path.exists() else {})

    def resumed(self, step: int) -> None:
        """The run goes on after `step`: what the log has beyond is done again."""
        logged = max((line["step"] for line in metrics.read(self._directory)), default=step)
        lost = self.lost_steps + max(0, logged - step)
        if lost:
            write_json(self._path, {**self._kept(), "lost_steps": lost})

    @property
    def lost_steps(self) -> int:
        """Of all attempts. In the file alone: a run and its command have a clock each."""
        return self._kept()["lost_steps"]

    def seconds(self) -> float:
        """Of earlier attempts and this one."""
        return time.monotonic() - self._since

    def save(self) -> None:
        """Keeps them for the next attempt."""
        write_json(self._path, {**self._kept(), "seconds": self.seconds()})
