"""Stills from images, folders, capture runs and videos."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from research.data.frames.media import Media, Still
from research.data.frames.run_writer import RunWriter
from tests.conftest import picture, user_error
from tests.videos import colours, write_video


def stills(media: Media, size: int = 3) -> list[Still]:
    return [still for batch in media.batches(size) for still in batch]


def pixels(media: Media) -> list[np.ndarray]:
    return [np.asarray(Image.open(still.file)) for batch in media.batches(2) for still in batch]


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture("spots", 0).save(path)
    return path


def capture(folder: Path, frames: int) -> Path:
    with RunWriter(folder) as run:
        for number in range(frames):
            boxes = [(0.1, 0.1, 0.5, 0.5)] * (number % 2)
            run.add(picture("bars", number), boxes, source="human", overlay=picture("field", 0))
    return folder


# -- images and runs ----------------------------------------------------------------------------


def test_an_image_is_itself(tmp_path: Path) -> None:
    file = image(tmp_path / "a" / "photo.png")
    assert stills(Media([file])) == [Still(str(file), "images", "photo", file)]


def test_a_folder_at_any_depth_in_order(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "in/b.jpg", "in/er/c.webp", ".hidden.jpg", ".git/d.jpg"):
        image(root / name)
    (root / "notes.txt").write_text("no image")
    (root / "folder.jpg").mkdir()
    found = stills(Media([root]))
    assert [still.name for still in found] == [
        str(root / name) for name in ("a.PNG", "b.jpg", "in/b.jpg", "in/er/c.webp")
    ]
    assert [still.stem for still in found] == ["a", "b", "in_b", "in_er_c"]
    assert {still.group for still in found} == {"photos"}


def test_the_names_of_a_deep_folder_are_no_longer_than_file_systems_take(tmp_path: Path) -> None:
    folder = tmp_path / "a" / ("long" * 30) / ("deep" * 30)
    found = stills(Media([image(folder / "1.png").parents[2], image(folder / "2.png").parents[1]]))
    stems = [still.stem for still in found]
    assert len(set(stems)) == 4  # each is found twice
    assert max(map(len, stems)) < 210
    assert {stem.partition("deep_")[2][0] for stem in stems} == {"1", "2"}


def test_names_never_meet(tmp_path: Path) -> None:
    files = [image(tmp_path / name) for name in ("x/a.jpg", "x/a.png", "x/b_c.jpg", "x/b/c.jpg")]
    others = [image(tmp_path / name) for name in ("y/a.jpg", "z/x/a.jpg")]
    sources = [tmp_path / "x", *others, tmp_path / "z" / "x", files[0]]
    found = stills(Media(sources))
    assert len({still.stem for still in found}) == len(found) == 8
    assert [still.group for still in found] == ["x"] * 4 + ["images"] * 2 + ["x_2", "images"]


def test_capture_runs_with_all_their_images(tmp_path: Path) -> None:
    one = capture(tmp_path / "runs" / "run_1", 3)
    capture(tmp_path / "runs" / "run_2", 2)
    (one / "labels" / "frame_00001.json").write_text("{")  # labels are not read
    alone = stills(Media([one]))
    assert [still.stem for still in alone] == ["frame_00000", "frame_00001", "frame_00002"]
    assert {still.group for still in alone} == {"run_1"}
    assert all(still.file.parent == one / "images" for still in alone)
    both = stills(Media([tmp_path / "runs"]))
    assert [still.group for still in both] == ["run_1"] * 3 + ["run_2"] * 2
    assert both[3].stem == "run_2_frame_00000"


def test_so_many_and_no_more(tmp_path: Path) -> None:
    sources = [capture(tmp_path / "run", 5), write_video(tmp_path / "clip.mkv", colours(6))]
    media = Media(sources, max_frames=7)
    assert media.expected == 7
    assert [len(batch) for batch in media.batches(4)] == [4, 3]
    # Of 11, seven evenly spaced: of the run those, of the video as many, from its start.
    assert [still.stem for still in stills(Media(sources, max_frames=7))] == [
        *(f"run_frame_0000{number}" for number in (0, 2, 3)),
        *(f"clip_0000{number}" for number in range(4)),
    ]
    assert Media(sources).expected == len(stills(Media(sources))) == 11
    assert Media(sources, max_frames=100).expected == 11


def test_so_many_of_files_are_spread_over_all_of_them(tmp_path: Path) -> None:
    """As of folders that are sorted by class, where the first ones are of one class."""
    for name in ("cat", "dog", "ox"):
        for number in range(4):
            image(tmp_path / "data" / name / f"{number}.jpg")
    for count in range(3, 13):
        found = stills(Media([tmp_path / "data"], max_frames=count))
        assert len(found) == count
        by_class = Counter(still.file.parent.name for still in found)
        assert max(by_class.values()) - min(by_class.values()) <= 1


# -- videos -------------------------------------------------------------------------------------


def test_every_frame_exact_and_in_order(tmp_path: Path) -> None:
    frames = colours(7)
    file = write_video(tmp_path / "clip.mkv", frames)
    found = stills(Media([file]))
    assert [still.stem for still in found] == [f"clip_{number:05d}" for number in range(7)]
    assert found[3].name == f"{file} frame 3"
    assert {still.group for still in found} == {"clip"}
    for seen, frame in zip(pixels(Media([file])), frames, strict=True):
        assert np.array_equal(seen, frame)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a:b.mp4", "mpeg4"), ("a.webm", "libvpx"), ("a.avi", "mjpeg")],
)
def test_common_formats(tmp_path: Path, name: str, codec: str) -> None:
    frames = colours(9)
    media = Media([write_video(tmp_path / name, frames, codec)])
    assert media.expected == 9
    seen = pixels(media)
    assert len(seen) == 9
    for shown, frame in zip(seen, frames, strict=True):
        assert np.abs(shown.mean((0, 1)) - frame.mean((0, 1))).max() < 12


def test_frames_are_files_until_the_next_batch(tmp_path: Path) -> None:
    batches = Media([write_video(tmp_path / "clip.mkv", colours(5))]).batches(2)
    first = next(batches)
    folder = first[0].file.parent
    assert all(still.file.is_file() for still in first)
    second = next(batches)
    assert sorted(folder.iterdir()) == [still.file for still in second]
    batches.close()
    assert not folder.exists()


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    """As telephones film: the picture lies on its side and the header says so."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:16, :24] = (255, 0, 0)
    file = write_video(tmp_path / "clip.mp4", [frame] * 2, "libx264")
    # The 3×3 matrix of ISO/IEC 14496-12, §8.3.2, of the track: a quarter turn clockwise.
    upright = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1 << 14], ">i4")
    upright[[0, 4]] <<= 16
    upright[8] <<= 16
    turned = upright[[1, 0, 2, 3, 5, 6, 7, 7, 8]]
    turned[3] = -turned[1]
    content = file.read_bytes()
    at = content.index(upright.tobytes(), content.index(b"tkhd"))
    file.write_bytes(content[:at] + turned.tobytes() + content[at + 36 :])
    [seen, _] = pixels(Media([file]))
    assert seen.shape == (64, 48, 3)
    assert seen[5, -5, 0] > 200
    assert seen[5, 5, 0] < 50


