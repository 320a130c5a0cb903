"""`edge-daemon source`: run as people run it, with real grabbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
RED = (255, 0, 0)
CAMERA = "import sys, time; picture = open(sys.argv[1], 'rb').read(); out = sys.stdout.buffer"
FOR_EVER = f"{CAMERA}\nwhile True: out.write(picture); out.flush(); time.sleep(0.1)"
ONCE = f"{CAMERA}\nout.write(picture)"


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "edge_daemon", "source", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "EDGE_DAEMON_STATE_DIR": str(tmp_path / "state")}
    where = {"cwd": tmp_path, "env": environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **where)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """In a folder of its own."""
    (tmp_path / "pictures").mkdir()
    scene = Image.new("RGB", (1024, 768), RED)
    scene.paste((255, 255, 255), (600, 0, 1024, 500))  # something to be seen, or it would pass for a covered lens
    scene.save(tmp_path / "pictures" / "red.jpg", quality=95)
    return tmp_path / "pictures" / "red.jpg"


def configure(tmp_path: Path, **source: Any) -> None:
    """JSON is YAML."""
    document = {"mqtt": {"host": "localhost"}, "sources": {"porch": source}}
    (tmp_path / "config.yaml").write_text(json.dumps(document))


def is_red(path: Path) -> bool:
    with Image.open(path) as written:
        assert (written.format, written.size) == ("JPEG", (512, 384))
        found = written.getpixel((100, 100))
    assert isinstance(found, tuple)
    return all(abs(one - other) < 8 for one, other in zip(found, RED, strict=True))


def test_a_camera_is_tried_and_the_gate_asked(tmp_path: Path, picture: Path) -> None:
    configure(tmp_path, type="command", command=[sys.executable, "-c", FOR_EVER, str(picture)])
    done = run(tmp_path, "test", "porch", "-c", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert is_red(tmp_path / "porch.jpg")
    assert "512×384 pixels of 1024×768, written to porch.jpg" in done.stdout
    assert "this picture would be captioned (first)" in done.stdout
    assert "the next one would be skipped (unchanged)" in done.stdout
    assert done.stderr == "", "progress is for terminals"


def test_nothing_that_lies_where_we_are_is_run(tmp_path: Path, picture: Path) -> None:
    """Somebody may have put it there: cameras write into folders of pictures, and root looks into them."""
    configure(tmp_path, type="command", command=[sys.executable, "-c", FOR_EVER, str(picture)])
    for module in ("json", "signal", "edge_daemon"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('this was run')")
    done = run(tmp_path, "test", "porch", "-c", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert is_red(tmp_path / "porch.jpg")


@pytest.mark.parametrize(
    ("name", "shown"), [("a\x1b]0;b\x07\n.jpg", r"'a\x1b]0;b\x07\n.jpg'"), ("\udcff.jpg", r"'\udcff.jpg'")]
)
def test_the_name_of_a_file_does_nothing_to_a_terminal(tmp_path: Path, name: str, shown: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / name).write_text("no picture")
    configure(tmp_path, type="folder", path=str(tmp_path / "pictures"))
    done = run(tmp_path, "test", "porch", "-c", "config.yaml")
    assert done.stderr == f"edge-daemon: source porch: {shown}: not a picture: it is text\n"


def test_a_folder_is_tried_and_nothing_remembered(tmp_path: Path, picture: Path) -> None:
    configure(tmp_path, type="folder", path=str(picture.parent))
    for _ in range(2):
        done = run(tmp_path, "test", "porch", "-c", "config.yaml", "--out", "seen.jpg", "--json")
        said = json.loads(done.stdout)
        assert is_red(tmp_path / "seen.jpg")
        assert (said["original_width_px"], said["file"], said["gate"]) == (1024, "seen.jpg", None)
        assert said["age_s"] < 100
    assert not (tmp_path / "state").exists()


def test_a_program_that_writes_one_picture_is_judged_by_it(tmp_path: Path, picture: Path) -> None:
    configure(tmp_path, type="command", command=[sys.executable, "-c", ONCE, str(picture)], gate={"change": False})
    done = run(tmp_path, "test", "porch", "-c", "config.yaml", "--json")
    assert json.loads(done.stdout)["gate"]["passes"], done.stderr
    assert json.loads(done.stdout)["gate"]["next"] is None


def test_what_does_not_deliver_ends_with_69_and_says_why(tmp_path: Path) -> None:
    configure(tmp_path, type="v4l2", device=str(tmp_path / "video7"), open_timeout_s=5)
    done = run(tmp_path, "test", "porch", "-c", "config.yaml")
    assert done.returncode == 69
    assert "source porch: " in done.stderr
    assert "video7" in done.stderr
    assert list(tmp_path.glob("*.jpg")) == []


def test_the_empty_folder_the_wrong_name_the_wrong_file_and_the_wrong_key(tmp_path: Path) -> None:
    configure(tmp_path, type="folder", path=str(tmp_path / "state-of-nothing"))
    (tmp_path / "state-of-nothing").mkdir()
    empty = run(tmp_path, "test", "porch", "-c", "config.yaml")
    assert (empty.returncode, "the folder has no pictures" in empty.stderr) == (69, True)
    unknown = run(tmp_path, "test", "garden", "-c", "config.yaml")
    assert (unknown.returncode, "has no source 'garden'; it has: porch" in unknown.stderr) == (2, True)
    assert run(tmp_path, "test", "porch", "-c", "nowhere.yaml").returncode == 78
    configure(tmp_path, type="picamera", camera="first")
    assert run(tmp_path, "test", "porch", "-c", "config.yaml").returncode == 78


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, picture: Path) -> None:
    configure(tmp_path, type="folder", path=str(picture.parent))
    done = run(tmp_path, "test", "porch", "-c", "config.yaml", "--out", "/nowhere/porch.jpg")
    assert done.returncode == 69
    assert "--out /nowhere/porch.jpg: it cannot be written: No such file or directory" in done.stderr


def test_the_list_says_what_there_is_or_what_to_check(tmp_path: Path) -> None:
    listed = json.loads(run(tmp_path, "list", "--json").stdout)
    words = run(tmp_path, "list")
    assert words.returncode == 0
    if listed["cameras"]:
        assert all(camera["yaml"].rstrip() in words.stdout for camera in listed["cameras"])
    else:
        assert "no camera is attached that this user can see" in words.stdout
