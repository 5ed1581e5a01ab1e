from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from research.utils import weights
from research.utils.errors import UserError
from tests.conftest import user_error

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1, 2])}


class Bomb:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth"])
def test_tensors_come_back(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name.endswith("safetensors"):
        save_file(STATE, file)
    else:
        torch.save(STATE, file)
    found = weights.read(file)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


def refused(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        weights.read(file)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    return message


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"model": STATE, "more": Bomb(mark)}, tmp_path / "a.pt")
    assert "calls a function" in refused(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Bomb(mark)))
    assert "refused" in refused(tmp_path / "b.pt")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_damage_is_told_in_one_line(tmp_path: Path, name: str, damage: str) -> None:
    file = tmp_path / name
    if name.endswith("safetensors"):
        save_file(STATE, file)
    else:
        torch.save(STATE, file)
    whole = file.read_bytes()
    file.write_bytes(
        {"empty": b"", "text": b"no weights\n", "cut": whole[: len(whole) // 2]}[damage]
    )
    assert "damaged" in refused(file)


def test_no_file_and_no_state_dict(tmp_path: Path) -> None:
    assert "no file" in refused(tmp_path / "a.pt")
    assert "no file" in refused(tmp_path / "a.safetensors")
    torch.save(torch.zeros(3), tmp_path / "b.pt")
    assert "no state dict" in refused(tmp_path / "b.pt")
    (tmp_path / "folder.pt").mkdir()
    assert "damaged" in refused(tmp_path / "folder.pt")


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    save_file(STATE, tmp_path / "b.safetensors", {"format": "pt", "note": "ä"})
    torch.save(STATE, tmp_path / "c.pt")
    assert weights.metadata(tmp_path / "a.safetensors") == {}
    assert weights.metadata(tmp_path / "b.safetensors") == {"format": "pt", "note": "ä"}
    assert weights.metadata(tmp_path / "c.pt") == {}


def test_a_tensor_without_a_name_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3), 5: torch.zeros(3)}, tmp_path / "a.pt")
    with user_error("model.pretrained", "a.pt: the tensor 5 has a name that is no text"):
        weights.state_dict(tmp_path / "a.pt", "model.pretrained")
