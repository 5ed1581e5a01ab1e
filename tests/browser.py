"""A headless browser for tests, driven through Chromium's debugging pipe; nothing to install."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason=f"no browser is installed: none of {', '.join(NAMES)}"
)
PATIENCE = 60.0  # seconds; this machine may be busy
KEYS = {
    "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39, "ArrowUp": 38, "End": 35, "Enter": 13,
    "Escape": 27, "Home": 36, "PageDown": 34, "PageUp": 33, "Tab": 9,
}  # fmt: skip
"""Windows' codes of the keys without a character."""


class NavigatedError(Exception):
    """The page was replaced by another before it could answer."""


class Page:
    """One page of a browser of its own.

    Attributes:
        problems: what went wrong in it: exceptions, refused loads, violated policies.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.problems: list[str] = []
        self.number = 0
        self.session: str | None = None
        self.received = b""

    def __enter__(self) -> Self:
        assert PROGRAM is not None
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # Commands go in through descriptor 3 and answers come out of 4; ours lie above them.
        ins, outs = (tuple(_high(fd) for fd in os.pipe()) for _ in range(2))

        def connect() -> None:
            os.dup2(ins[0], 3)
            os.dup2(outs[1], 4)

        self.process = subprocess.Popen(
            [
                PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-dev-shm-usage", "--remote-debugging-pipe",
                f"--user-data-dir={self.profile.name}",
            ],
            close_fds=False,
            preexec_fn=connect,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ins[0])
        os.close(outs[1])
        self.commands, self.answers = ins[1], outs[0]
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")
        self.emulate(900)
        self.command("Page.navigate", url=self.url)
        self.wait(f"location.href === {self.url!r} && document.readyState === 'complete'")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
        self.profile.cleanup()

    def command(self, method: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise NavigatedError(method)
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(json.dumps(answer["params"]))

    def _receive(self) -> Any:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.answers], [], [], until - time.monotonic())
            part = os.read(self.answers, 1 << 16) if ready else b""
            assert part, "the browser is gone, or silent"
            self.received += part
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """The value of some JavaScript in the page; of a promise, what it comes to."""
        answer = self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until some JavaScript is true, also when it is that of the page which follows."""
        until = time.monotonic() + PATIENCE
        while not self._is_true(condition):
            assert time.monotonic() < until, f"never came true: {condition}; {self.problems}"
            time.sleep(0.02)

    def _is_true(self, condition: str) -> bool:
        try:
            return bool(self.evaluate(condition))
        except NavigatedError:
            return False

    def go(self, url: str, words: str) -> None:
        """Open another address and wait until its page has these words."""
        self.command("Page.navigate", url=url)
        self.says(words)

    def says(self, words: str) -> None:
        """Wait until these words are on the page."""
        self.wait(f"document.body?.innerText.includes({json.dumps(words)})")

    def emulate(self, width: int, height: int = 700, mode: str = "light") -> None:
        """Set the size of the screen in pixels, as of a telephone below 600, and the mode."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": mode}]
        self.command("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key, which writes ``text``."""
        code = KEYS.get(key) or ord(key.upper())
        for kind, written in (("keyDown", text), ("keyUp", "")):
            self.command(
                "Input.dispatchKeyEvent",
                type=kind, key=key, windowsVirtualKeyCode=code, text=written,
            )  # fmt: skip

    def still(self) -> None:
        """Wait until two screenshots a second apart are the same."""
        until = time.monotonic() + PATIENCE
        before = self.screenshot()
        while True:
            time.sleep(1)
            now = self.screenshot()
            if np.array_equal(now, before) or time.monotonic() > until:
                return
            before = now

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({selector!r}).textContent"))

    def screenshot(self) -> NDArray[np.uint8]:
        """RGB pixels of what is seen, [H, W, 3]."""
        data = self.command("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def _high(descriptor: int) -> int:
    """The same file under a number that is surely not 3 or 4, and not inherited."""
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(descriptor)
    return high
