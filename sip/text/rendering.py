"""Rendering of chat templates in a process of their own, bounded in time and memory."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sip.structs import UserError

SANDBOX = Path(__file__).with_name("sandbox.py")
SECONDS = 5.0  # for one text; an ordinary one takes milliseconds
START_SECONDS = 60.0  # for the start of the process


class Renderer:
    """A process that renders templates, started at the first text and again after a failed one."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()

    def render(self, source: str, today: str, variables: Mapping[str, Any]) -> str:
        """Renders a template. `today` is the date (YYYY-MM-DD) that the template may write.

        Raises UserError with the reason if the template fails or takes too much time or memory.
        """
        asked = json.dumps(dict(source=source, today=today, variables=variables))
        with self._lock:
            process = self._running()
            with contextlib.suppress(OSError):  # it died since: `_line` says so
                process.stdin.write(f"{asked}\n")
                process.stdin.flush()
            answer = json.loads(self._line(SECONDS, f"it takes more than {SECONDS:g} s or 1 GiB"))
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["text"]

    def _running(self) -> Any:
        if self._process is None:
            how: Any = dict(
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            # -P: modules beside the file, such as template.py, do not shadow others.
            command = [sys.executable, "-P", str(SANDBOX)]
            self._process = subprocess.Popen(command, text=True, encoding="utf-8", **how)
            self._lines = queue.Queue()
            reader = threading.Thread(
                target=_read, args=(self._process.stdout, self._lines), daemon=True
            )
            reader.start()
            self._line(START_SECONDS, "the process of chat templates does not start")
        return self._process

    def _line(self, seconds: float, problem: str) -> str:
        """Returns the process's next line. Raises UserError and ends the process if none comes."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            line = ""
        if not line:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.communicate()
            raise UserError(problem)
        return line


def _read(stream, lines: queue.Queue) -> None:
    """Passes on the lines of a stream; "" at its end."""
    for line in stream:
        lines.put(line)
    lines.put("")


RENDERER = Renderer()
