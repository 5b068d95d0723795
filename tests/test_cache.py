import errno
import json
import os

import pytest
from safetensors import SafetensorError

from ridge_utils import cache
from ridge_utils.errors import StorageError


def test_an_entry_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "entry"
    with pytest.raises(RuntimeError, match="killed"), cache.writing(target) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []
    with cache.writing(target) as folder:
        (folder / "a").write_text("whole")
        assert not target.exists()
    assert cache.damage(target) is None
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]
    with cache.writing(target) as folder:
        (folder / "b").write_text("new")
    assert {p.name for p in target.iterdir()} == {"b", "manifest.json"}


def test_every_damage_is_named(tmp_path):
    target = tmp_path / "entry"

    def fresh():
        with cache.writing(target) as folder:
            (folder / "a").write_bytes(b"12345")

    assert cache.damage(target) == "it has no manifest"
    fresh()
    (target / "a").write_bytes(b"12345678")
    assert cache.damage(target) == "a has 8 bytes instead of 5"
    fresh()
    (target / "a").write_bytes(b"12354")
    assert cache.damage(target) == "the SHA-256 of a is not the one in its manifest"
    (target / "a").unlink()
    assert cache.damage(target) == "a is missing"
    (target / "manifest.json").write_text("{}")
    assert cache.damage(target) == "its manifest lists nothing"
    (target / "manifest.json").write_text("{")
    assert cache.damage(target).startswith("its manifest cannot be read")


def test_a_text_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    cache.write_text(path, "old")
    monkeypatch.setattr(os, "fdopen", lambda *_a, **_k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StorageError, match="No space left on device"):
        cache.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EACCES, "Permission denied"),
        OSError(errno.EROFS, "Read-only file system"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ],
)
def test_a_full_or_closed_disk_is_one_sentence_with_the_remedy(tmp_path, error):
    with (
        pytest.raises(
            StorageError, match=r"^Cannot write to .*: .*\. Make room .* or choose another folder \(RIDGE_CACHE"
        ) as caught,
        cache.writing(tmp_path / "entry"),
    ):
        raise error
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "entry").exists()


def test_a_closed_folder_is_one_sentence_for_the_lock_too(tmp_path, monkeypatch):
    def refuse(*_a, **_k):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cache.filelock.FileLock, "acquire", refuse)  # tests may run as root, who may do anything
    with pytest.raises(StorageError, match=r"Cannot write to .*: Permission denied"), cache.lock(tmp_path / "entry"):
        pass


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".entry.abc").mkdir()
    (tmp_path / ".entry.abc" / "model").write_text("half")
    with cache.writing(tmp_path / "entry") as folder:
        (folder / "a").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), cache.writing(tmp_path / "entry"):
        open("/no/such/file")  # noqa: PTH123, SIM115
    with pytest.raises(RuntimeError, match="shape"), cache.writing(tmp_path / "entry"):
        raise RuntimeError("shape mismatch")


def test_digest_depends_on_content_and_not_on_order():
    assert cache.digest({"a": 1, "b": [1, 2]}) == cache.digest({"b": [1, 2], "a": 1})
    assert cache.digest({"a": 1}) != cache.digest({"a": 2})


def test_manifest_lists_only_what_it_is_told(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    cache.seal(tmp_path, ["a"])
    assert list(json.loads((tmp_path / "manifest.json").read_text())) == ["a"]
    (tmp_path / "b").unlink()
    assert cache.damage(tmp_path) is None


def test_the_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("RIDGE_CACHE", str(tmp_path))
    assert cache.directory() == tmp_path
    monkeypatch.delenv("RIDGE_CACHE")
    assert cache.directory().name == "ridge-utils"
