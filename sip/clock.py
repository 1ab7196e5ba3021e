"""What a run took, over all attempts: seconds, and steps that had to be done again."""

import json
import time
from typing import Any

from etils import epath

from sip import metrics
from sip.setup import write_json


class Clock:
    """Seconds spent on a run in all attempts, and logged steps that were lost; a crash loses those
    since the last `save`."""

    def __init__(self, directory: str):
        self._path = epath.Path(directory) / "wall.json"
        self._directory, before = directory, self._kept()
        self._since, self.lost_steps = time.monotonic() - before["seconds"], before["lost_steps"]

    def _kept(self) -> dict[str, Any]:
        found = {"seconds": 0.0, "lost_steps": 0}
        return found | (json.loads(self._path.read_text()) if self._path.exists() else {})

    def resumed(self, step: int) -> None:
        """The run goes on after `step`: what the log has beyond is done again."""
        logged = max((line["step"] for line in metrics.read(self._directory)), default=step)
        self.lost_steps += max(0, logged - step)

    def seconds(self) -> float:
        """Of earlier attempts and this one."""
        return time.monotonic() - self._since

    def save(self) -> None:
        """Keeps them for the next attempt; the command's clock has not seen what the run's lost."""
        self.lost_steps = max(self.lost_steps, self._kept()["lost_steps"])
        write_json(self._path, {"seconds": self.seconds(), "lost_steps": self.lost_steps})
