"""What can happen to a file of int4kv.save_cache: killed writers, full disks, cut off and altered bytes. The old cache, the new one or an
error; never another cache."""

import errno
import fcntl
import os
import random
import resource
import signal
import time

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import random_ids, tiny_qwen2

import int4kv
from int4kv.naming import cache_of
from int4kv.replacing import replacing
from int4kv.saved import container

pytestmark = pytest.mark.cpu_only


def content(seed, rows=2000):
    generator = torch.Generator().manual_seed(seed)
    return f"text {seed}", {name: torch.randint(0, 255, (rows, 64), generator=generator, dtype=torch.uint8) for name in ("a", "b")}


def same(found, expected):
    return found[0] == expected[0] and found[1].keys() == expected[1].keys() and all(torch.equal(t, expected[1][n]) for n, t in found[1].items())


def in_a_child(work):
    """Run work in a forked process, which ends with it; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def how_it_ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_killed_at_any_time_leaves_the_old_file_or_the_new_one(tmp_path):
    """A process that writes another content over and over, killed 40 times, after up to three times as long as a write takes."""
    file, contents, kept = tmp_path / "saved", [content(seed, 20_000) for seed in (0, 1)], 0
    begin = time.perf_counter()
    container.write(file, *contents[0])
    longest, delays = 3 * (time.perf_counter() - begin), random.Random(0)

    def write_for_ever(one):
        while True:
            container.write(file, *one)

    for turn in range(40):
        child = in_a_child(lambda: write_for_ever(contents[turn % 2]))
        time.sleep(delays.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        assert how_it_ended(child) == -signal.SIGKILL
        found = container.read(file)
        assert any(same(found, one) for one in contents)
        kept += found[0] != contents[turn % 2][0]
    assert 0 < kept < 40  # killed before and after the new file was in its place
    assert set(leftovers(tmp_path)) <= {"saved", ".saved.saving"}
    container.write(file, *contents[0])
    assert leftovers(tmp_path) == ["saved"]


STEPS = {"mkdir": "old", "flock": "old", "save_file": "old", "fsync": "old", "replace": "old", "rmdir": "new"}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_writer_killed_at_every_step(step, when, tmp_path):
    file, old, new = tmp_path / "saved", content(0), content(1)
    container.write(file, *old)

    def write_and_die():
        module = {"save_file": container, "flock": fcntl}.get(step, os)
        original = getattr(module, step)

        def killed(*args, **options):
            if when == "after":
                original(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(module, step, killed)
        container.write(file, *new)

    assert how_it_ended(in_a_child(write_and_die)) == -signal.SIGKILL
    expected = new if (step, when) == ("replace", "after") or STEPS[step] == "new" else old
    assert same(container.read(file), expected)
    container.write(file, *new)  # what was left behind is in nobody's way, and cleaned
    assert same(container.read(file), new) and leftovers(tmp_path) == ["saved"]


def test_a_second_writer_waits_for_the_first(tmp_path):
    file = tmp_path / "saved"
    with replacing(file) as temporary:
        temporary.write_text("first")
        second = in_a_child(lambda: container.write(file, *content(1)))
        time.sleep(0.3)
        assert os.waitpid(second, os.WNOHANG) == (0, 0) and temporary.read_text() == "first" and not file.exists()
    assert how_it_ended(second) == 0
    assert same(container.read(file), content(1)) and leftovers(tmp_path) == ["saved"]


def test_writers_at_once_leave_one_whole_file(tmp_path):
    file, contents = tmp_path / "saved", [content(seed, 200) for seed in range(3)]
    children = [in_a_child(lambda one=one: [container.write(file, *one) for _ in range(50)]) for one in contents]
    assert [how_it_ended(child) for child in children] == [0, 0, 0]
    assert any(same(container.read(file), one) for one in contents) and leftovers(tmp_path) == ["saved"]


def test_files_have_the_mode_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        container.write(tmp_path / "saved", *content(0))
        int4kv.Int4KVConfig().save(tmp_path)
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"saved": "0o640", "int4kv.json": "0o640"}


def save_within(limit, cache, file, model):
    """Save where no file may be longer; exits with 7 for the OSError that is expected."""
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            int4kv.save_cache(cache, file, model)
        except OSError as error:
            os._exit(7 if f"{file} could not be written" in str(error) and "what was there before is as it was" in str(error) else 1)

    return how_it_ended(in_a_child(work))


@pytest.fixture(scope="module")
def model():
    return int4kv.patch(tiny_qwen2())


@pytest.fixture(scope="module")
def cache(model):
    with torch.no_grad():
        return cache_of(model(random_ids(1, 60), use_cache=True))


def test_a_full_disk_is_an_error_and_the_old_file_stays(model, cache, tmp_path):
    """No space in a file system of this size: the limit on a file's size is met at the same calls."""
    file = tmp_path / "saved"
    assert save_within(100, cache, file, model) == 7 and leftovers(tmp_path) == []
    int4kv.save_cache(cache, file, model)
    before, size = file.read_bytes(), file.stat().st_size
    for limit in (0, 1, 4096, size // 2, size - 1):
        assert save_within(limit, cache, file, model) == 7
        assert file.read_bytes() == before and leftovers(tmp_path) == ["saved"]
    assert save_within(size, cache, file, model) == 0


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_late_is_an_error_and_the_old_file_stays(step, tmp_path, monkeypatch):
    file = tmp_path / "saved"
    container.write(file, *content(0))

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="saved could not be written .*No space left on device"):
        container.write(file, *content(1))
    monkeypatch.undo()
    assert same(container.read(file), content(0)) and leftovers(tmp_path) == ["saved"]


