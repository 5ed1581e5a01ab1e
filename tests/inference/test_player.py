"""The player's page in a real browser, and what its server gives to whom."""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research.inference import player as player_module
from research.inference.player import Player
from research.inference.writers import Overlay
from research.utils.errors import UserError
from research.viz.colours import PREDICTED_BOXES
from tests.browser import Page, needs_browser

GREY = (90, 90, 90)
FRAME = Image.new("RGB", (320, 240), GREY)
BOXES = ((0.25, 0.25, 0.5, 0.5), (0.5, 0.5, 0.75, 0.875), (0.0, 0.0, 0.25, 0.125))
SEEN = Overlay("", BOXES, (0.9, 0.5, 0.1), ("0.90", "0.50", "0.10"))


@pytest.fixture
def player() -> Iterator[Player]:
    with Player("a run", 0, 0.3) as started:
        yield started


def fill(player: Player, count: int, seen: Overlay = SEEN) -> None:
    for number in range(count):
        player.show(f"frame {len(player.frames)}", FRAME, seen, 12.5 + number)


def request(
    player: Player, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", player.port, timeout=30)
    # A path as it is: a client would tidy it up.
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{player.port}" if host is None else host)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


# -- in a browser -------------------------------------------------------------------------------


@needs_browser
def test_the_page_plays_what_is_there_and_draws_boxes(player: Player) -> None:
    fill(player, 3)
    player.finish()
    with Page(player.url) as page:
        page.wait("document.querySelector('#counter').textContent === '3 / 3'")
        page.wait("document.querySelector('#play').textContent === 'Play'")
        assert page.evaluate("document.title") == "a run"
        assert page.text("#name") == "frame 2"
        assert page.text("#latency") == "14.5 ms a frame"
        # The third box is below the threshold.
        found = page.evaluate(
            "[...document.querySelectorAll('#boxes rect')].map((box) => ['x', 'y', 'width',"
            " 'height'].map((name) => Number(box.getAttribute(name))))"
        )
        assert np.allclose(found, [[80, 60, 80, 60], [160, 120, 80, 90]])
        texts = page.evaluate(
            "[...document.querySelectorAll('#boxes text')].map((t) => t.textContent)"
        )
        assert texts == ["0.90", "0.50"]

        seen = page.screenshot()
        top, left, width = page.evaluate(
            "(({x, y, width}) => [y, x, width])("
            "document.querySelector('#frame').getBoundingClientRect())"
        )
        # Frame pixels (y, x): the edges of the two boxes, and grey inside and between them.
        for (y, x), colour in {
            (90, 80): PREDICTED_BOXES[0],
            (90, 160): PREDICTED_BOXES[0],
            (120, 120): PREDICTED_BOXES[0],
            (165, 240): PREDICTED_BOXES[1],
            (210, 200): PREDICTED_BOXES[1],
            (90, 120): GREY,
            (165, 200): GREY,
            (15, 80): GREY,
        }.items():
            here = seen[int(top + y * width / 320), int(left + x * width / 320)]
            assert np.abs(here.astype(int) - colour).max() <= 3, (y, x)
        assert page.text("#problem") == ""
        assert page.problems == []


@needs_browser
def test_frames_play_as_they_come_and_the_controls_work(player: Player) -> None:
    with Page(player.url) as page:
        page.wait("document.querySelector('#counter').textContent.startsWith('waiting')")
        fill(player, 1)
        page.wait("document.querySelector('#counter').textContent === '1 / 1 so far'")
        # The slider is ours to move: everything down to 0 is drawn, and nothing above 0.95.
        for level, drawn in ((0, 3), (0.45, 2), (0.95, 0)):
            assert drawn == page.evaluate(
                f"(() => {{ const slider = document.querySelector('#objectness');"
                f" slider.value = {level}; slider.dispatchEvent(new Event('input'));"
                " return document.querySelectorAll('#boxes rect').length; })()"
            )
        page.evaluate("document.querySelector('#play').click()")
        fill(player, 4)
        page.wait("document.querySelector('#place').max === '4'")
        assert page.text("#name") == "frame 0"
        page.evaluate(
            "(() => { const place = document.querySelector('#place'); place.value = 3;"
            " place.dispatchEvent(new Event('input')); })()"
        )
        page.wait("document.querySelector('#name').textContent === 'frame 3'")
        page.evaluate("document.querySelector('#play').click()")
        player.finish()
        page.wait("document.querySelector('#counter').textContent === '5 / 5'")
        page.wait("document.querySelector('#play').textContent === 'Play'")
        # Once more from the start.
        page.evaluate("document.querySelector('#play').click()")
        page.wait("document.querySelector('#name').textContent === 'frame 1'")
        assert page.text("#problem") == ""
        assert page.problems == []


@needs_browser
def test_keys_move_through_the_frames(player: Player) -> None:
    fill(player, 25)
    player.finish()
    with Page(player.url) as page:
        page.wait("document.querySelector('#counter').textContent.endsWith('/ 25')")
        for key, frame in (
            ("Home", 0), ("ArrowRight", 1), ("PageDown", 11), ("PageDown", 21), ("PageDown", 24),
            ("PageUp", 14), ("ArrowLeft", 13), ("End", 24), ("ArrowRight", 24),
        ):  # fmt: skip
            page.press(key)
            page.wait(f"document.querySelector('#name').textContent === 'frame {frame}'")
        assert page.text("#play") == "Play"
        page.press("ArrowUp")
        assert page.text("#level") == "0.35"
        page.press("+", "+")
        assert page.evaluate("document.querySelector('#pace').value") == "15"
        # Keys belong to the field with the focus.
        page.evaluate("document.querySelector('#pace').focus()")
        page.press("Home")
        page.press("ArrowUp")
        assert page.evaluate("document.querySelector('#pace').value") == "16"
        assert (page.text("#name"), page.text("#level")) == ("frame 24", "0.35")
        page.evaluate("document.activeElement.blur()")
        page.press("Home")
        page.wait("document.querySelector('#name').textContent === 'frame 0'")
        page.press(" ", " ")
        assert page.text("#play") == "Pause"


@needs_browser
def test_captions_without_boxes_and_hostile_names() -> None:
    name = "<img src=x onerror=alert(1)>"
    with Player("classes", 0, None) as player:
        player.show(name, FRAME, Overlay("spots 93%"), 1.0)
        player.finish()
        with Page(player.url) as page:
            page.wait("document.querySelector('#counter').textContent === '1 / 1'")
            assert page.text("#caption") == "spots 93%"
            assert page.text("#name") == name
            assert page.evaluate("document.querySelector('#threshold').hidden")
            assert page.evaluate("document.images.length") == 1
            assert page.evaluate("document.querySelectorAll('#boxes rect').length") == 0
            assert page.problems == []


# -- the server ---------------------------------------------------------------------------------


def test_what_it_serves(player: Player) -> None:
    fill(player, 2)
    status, headers, content = request(player, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b'{"title":"a run","objectness":0.3}' in content
    for word in ("default-src 'none'", "script-src 'sha256-", "connect-src 'self'"):
        assert word in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"

    status, headers, content = request(player, "/frame/1.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == FRAME.size
        assert np.abs(np.asarray(image).astype(int) - GREY).max() <= 2

    status, headers, content = request(player, "/frames.json?after=1")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    reported = json.loads(content)
    assert reported["done"] is False
    [frame] = reported["frames"]
    assert (frame["name"], frame["width"], frame["height"]) == ("frame 1", 320, 240)
    assert np.allclose(frame["boxes"], BOXES)


def test_a_long_list_comes_in_parts_and_ends(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(player_module, "MAX_FRAMES", 2)
    fill(player, 5)
    player.finish()
    names, done = [], False
    while not done:
        reported = json.loads(request(player, f"/frames.json?after={len(names)}")[2])
        names += [frame["name"] for frame in reported["frames"]]
        done = reported["done"]
    assert names == [f"frame {number}" for number in range(5)]


@pytest.mark.parametrize(
    "path",
    [
        "/player.py", "/frame/2.jpg", "/frame/-1.jpg", "/frame/00.png", "/frame/", "/frames.json",
        "/frames.json?after=x", "/frames.json?after=0&x=1", "/frame/../player.html",
        "/../../../../etc/passwd", "/frame/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/%2e%2e/",
        "/frame/0.jpg/..", "/frame/0.jpg%00.html", "/frame/99999999999.jpg", "*",
    ],
)  # fmt: skip
def test_nothing_else_is_there(player: Player, path: str) -> None:
    fill(player, 1)
    status, _, content = request(player, path)
    assert (status, content) == (404, b"no such page\n")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example"])
def test_a_name_of_somebody_elses_is_refused(player: Player, host: str) -> None:
    fill(player, 1)
    for path in ("/", "/frames.json?after=0", "/frame/0.jpg"):
        status, _, content = request(player, path, host=host)
        assert status == 403
        assert content == f"open {player.url}\n".encode()


def test_localhost_is_one_of_ours(player: Player) -> None:
    assert request(player, "/", host=f"localhost:{player.port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_only_get(player: Player, method: str) -> None:
    assert request(player, "/", method)[0] == 501


def test_only_this_machine_is_answered(player: Player) -> None:
    assert player.server.server_address[0] == "127.0.0.1"
    # Another address of this very machine is not listened on.
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", player.port)) != 0


def test_a_taken_port_is_one_line(player: Player) -> None:
    with (
        pytest.raises(UserError, match=rf"port={player.port}: .*in use; set another one, or 0"),
        Player("b", player.port, None),
    ):
        pass


def test_it_leaves_nothing(player: Player) -> None:
    with Player("b", 0, None) as other:
        fill(other, 1)
        folder = Path(other.scratch.name)
        assert [path.name for path in folder.iterdir()] == ["0.jpg"]
    assert not folder.exists()
    with socket.socket() as free:
        assert free.connect_ex(("127.0.0.1", other.port)) != 0


def test_large_frames_are_sent_smaller(player: Player) -> None:
    player.show("large", Image.new("RGB", (2600, 650)), SEEN, 1.0)
    reported = json.loads(request(player, "/frames.json?after=0")[2])["frames"][0]
    assert (reported["width"], reported["height"]) == (1280, 320)
