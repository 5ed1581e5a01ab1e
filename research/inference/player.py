"""A page for this machine's browser, on which frames play with their boxes as they are found.

It listens on the loopback address alone, answers only those who call it by a name of this machine
(a page elsewhere could otherwise reach it by a name of its own, DNS rebinding), knows four paths,
and lets the page load nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final, Self

from PIL.Image import Image

from research.inference.writers import Overlay
from research.utils.errors import UserError

ADDRESS: Final = "127.0.0.1"
NAMES: Final = (ADDRESS, "localhost")
AT_ONCE: Final = 500
"""Frames told of in one answer."""
LARGEST: Final = 1280
"""Longest side of a frame as it is sent, in pixels."""


class Player:
    """Serves the page while the context lasts.

    Frames are kept as JPEGs in a temporary folder, so that their number does not matter.

    Args:
        title: of the page.
        port: to listen on; 0 takes any that is free.
        score_threshold: initial value of the slider, 0…1; ``None`` hides it.
    """

    def __init__(self, title: str, port: int, score_threshold: float | None) -> None:
        self.title = title
        self.port = port
        self.score_threshold = score_threshold
        self.frames: list[dict[str, Any]] = []
        self.done = Event()
        page = resources.files("research.inference").joinpath("player.html").read_bytes()
        self.page, self.policy = page, _policy(page.decode())

    def __enter__(self) -> Self:
        """Raises UserError when the port is taken."""
        handler = type("Handler", (_Handler,), {"player": self})
        try:
            self.server = _Server((ADDRESS, self.port), handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                "port",
                f"port={self.port}: {getattr(error, 'strerror', None) or error}",
                "give another one, or 0 for any that is free",
            ) from None
        self.port = self.server.server_address[1]
        self.scratch = tempfile.TemporaryDirectory(prefix="player_")
        Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.scratch.cleanup()

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}/"

    def show(self, name: str, image: Image, seen: Overlay, milliseconds: float) -> None:
        """The next frame.

        Args:
            name: what it is called.
            image: RGB.
            seen: what was said of it.
            milliseconds: that this took.
        """
        small = image.copy()
        small.thumbnail((LARGEST, LARGEST))
        small.save(self.file(len(self.frames)), "JPEG", quality=85)
        self.frames.append(
            {
                "name": name,
                "width": small.width,
                "height": small.height,
                "caption": seen.caption,
                "boxes": [list(box) for box in seen.boxes],
                "scores": list(seen.scores),
                "texts": list(seen.texts),
                "colours": [f"rgb({r}, {g}, {b})" for r, g, b in seen.colours],
                "milliseconds": milliseconds,
            }
        )

    def finish(self) -> None:
        """No frame will come after those shown."""
        self.done.set()

    def file(self, number: int) -> Path:
        return Path(self.scratch.name) / f"{number}.jpg"

    def tell(self, after: int) -> bytes:
        """JSON: the frames from number ``after`` on, as many as one answer takes."""
        # Asked before the frames are counted: done must mean that none is missing.
        done = self.done.is_set()
        more = self.frames[after : after + AT_ONCE]
        return json.dumps(
            {
                "title": self.title,
                "objectness": self.score_threshold,
                "done": done and after + len(more) >= len(self.frames),
                "frames": more,
            }
        ).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET; anything else is refused by the base class."""

    player: Player
    protocol_version = "HTTP/1.1"
    server_version = "player"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in NAMES:
            self._answer(403, "text/plain", f"call it {self.player.url}\n".encode())
            return
        for pattern, answer in ROUTES.items():
            if found := re.fullmatch(pattern, self.path):
                answer(self, *found.groups())
                return
        self._missing()

    def _page(self) -> None:
        self._answer(200, "text/html; charset=utf-8", self.player.page)

    def _frames(self, after: str) -> None:
        self._answer(200, "application/json", self.player.tell(int(after)))

    def _frame(self, number: str) -> None:
        if int(number) < len(self.player.frames):
            self._answer(200, "image/jpeg", self.player.file(int(number)).read_bytes())
        else:
            self._missing()

    def _nothing(self) -> None:
        self._answer(204, "image/x-icon", b"")

    def _missing(self) -> None:
        self._answer(404, "text/plain", b"no such page\n")

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", self.player.policy)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        # The next command may well listen on the same port.
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """A line a request would bury what the command says."""


ROUTES: Final[dict[str, Callable[..., None]]] = {
    r"/": _Handler._page,
    r"/frames\.json\?after=([0-9]{1,7})": _Handler._frames,
    r"/frame/([0-9]{1,7})\.jpg": _Handler._frame,
    r"/favicon\.ico": _Handler._nothing,
}


def _policy(page: str) -> str:
    """Content security: the page's own script and style, and what this server has."""

    def own(tag: str) -> str:
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in inner)
        return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {own('script')}; style-src {own('style')}; "
        "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