def test_a_config_is_written_as_safely(tmp_path, monkeypatch):
    int4kv.Int4KVConfig(bits=5).save(tmp_path)
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(descriptor))
    int4kv.Int4KVConfig(bits=8).save(tmp_path)
    assert len(flushed) == 2  # the file, and its name

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="int4kv.json could not be written .*No space left on device.*; what was there before is as it was"):
        int4kv.Int4KVConfig(bits=3).save(tmp_path)
    assert int4kv.Int4KVConfig.load(tmp_path).bits == 8 and leftovers(tmp_path) == ["int4kv.json"]


def test_no_such_folder(tmp_path, model, cache):
    with pytest.raises(OSError, match="nowhere/saved could not be written .*No such file or directory"):
        int4kv.save_cache(cache, tmp_path / "nowhere" / "saved", model)


def test_a_reader_beside_a_writer_finds_whole_files(tmp_path):
    file, contents = tmp_path / "saved", [content(seed) for seed in (0, 1)]
    container.write(file, *contents[0])
    child = in_a_child(lambda: [container.write(file, *one) for _ in range(100) for one in contents])
    for _ in range(200):
        found = container.read(file)
        assert any(same(found, one) for one in contents)
    assert how_it_ended(child) == 0


@pytest.fixture(scope="module")
def whole(model, cache, tmp_path_factory):
    """(file, its bytes, its content) of a saved cache."""
    file = tmp_path_factory.mktemp("whole") / "saved"
    int4kv.save_cache(cache, file, model, input_ids=random_ids(1, 60))
    text, tensors = container.read(file)
    return file, file.read_bytes(), (text, {name: t.clone() for name, t in tensors.items()})


def refused(file):
    """Whether reading is a ValueError that names the file; anything else but the content is a failure."""
    try:
        found = container.read(file)
    except ValueError as error:
        assert str(file) in str(error) and "accepted" in str(error)
        return None
    return found


def test_every_altered_byte_is_detected(whole, tmp_path):
    """One bit in every byte of the header, and in every 499th of the tensors. Blanks that pad the header carry nothing."""
    file, original, expected = tmp_path / "altered", whole[1], whole[2]
    header = 8 + int.from_bytes(original[:8], "little")
    bits, harmless = random.Random(0), 0
    for place in [*range(header), *range(header, len(original), 499)]:
        altered = bytearray(original)
        altered[place] ^= 1 << bits.randrange(8)
        file.write_bytes(altered)
        found = refused(file)
        if found is not None:
            harmless += 1
            assert same(found, expected) and original[place : place + 1] == b" "
    assert harmless <= 7


def test_every_truncation_is_detected(model, whole, tmp_path):
    file, original = tmp_path / "cut", whole[1]
    lengths = [*range(0, 64), *range(64, len(original), 97), *range(len(original) - 64, len(original))]
    for length in lengths:
        file.write_bytes(original[:length])
        assert refused(file) is None
    for added in (b"\0", original):
        file.write_bytes(original + added)
        assert refused(file) is None
    with pytest.raises(ValueError, match="cut cannot be read .*; accepted: a whole file that int4kv.save_cache wrote"):
        int4kv.load_cache(file, model)


def test_pages_in_another_order_are_detected(whole, tmp_path):
    """What a lost or stale write leaves: one page with the bytes of another, of zeros, of an older cache."""
    file, original = tmp_path / "pages", whole[1]
    for first in range(4096, len(original) - 4096, 4096):
        for page in (original[4096:8192] if first > 4096 else original[8192:12288], bytes(4096)):
            file.write_bytes(original[:first] + page + original[first + 4096 :])
            assert refused(file) is None


def test_files_of_another_kind(model, tmp_path):
    file = tmp_path / "file"
    save_file({"a": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="file has format None; accepted: 'int4kv prompt cache'"):
        int4kv.load_cache(file, model)
    file.write_text("no cache")
    with pytest.raises(ValueError, match="file cannot be read"):
        int4kv.load_cache(file, model)
    for path, problem in ((tmp_path, "is not a file"), (tmp_path / "missing", "does not exist")):
        with pytest.raises(FileNotFoundError, match=f"{problem}; accepted: a whole file that int4kv.save_cache wrote"):
            int4kv.load_cache(path, model)
