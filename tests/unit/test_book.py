"""What is written to the card: counted by the kernel, in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
BUDGET_BYTES = 7_000
"""Written for one caption of a KiB, from the picture taken to the broker's confirmation; the file's own writes,
before the kernel makes whole pages of 4 KiB of them."""
BACKLOG_BUDGET_BYTES = 600
"""Of confirming one result of a backlog, in batches."""
MEASURE = """\
import json, random, sys, uuid
from pathlib import Path
from edge_daemon.messages import FileKey
from edge_daemon.outbox import Outbox

def written():
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["wchar"]), int(lines["write_bytes"])

outbox = Outbox(Path(sys.argv[1]) / "outbox.db")
for number in range(3000):  # files of the last weeks
    outbox._waiting.files["porch", b"2026/11/%06d.jpg" % (number * 7919 % 100_000)] = "1700000000000000000 123456"
outbox._write()
EXAMPLE = json.loads(sys.argv[2])
WORDS = "a the red blue gate door open man with bag walks by car parked near tree light dark small large left".split()

def caption(number):
    words = " ".join(random.choices(WORDS, k=30))
    result = {**EXAMPLE, "id": str(uuid.UUID(int=random.getrandbits(128))), "caption": words}
    outbox.put("porch", [result], FileKey(f"2026/11/26-{number:06}.jpg", 1_700_000_000_000_000_000 + number, 123_456))

def measured(work, count):
    before = written()
    work(count)
    return [(after - was) / count for after, was in zip(written(), before)]

def one_by_one(count):
    for number in range(count):
        caption(number)
        outbox.delete(outbox.head(20))

def backlog(count):
    while len(outbox):
        outbox.delete(outbox.head(20))

def idle(count):
    for _ in range(count):
        outbox.tend()
        outbox.head(20)
        outbox.newest()
        outbox.wanted("porch", [FileKey("2026/11/26-000001.jpg", 1, 1)])

report = {"live": measured(one_by_one, 1500)}
for number in range(1000):
    caption(10_000 + number)
report["backlog"] = measured(backlog, 1000)
report["idle"] = measured(idle, 100)
print(json.dumps(report))
"""


def test_a_caption_costs_the_card_few_bytes_and_rest_costs_none(tmp_path: Path) -> None:
    example = re.findall(r"```json\n(.*?)```", README.read_text(), re.DOTALL)[0]
    argv = [sys.executable, "-c", MEASURE, str(tmp_path), example]
    report = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    print(f"\na caption of {len(example)} bytes, (written, of it by the kernel): {report}")
    assert report["live"][0] <= BUDGET_BYTES
    assert report["backlog"][0] <= BACKLOG_BUDGET_BYTES
    assert report["idle"] == [0, 0]
    if report["live"][1]:  # a real disk, not a tmpfs: whole pages of 4 KiB of the kernel
        assert report["live"][1] <= 2 * BUDGET_BYTES
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6 << 20, "it does not grow with what was sent"
