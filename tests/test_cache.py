import errno
import os

import pytest
import torch
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
    for content in ("{", "{}", "null", "[" * 3000, '{"entry": 1, "files": []}', '{"entry": "x/entry", "files": {}}'):
        (target / "manifest.json").write_text(content)
        assert cache.damage(target)


def test_two_entries_cannot_change_places(tmp_path):
    for name in ("one", "two"):
        with cache.writing(tmp_path / name) as folder:
            (folder / "a").write_text(name)
    (tmp_path / "one").rename(tmp_path / "three")
    (tmp_path / "two").rename(tmp_path / "one")
    assert "belongs elsewhere" in cache.damage(tmp_path / "one")


def test_a_cache_is_made_for_its_user_alone_to_write_whatever_the_umask(own_cache, monkeypatch):
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(own_cache / "new"))
    before = os.umask(0)
    try:
        cache.tensors("Kind", {}, lambda: {"a": torch.ones(1)})
    finally:
        os.umask(before)
    folders = [path for path in own_cache.rglob("*") if path.is_dir()]
    assert len(folders) == 3
    assert not any(path.stat().st_mode & 0o022 for path in folders)


def test_a_cache_that_anybody_can_write_into_is_refused(own_cache):
    own_cache.mkdir(exist_ok=True)
    own_cache.chmod(0o777)
    with pytest.raises(StorageError, match="chmod o-w"):
        cache.tensors("Kind", {}, lambda: {"a": torch.ones(1)})


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
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ],
)
def test_a_full_or_closed_disk_is_a_storage_error_and_leaves_nothing(tmp_path, error):
    with pytest.raises(StorageError, match="Cannot write to"), cache.writing(tmp_path / "entry"):
        raise error
    assert not (tmp_path / "entry").exists()


def test_a_closed_folder_is_a_storage_error_for_the_lock_too(tmp_path, monkeypatch):
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


def test_the_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("RIDGE_CACHE", str(tmp_path))
    assert cache.directory() == tmp_path
    monkeypatch.delenv("RIDGE_CACHE")
    assert cache.directory().name == "ridge-utils"


def remember(changes, **key):
    """Ask the cache for tensors; every time that they are computed is noted in ``changes``."""

    def build():
        changes.append(key)
        return {"a": torch.arange(6).reshape(2, 3).T * key["n"], "flag": torch.tensor([True, False])}

    return cache.tensors("Kind", key, build)


def test_tensors_are_computed_once_per_key(own_cache):
    made = []
    first, second = remember(made, n=2), remember(made, n=2)
    assert len(made) == 1
    for found in (first, second):
        assert set(found) == {"a", "flag"}
        assert found["a"].tolist() == [[0, 6], [2, 8], [4, 10]]
        assert (found["a"].dtype, found["flag"].dtype) == (torch.int64, torch.bool)
    assert remember(made, n=3)["a"][2, 1] == 15
    assert remember(made, n=3, more="x")["a"][2, 1] == 15
    assert len(made) == 3
    assert cache.tensors("Other", {"n": 2}, lambda: {"b": torch.zeros(1)})["b"] == 0, "a kind has entries of its own"
    assert {p.name for p in own_cache.iterdir() if p.is_dir()} == {"Kind", "Other"}


@pytest.mark.parametrize("damaged", ["changed", "cut", "gone", "manifest"])
def test_damaged_tensors_are_said_and_computed_again(own_cache, caplog, damaged):
    made = []
    whole = remember(made, n=2)
    (folder,) = [p for p in (own_cache / "Kind").iterdir() if p.is_dir()]
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damaged == "changed":
        path.write_bytes(bytes(content))
    elif damaged == "cut":
        path.write_bytes(bytes(content[:-1]))
    else:
        (folder / "manifest.json" if damaged == "manifest" else path).unlink()
    again = remember(made, n=2)
    assert len(made) == 2
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert f"The cached Kind in {folder} are damaged" in caplog.text
    assert cache.damage(folder) is None
    remember(made, n=2)
    assert len(made) == 2


def test_a_computation_that_fails_leaves_no_tensors(own_cache):
    with pytest.raises(ValueError, match="broken"):
        cache.tensors("Kind", {}, lambda: (_ for _ in ()).throw(ValueError("broken")))
    assert not [p for p in (own_cache / "Kind").iterdir() if p.is_dir()]
    assert cache.tensors("Kind", {}, lambda: {"a": torch.ones(1)})["a"] == 1
