"""The grabber child for folders, driven over its pipe as the daemon does it."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from edge_daemon import messages, wire
from edge_daemon.messages import FileKey, Frame, Idle, Next, Offer, Open, Opening, Problem, Wanted
from edge_daemon.units import MIB
from tests.bombs import jpeg_of_scans
from tests.grabbers import COMMAND, DEADLINE_S, Grabber, settings_of
from tests.hostile import SCENE, Hostile, encode, make, scene

JPEG = encode(scene(), "JPEG", quality=95)


class FolderGrabber(Grabber):
    """One of a folder; what it asks is answered."""

    def __init__(self, folder: Path, prefix: tuple[str, ...] = (), **options: object) -> None:
        self.book: set[FileKey] = set()
        """What has been dealt with."""
        self.offered: list[FileKey] = []
        self.opened: list[FileKey] = []
        self.on_opening: Callable[[FileKey], None] = lambda file: None
        self.on_offer: Callable[[list[FileKey]], None] = lambda files: None
        settings = settings_of(**{"type": "folder", "path": str(folder), "settle_s": 0.3, **options})
        super().__init__(settings, (*prefix, *COMMAND))
        assert self.decoder

    def next(self, *, fresh: bool = False) -> Frame | Problem:
        """Ask for one picture and answer offers until it comes."""
        self.send(Next(fresh))
        return self.answer()

    def answer(self) -> Frame | Problem:
        """What comes in answer to a Next that was sent."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            answer = self._step(self.receive())
            if answer is not None:
                return answer
        raise AssertionError(f"nothing came within {DEADLINE_S} s; opened: {[file.name for file in self.opened]}")

    def wait_idle(self) -> Idle:
        """Ask for a picture, and wait until the grabber says that there is none."""
        self.send(Next())
        while True:
            message = self.receive()
            if isinstance(message, Idle):
                return message
            assert self._step(message) is None, message

    def _step(self, message: Any) -> Frame | Problem | None:
        match message:
            case Offer(files):
                self.on_offer(files)
                self.offered += files
                self.send(Wanted([file not in self.book for file in files]))
            case Opening(file):
                self.opened.append(file)
                self.on_opening(file)
            case Frame() | Problem():
                if message.file is not None:
                    assert message.file == self.opened[-1]
                    assert message.file not in self.book
                    self.book.add(message.file)
                return message
            case Idle():
                pass
            case _:
                raise AssertionError(f"{message!r}; stderr: {self.stderr()}")
        return None

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def peak_rss_bytes(self) -> int:
        return self.status("VmHWM") << 10


Start = Callable[..., FolderGrabber]


def opening(settings: dict[str, object]) -> bytes:
    """The first message."""
    return wire.encode(messages.pack(Open(json.dumps(settings))))


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes grabbers, and ends them."""
    started: list[FolderGrabber] = []

    def make_one(folder: Path, **options: Any) -> FolderGrabber:
        started.append(FolderGrabber(folder, **options))
        return started[-1]

    yield make_one
    for grabber in started:
        grabber.stderr()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


def put(path: Path, data: bytes = JPEG, age_s: float = 3600.0) -> FileKey:
    """A complete file, as a rename puts it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:200]}.part")
    partial.write_bytes(data)
    stamp = time.time() - age_s
    os.utime(partial, (stamp, stamp))
    partial.rename(path)
    return FileKey(path.name, path.stat().st_mtime_ns, len(data))


