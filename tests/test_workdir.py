"""Tests paths, the lock of a workdir, its JSON files and what killed processes leave."""

import os
from pathlib import Path

import pytest

from sip import workdir as workdirs
from sip.structs import UserError


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("~/runs", "/home/me/runs"),
        ("~", "/home/me"),
        ("file:///data/my%20corpus.txt", "/data/my corpus.txt"),
        ("file://localhost/data/a", "/data/a"),
        ("file:/data/a", "/data/a"),
        ("a/~/b:c", "a/~/b:c"),
        ("gs://bucket/x", "gs://bucket/x"),
        ("hf://org/name", "hf://org/name"),
        ("", ""),
    ],
)
def test_a_path_is_where_the_user_means(path, want, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert workdirs.place(path) == want


@pytest.mark.parametrize("path", ["sg://bucket/x", "gs:/bucket/x", "file://host/x", "http://a/b"])
def test_a_mistyped_scheme_is_no_directory(path):
    with pytest.raises(UserError, match="must be a local path or begin with") as caught:
        workdirs.place(path)
    assert path in str(caught.value)


def test_a_workdir_has_one_writer_at_a_time(tmp_path):
    where = str(tmp_path / "w")
    with workdirs.locked(where):
        with pytest.raises(UserError, match=f"{where} is in use by process {os.getpid()} on"):
            with workdirs.locked(where):
                pass
        with workdirs.locked(str(tmp_path / "other")):
            pass
    with pytest.raises(ZeroDivisionError), workdirs.locked(where):
        raise ZeroDivisionError
    with workdirs.locked(where):  # free again, also after an error
        pass


def test_no_output_is_an_input_or_another_output(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text("kept")
    (tmp_path / "soft").symlink_to(a)
    os.link(a, tmp_path / "hard")
    inputs = [str(a), "", "gs://x/y"]
    for out in (str(a), f"{tmp_path}/./a.json", *(f"{tmp_path}/{x}" for x in ("soft", "hard"))):
        with pytest.raises(UserError, match=f"--out {out}: is an input, which is never overwr"):
            workdirs.never_an_input({"details": "", "out": out}, inputs)
    with pytest.raises(UserError, match="--out gs://x/y: is an input"):
        workdirs.never_an_input({"out": "gs://x/y"}, inputs)
    with pytest.raises(UserError, match=f"--details and --out are both {b}"):
        workdirs.never_an_input({"out": str(b), "details": str(b)}, inputs)
    workdirs.never_an_input({"out": str(b), "details": f"{b}l", "answers": ""}, inputs)


def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="file/w"), workdirs.locked(str(tmp_path / "file" / "w")):
        pass


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    run = tmp_path / "runs" / "base" / "best"
    run.mkdir(parents=True)
    left = [folder / f".eval.json.{'0a' * 16}.part" for folder in (tmp_path, run.parent, run)]
    kept = [tmp_path / "mine.part", run / ".mine.part", tmp_path / ".lock"]
    for path in (*left, *kept):
        path.write_text("x")
    workdirs.clean(str(tmp_path))
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


@pytest.mark.parametrize("text", ["", '{"a": 1', "\0\0\0", "[" * 100_000, "\ufeff{}", "null", "3"])
def test_a_damaged_json_file_is_named(text, tmp_path):
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(UserError, match=r"done\.json") as caught:
        workdirs.read_json(tmp_path / "done.json")
    assert "\n" not in str(caught.value)


def test_what_is_no_workdir_is_not_made_one(tmp_path):
    with pytest.raises(UserError, match="--data_workdir .*typo"):
        workdirs.existing(str(tmp_path / "typo"), "--data_workdir")
    assert not (tmp_path / "typo").exists()
    (tmp_path / "config.json").write_text("{}")
    assert workdirs.existing(str(tmp_path)) == str(tmp_path)


def test_a_digest_is_of_names_and_contents(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    want = workdirs.digest([a, b])
    assert workdirs.digest([b, a]) == want
    b.write_bytes(b"twO")
    assert workdirs.digest([a, b]) != want
    assert workdirs.digest([a]) != workdirs.digest([Path(b)])


@pytest.mark.parametrize("text", ["{}", '{"seeds": 3, "shared": true}', '{"seeds": [0]}'])
def test_a_json_file_without_its_keys_is_named(text, tmp_path):
    (tmp_path / "seeds.json").write_text(text)
    with pytest.raises(UserError, match=r"seeds\.json: '(seeds|shared)' is missing or of a wrong"):
        workdirs.read_seeds(tmp_path / "seeds.json")
