"""A local web page that plays frames with their boxes during inference.

The server listens on the loopback address only and checks the Host header, against DNS rebinding.
It has four routes, and its content security policy lets the page load nothing from elsewhere.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final, Self

from PIL.Image import Image

from research.inference.writers import Overlay
from research.utils.errors import UserError
from research.viz.webpage import web_page

ADDRESS: Final = "127.0.0.1"
NAMES: Final = (ADDRESS, "localhost")
LOADS: Final = "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
"""What the page may do beyond its own script and style."""
MAX_FRAMES: Final = 500
"""Frames per response."""
MAX_SIDE: Final = 1280
"""Longest side of a frame in the browser, in pixels."""


class Player:
    """Serves the page; a context manager.

    Frames are stored as JPEGs in a temporary folder, so that memory does not grow with them.

    Args:
        title: of the page.
        port: to listen on; 0: any free port.
        score_threshold: initial value of the slider, 0…1; ``None`` hides it.
    """

    def __init__(self, title: str, port: int, score_threshold: float | None) -> None:
        self.port = port
        self.frames: list[dict[str, Any]] = []
        self.done = Event()
        data = {"title": title, "objectness": score_threshold}
        page = web_page(
            "research.inference", "player", title, data, ("player.js",), ("tools.js",), LOADS
        )
        self.page = page.text.encode()
        # This part of a policy counts only in a header.
        self.policy = f"{page.policy}; frame-ancestors 'none'"

    def __enter__(self) -> Self:
        """Start the server. Raises UserError if the port is in use."""
        handler = type("Handler", (_Handler,), {"player": self})
        try:
            self.server = _Server((ADDRESS, self.port), handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                "port",
                f"port={self.port}: {getattr(error, 'strerror', None) or error}",
                "set another one, or 0 for any free port",
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

    def show(self, name: str, image: Image, overlay: Overlay, milliseconds: float) -> None:
        """Add a frame.

        Args:
            name: title of the frame.
            image: RGB.
            overlay: its predictions.
            milliseconds: inference time.
        """
        small = image.copy()
        small.thumbnail((MAX_SIDE, MAX_SIDE))
        small.save(self.file(len(self.frames)), "JPEG", quality=85)
        self.frames.append(
            {
                "name": name,
                "width": small.width,
                "height": small.height,
                "caption": overlay.caption,
                "boxes": [list(box) for box in overlay.boxes],
                "scores": list(overlay.scores),
                "texts": list(overlay.texts),
                "colours": [f"rgb({r}, {g}, {b})" for r, g, b in overlay.colours],
                "milliseconds": milliseconds,
            }
        )

    def finish(self) -> None:
        """Mark the last frame as added."""
        self.done.set()

    def file(self, number: int) -> Path:
        return Path(self.scratch.name) / f"{number}.jpg"

    def frames_json(self, after: int) -> bytes:
        """JSON: at most ``MAX_FRAMES`` frames, from index ``after``."""
        # Read before the frames are counted: done must mean that none is missing.
        done = self.done.is_set()
        more = self.frames[after : after + MAX_FRAMES]
        return json.dumps(
            {
                "done": done and after + len(more) >= len(self.frames),
                "frames": more,
            }
        ).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes the connection early is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Handles GET; the base class refuses other methods."""

    player: Player
    protocol_version = "HTTP/1.1"
    server_version = "player"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in NAMES:
            self._respond(403, "text/plain", f"open {self.player.url}\n".encode())
            return
        for pattern, respond in ROUTES.items():
            if match := re.fullmatch(pattern, self.path):
                respond(self, *match.groups())
                return
        self._missing()

    def _page(self) -> None:
        self._respond(200, "text/html; charset=utf-8", self.player.page)

    def _frames(self, after: str) -> None:
        self._respond(200, "application/json", self.player.frames_json(int(after)))

    def _frame(self, number: str) -> None:
        if int(number) < len(self.player.frames):
            self._respond(200, "image/jpeg", self.player.file(int(number)).read_bytes())
        else:
            self._missing()

    def _nothing(self) -> None:
        self._respond(204, "image/x-icon", b"")

    def _missing(self) -> None:
        self._respond(404, "text/plain", b"no such page\n")

    def _respond(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", self.player.policy)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        # The next command may listen on the same port.
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request: it would hide the output of the command."""


ROUTES: Final[dict[str, Callable[..., None]]] = {
    r"/": _Handler._page,
    r"/frames\.json\?after=([0-9]{1,7})": _Handler._frames,
    r"/frame/([0-9]{1,7})\.jpg": _Handler._frame,
    r"/favicon\.ico": _Handler._nothing,
}