def is_scene(frame: Frame, case: Hostile) -> bool:
    """Whether a frame shows what the case says."""
    if (frame.width_px, frame.height_px) != case.size or len(frame.payload) != 3 * frame.width_px * frame.height_px:
        return False
    if case.colours != "scene":
        return True
    width, height = case.size
    starts = [3 * (height * y // 4 * width + width * x // 4) for y in (1, 3) for x in (1, 3)]
    seen = [frame.payload[start : start + 3] for start in starts]
    return all(
        abs(a - b) <= 12 for was, right in zip(seen, SCENE, strict=True) for a, b in zip(was, right, strict=True)
    )


# ---- hostile files ---------------------------------------------------------------------------------------


def test_hostile_files_are_each_answered_once_and_harm_nothing(start: Start, folder: Path) -> None:
    """Each file gives one Frame or one Problem with its reason; a good picture right after each is read."""
    cases = {case.name: case for case in make(folder)}
    good = Hostile("good")
    grabber = start(folder)
    answers: dict[str, Frame | Problem] = {}
    interludes = 0
    while len(answers) < len(cases):
        answer = grabber.next()
        assert answer.file is not None, answer
        if answer.file.name.startswith("good-"):
            assert isinstance(answer, Frame), answer
            assert is_scene(answer, good)
            interludes += 1
            continue
        assert answer.file.name not in answers
        answers[answer.file.name] = answer
        put(folder / f"good-{len(answers)}.jpg", age_s=1e6 - len(answers))  # older than all, so it comes next
    assert answers.keys() == cases.keys()
    wrong = [
        (name, answer)
        for name, answer in answers.items()
        if not (
            is_scene(answer, cases[name])
            if isinstance(answer, Frame)
            else cases[name].reason and re.search(cases[name].reason, answer.reason)
        )
    ]
    assert not wrong
    while interludes < len(cases):
        answer = grabber.next()
        assert isinstance(answer, Frame)
        interludes += 1
    assert grabber.wait_idle() == Idle()
    assert len(grabber.opened) == 2 * len(cases)
    assert grabber.peak_rss_bytes() < 400 * MIB
    assert grabber.leave() == 0


def test_a_picture_that_needs_too_much_memory_is_a_problem(start: Start, folder: Path) -> None:
    flat = Image.new("RGB", (6_000, 6_000), (90, 120, 200))
    put(folder / "large.jpg", encode(flat, "JPEG", progressive=True, subsampling=0))
    put(folder / "good.jpg", age_s=10.0)
    grabber = start(folder, decode_memory_bytes=120 * MIB)
    problem = grabber.next()
    assert isinstance(problem, Problem)
    assert "needs more memory than the 126 MB it may have" in problem.reason
    assert isinstance(grabber.next(), Frame)
    assert grabber.peak_rss_bytes() < 200 * MIB


def test_a_picture_that_takes_too_long_ends_the_grabber_and_leaves_time_to_others(start: Start, folder: Path) -> None:
    """By the kernel, as no decoder can be interrupted; who opened it is known to the daemon. Each has its own time."""
    for number in range(30):
        put(folder / f"{number}.jpg", age_s=9_000.0 - number)
    put(folder / "slow.jpg", jpeg_of_scans(4_000, 4_000, 8_000))
    grabber = start(folder, decode_timeout_s=0.3)
    assert all(isinstance(grabber.next(), Frame) for _ in range(30))
    grabber.send(Next())
    while not isinstance(message := grabber.receive(), Opening):
        assert grabber._step(message) is None
    assert message.file.name == "slow.jpg"
    assert grabber.receive() is None
    assert grabber.process.wait(DEADLINE_S) == -signal.SIGPROF
    assert grabber.stderr() == ""


def test_folders_deeper_than_a_path_may_be_long_are_told_of_once(start: Start, folder: Path) -> None:
    """Made step by step, as nobody can name them."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        here, above = os.open("d" * 250, os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    put(folder / "a.jpg")
    grabber = start(folder)
    answers = [grabber.next(), grabber.next()]
    assert grabber.wait_idle() == Idle()
    [problem] = [answer for answer in answers if isinstance(answer, Problem)]
    assert problem.reason == "it cannot be read: File name too long"


def test_a_hundred_thousand_names_cost_little(start: Start, folder: Path) -> None:
    """The pictures in it come at once, one by one; nothing is held for each name but a number."""
    for number in range(100_000):
        os.close(os.open(folder / f"{number:06}.jpg", os.O_CREAT | os.O_WRONLY))
        if number % 10_000 == 0:
            put(folder / f"picture-{number}.jpg", age_s=1e6 - number)
    grabber = start(folder)
    before_bytes = grabber.rss_bytes()
    grabber.on_offer = lambda files: grabber.book.update(f for f in files if not f.size_bytes)
    for _ in range(10):
        assert isinstance(grabber.next(), Frame)
    assert grabber.wait_idle() == Idle()
    assert len(grabber.offered) == 100_010
    grown_bytes = grabber.peak_rss_bytes() - before_bytes
    assert grown_bytes < 64 * MIB, f"grew by {grown_bytes / MIB:.1f} MiB"


def test_memory_stays_flat_over_hundreds_of_pictures(start: Start, folder: Path) -> None:
    picture = Image.effect_noise((1000, 750), 60).convert("RGB")
    forms = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
    suffixes = ("jpg", "png", "webp", "gif", "tif", "bmp")
    small = picture.resize((600, 450))
    whole = {suffix: encode(small, form) for suffix, form in zip(suffixes, forms, strict=True)}
    whole["jpg"] = encode(picture, "JPEG")
    cut = {suffix: data[: len(data) // 2] for suffix, data in whole.items()}
    for number in range(300):
        suffix = suffixes[number % len(suffixes)]
        data = cut[suffix] if number % 10 == 9 else whole[suffix]
        put(folder / f"{number:03}.{suffix}", data, age_s=10_000 - number)
    grabber = start(folder)
    answers = [grabber.next() for _ in range(60)]
    settled_bytes = grabber.rss_bytes()
    answers += [grabber.next() for _ in range(240)]
    grown_bytes = grabber.rss_bytes() - settled_bytes
    assert grown_bytes < 24 * MIB, f"grew by {grown_bytes / MIB:.1f} MiB from {settled_bytes / MIB:.1f} MiB"
    assert grabber.peak_rss_bytes() < 200 * MIB
    assert sum(isinstance(answer, Problem) for answer in answers) == 30


# ---- files that change -----------------------------------------------------------------------------------


def test_a_file_deleted_between_offer_and_opening_is_reported(start: Start, folder: Path) -> None:
    put(folder / "a.jpg")
    put(folder / "b.jpg", age_s=10.0)
    grabber = start(folder)
    grabber.on_offer = lambda files: (folder / "a.jpg").unlink(missing_ok=True)
    problem = grabber.next()
    assert isinstance(problem, Problem)
    assert "deleted, moved or renamed" in problem.reason
    assert isinstance(grabber.next(), Frame)
    assert grabber.wait_idle() == Idle()


def test_a_file_deleted_or_replaced_while_it_is_read_is_answered_once(start: Start, folder: Path) -> None:
    """Whichever comes first, the reading or the change: one answer for a file as it was offered."""
    for number in range(10):
        put(folder / f"deleted-{number}.jpg", age_s=9_000.0 - number)
        put(folder / f"replaced-{number}.jpg", age_s=9_000.0 - number)
    other = encode(scene(60, 40), "PNG")

    def meddle(file: FileKey) -> None:
        if file.name.startswith("deleted"):
            (folder / file.name).unlink()
        elif file.size_bytes == len(JPEG):
            put(folder / file.name, other, age_s=100.0)

    grabber = start(folder)
    grabber.on_opening = meddle
    deleted: list[str] = []
    last: dict[str, Frame] = {}
    while len(deleted) < 10 or sum(frame.width_px == 60 for frame in last.values()) < 10:
        answer = grabber.next()
        assert answer.file is not None
        if answer.file.name.startswith("deleted"):
            deleted.append(answer.file.name)
        else:
            assert isinstance(answer, Frame)
            last[answer.file.name] = answer
    assert sorted(deleted) == [f"deleted-{number}.jpg" for number in range(10)]
    assert grabber.wait_idle() == Idle()


def test_a_file_that_is_being_written_is_waited_for(start: Start, folder: Path) -> None:
    grabber = start(folder, settle_s=1.5)
    assert grabber.wait_idle() == Idle()
    path = folder / "slow.jpg"
    step = len(JPEG) // 8 + 1
    longest_gap_s, before_s = 0.0, time.monotonic()
    with path.open("wb", buffering=0) as file:
        for start_ in range(0, len(JPEG), step):
            file.write(JPEG[start_ : start_ + step])
            now_s = time.monotonic()
            longest_gap_s, before_s = max(longest_gap_s, now_s - before_s), now_s
            time.sleep(0.2)
    answer = grabber.answer()
    while isinstance(answer, Problem):  # this machine stood still for so long that the writer seemed to have ended
        assert longest_gap_s >= 1.0, answer
        answer = grabber.next()
    assert answer.file == FileKey("slow.jpg", path.stat().st_mtime_ns, len(JPEG))
    assert is_scene(answer, Hostile("slow.jpg"))


def test_files_come_in_through_new_folders(start: Start, folder: Path) -> None:
    grabber = start(folder)
    assert grabber.wait_idle() == Idle()
    put(folder / "2026" / "01" / "a.jpg")
    first = grabber.answer()
    assert first.file is not None
    assert first.file.name == "2026/01/a.jpg"
    grabber.send(Next())
    put(folder / "2026" / "01" / "b.jpg")
    second = grabber.answer()
    assert second.file is not None
    assert second.file.name == "2026/01/b.jpg"


# ---- the folder ------------------------------------------------------------------------------------------


def test_a_missing_folder_is_a_problem_once_and_waited_for(start: Start, folder: Path) -> None:
    grabber = start(folder / "stick")
    problem = grabber.next()
    assert problem == Problem(f"the folder '{folder}/stick' cannot be watched: No such file or directory", None)
    assert grabber.wait_idle() == Idle(problem.reason)
    put(folder / "stick" / "a.jpg")
    assert isinstance(grabber.answer(), Frame)
    shutil.rmtree(folder / "stick")
    assert grabber.next() == problem
    (folder / "stick").mkdir()
    grabber.send(Next())
    put(folder / "stick" / "b.jpg")
    assert isinstance(grabber.answer(), Frame)
    assert grabber.leave() == 0


def inotify(what: str, most: int) -> tuple[str, ...]:
    """A user namespace of its own, so that the limit is real and nobody else's."""
    limit = f'echo {most} > /proc/sys/user/max_inotify_{what} && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no user namespaces")
    return prefix


def test_too_many_folders_to_watch_are_told_of_until_there_are_fewer(start: Start, folder: Path) -> None:
    for number in range(8):
        (folder / str(number) / "below").mkdir(parents=True)
    grabber = start(folder, prefix=inotify("watches", 10), rescan_s=0.5)
    idle = grabber.wait_idle()
    assert idle.problem == "", "it works"
    assert "watch limit reached" in idle.late
    assert "max_user_watches" in idle.late
    put(folder / "7" / "below" / "a.jpg")
    assert isinstance(grabber.answer(), Frame)
    for number in range(7):
        shutil.rmtree(folder / str(number))
    deadline_s = time.monotonic() + DEADLINE_S
    while grabber.wait_idle() != Idle():
        assert time.monotonic() < deadline_s


def test_a_new_folder_is_watched_where_there_is_no_room_for_two_watches_of_all(start: Start, folder: Path) -> None:
    folders = [folder, *(folder / str(number) for number in range(5))]
    for path in folders[1:-1]:
        path.mkdir()
    grabber = start(folder, prefix=inotify("watches", 8), rescan_s=100_000.0)
    assert grabber.wait_idle() == Idle()
    put(folders[-1] / "a.jpg")
    assert isinstance(grabber.answer(), Frame)
    for path in folders:
        assert grabber.wait_idle() == Idle()
        put(path / "b.jpg")
        assert isinstance(grabber.answer(), Frame)


def test_where_the_kernel_tells_nothing_the_rescan_finds_files(start: Start, folder: Path) -> None:
    put(folder / "a.jpg")
    grabber = start(folder, prefix=inotify("instances", 0), rescan_s=0.5)
    assert isinstance(grabber.next(), Frame)
    idle = grabber.wait_idle()
    assert idle.problem == "", "it works"
    assert "only seen at the next rescan" in idle.late
    assert "max_user_instances" in idle.late
    put(folder / "b.jpg")
    assert isinstance(grabber.answer(), Frame)


# ---- the protocol ----------------------------------------------------------------------------------------


def test_what_the_daemon_knows_is_not_opened(start: Start, folder: Path) -> None:
    keys = [put(folder / f"{number}.jpg", age_s=100.0 + number) for number in range(5)]
    grabber = start(folder)
    grabber.book = set(keys[1:])
    answer = grabber.next()
    assert answer.file == keys[0]
    assert grabber.wait_idle() == Idle()
    assert grabber.opened == [keys[0]]
    assert sorted(file.name for file in grabber.offered) == [key.name for key in keys]


def test_nothing_is_read_or_offered_before_it_is_asked_for(start: Start, folder: Path) -> None:
    put(folder / "a.jpg")
    put(folder / "b.jpg")
    grabber = start(folder)
    assert isinstance(grabber.next(), Frame)
    with pytest.raises(queue.Empty):
        grabber.arrived.get(timeout=1.0)
    assert isinstance(grabber.next(), Frame)


def test_it_says_that_it_is_alive_while_it_waits(start: Start, folder: Path) -> None:
    grabber = start(folder)
    assert grabber.wait_idle() == Idle()
    assert grabber.receive() == Idle()


def test_both_decoders_serve(start: Start, folder: Path) -> None:
    put(folder / "a.jpg")
    for decoder, words in (("pyvips", "libvips "), ("pillow", "Pillow "), ("auto", "libvips ")):
        grabber = start(folder, decoder=decoder)
        assert grabber.decoder.startswith(words)
        answer = grabber.next()
        assert isinstance(answer, Frame)
        assert is_scene(answer, Hostile("a.jpg"))
        assert (answer.original_width_px, answer.original_height_px) == (600, 400)
        assert answer.captured_at_s == pytest.approx((folder / "a.jpg").stat().st_mtime)


@pytest.mark.parametrize("asked", [False, True], ids=["before Next", "while it waits for files"])
def test_it_leaves_with_the_daemon(start: Start, folder: Path, asked: bool) -> None:
    grabber = start(folder)
    if asked:
        assert grabber.wait_idle() == Idle()
    assert grabber.leave() == 0
    assert grabber.receive() is None
    assert grabber.stderr() == ""


def test_it_leaves_with_the_daemon_while_it_decodes(start: Start, folder: Path) -> None:
    put(folder / "large.png", encode(Image.effect_noise((3_000, 3_000), 60), "PNG", compress_level=1))
    grabber = start(folder)
    grabber.send(Next())
    while not isinstance(message := grabber.receive(), Opening):
        assert grabber._step(message) is None
    assert grabber.leave() == 0


def test_it_dies_with_a_daemon_that_is_killed(folder: Path) -> None:
    """Even when somebody else holds the pipe open: the kernel tells."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'edge_daemon.grabber'], stdin=sys.stdin,\n"
        "    stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        daemon.stdin.write(opening(settings_of(type="folder", path=str(folder))))
        daemon.stdin.flush()
        child = psutil.Process(int(daemon.stdout.readline()))
        daemon.kill()
        psutil.wait_procs([child], timeout=DEADLINE_S)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_nonsense_ends_it(start: Start, folder: Path) -> None:
    grabber = start(folder)
    assert grabber.process.stdin is not None
    grabber.process.stdin.write(b"what?\n")
    grabber.process.stdin.flush()
    assert grabber.process.wait(DEADLINE_S) == 1
    assert "not a message header" in grabber.stderr()


def test_settings_that_nobody_knows_are_refused(folder: Path) -> None:
    command = [sys.executable, "-m", "edge_daemon.grabber"]
    pipe = subprocess.PIPE  # stdin stays open: the daemon is there
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=Path(__file__).parents[2]) as process:
        assert process.stdin is not None
        process.stdin.write(opening(settings_of(type="folder", path=str(folder), recursiv=True)))
        process.stdin.flush()
        assert process.wait(DEADLINE_S) == 1
        assert process.stderr is not None
        assert "unknown settings: recursiv" in process.stderr.read().decode()


def test_it_volunteers_and_limits_itself(start: Start, folder: Path) -> None:
    process = start(folder, decode_memory_bytes=300 * MIB).process
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text(encoding="ascii") == "500\n"
    limits = Path(f"/proc/{process.pid}/limits").read_text(encoding="ascii")
    assert re.search(rf"Max data size\s+{300 * MIB}\s+{300 * MIB}\s+bytes", limits)
    assert re.search(r"Max core file size\s+0\s+0\s+bytes", limits)
    assert re.search(r"Max file size\s+0\s+0\s+bytes", limits)
    assert re.search(r"Max open files\s+256\s+256\s+files", limits)