def test_a_video_under_any_name(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mkv", colours(2)).rename(tmp_path / "clip")
    photo = image(tmp_path / "photo.jpg").rename(tmp_path / "photo.dat")
    assert [still.group for still in stills(Media([video, photo]))] == ["clip", "clip", "images"]


# -- damage and mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_damage_inside_costs_the_damaged_frames(tmp_path: Path, codec: str) -> None:
    file = write_video(tmp_path / "clip.mkv", colours(20), codec)
    content = bytearray(file.read_bytes())
    for index in np.random.default_rng(0).integers(len(content) // 3, 2 * len(content) // 3, 12):
        content[index] ^= 0xFF
    file.write_bytes(content)
    media = Media([file])
    found = len(stills(media))
    assert 0 < found <= 20
    assert sum(media.skipped.values()) + found <= 20


def test_a_broken_video_among_others_is_counted(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(write_video(tmp_path / "whole.mp4", colours(4), "mpeg4").read_bytes()[:900])
    media = Media([broken, tmp_path / "whole.mp4"])
    assert len(stills(media)) == 4
    assert media.skipped == {"not_a_video": 1}
    assert len(media.problems) == 1
    assert str(broken) in media.problems[0]


def test_titles_in_another_encoding(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.avi", colours(3), "mpeg4")
    content = file.read_bytes()
    assert b"Lavf" in content  # the program that wrote it, beside title and author
    file.write_bytes(content.replace(b"Lavf", "Läv".encode("latin-1") + b"f"))
    assert len(stills(Media([file]))) == 3


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    file = tmp_path / "speech.wav"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    with user_error("SOURCE", "speech.wav", "no video stream"):
        Media([file])


Make = Callable[[Path], Sequence[Path]]
MISTAKES: dict[str, tuple[Make, str]] = {
    "nothing there": (lambda root: [root / "a.jpg"], "a.jpg: no such file or folder"),
    "an empty folder": (lambda root: [root], "no image in it"),
    "a run without frames": (
        lambda root: [_emptied(capture(root / "run", 1))], "run: no image in its capture runs"
    ),
    "text": (lambda root: [_text(root / "a.mp4")], "a.mp4: neither an image nor a video"),
    "nothing in it": (lambda root: [_text(root / "a.avi", "")], "a.avi: neither an image nor a"),
}  # fmt: skip


def _emptied(run: Path) -> Path:
    for file in (run / "images").iterdir():
        file.unlink()
    return run


def _text(path: Path, content: str = "hello") -> Path:
    path.write_text(content)
    return path


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, kind: str) -> None:
    make, words = MISTAKES[kind]
    with user_error("SOURCE", words):
        Media(make(tmp_path))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    media = Media([write_video(tmp_path / "clip.mkv", colours(2))])
    monkeypatch.setattr(Image.Image, "save", full)
    with user_error("TMPDIR", "No space left on device", "TMPDIR"):
        stills(media)


def test_a_playlist_fetches_nothing(tmp_path: Path) -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/part.ts"
        for name in ("list.m3u8", "list.mp4"):
            head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXT-X-MEDIA-SEQUENCE:0\n"
            (tmp_path / name).write_text(f"{head}#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n")
            with user_error("SOURCE", name):
                stills(Media([tmp_path / name]))
        server.shutdown()
    assert asked == []
