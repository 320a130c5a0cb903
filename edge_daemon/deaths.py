"""What a worker died of, in words for who owns the board: with what the kernel counted and what was last read."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from edge_daemon.child import exit_in_words
from edge_daemon.memory import CGROUP_RESERVE_BYTES, RESERVE_BYTES
from edge_daemon.readings import Files, Kills, Reading, board
from edge_daemon.units import MIB

COMES_AGAIN = (-signal.SIGILL,)
"""Exit statuses. A processor that lacks an instruction lacks it the next time as well."""
ADVICE: dict[int, str] = {
    signal.SIGILL: "the processor of this board ({board}) lacks an instruction that an installed library uses. "
    "On a Raspberry Pi 4 torch 2.10 does not run: install edge-daemon again, or in its virtual environment: "
    "pip install torch==2.9.1",
    signal.SIGSEGV: "a fault in a library, in the board's memory or in its power supply. If it happens again: "
    "edge-daemon model verify, then install edge-daemon again",
    signal.SIGBUS: "the model's file could not be read: look for errors of the SD card in the output of dmesg, "
    "then: edge-daemon model verify",
    signal.SIGABRT: "a library gave up, usually because memory ran out",
}


@dataclass
class Witness:
    """Sees the worker's memory while it lives."""

    files: Files = field(default_factory=Files)
    last: Reading | None = None
    _kills: Kills = field(default_factory=lambda: Kills(None, None))
    """At the reading before the last: what was killed earlier was not this worker. One that is just being killed may
    still look alive at the last."""
    _kills_at_last: Kills = field(default_factory=lambda: Kills(None, None))

    def begin(self) -> None:
        """A worker starts."""
        self.last = None
        self._kills = self._kills_at_last = self.files.kills()

    def note(self, reading: Reading) -> None:
        """It lives, and holds so much."""
        if reading.worker_bytes is not None:
            self.last = reading
            self._kills, self._kills_at_last = self._kills_at_last, self.files.kills()

    def killed_by_kernel(self, returncode: int | None) -> bool | None:
        """Whether it was killed for want of memory; None when nobody knows."""
        if returncode != -signal.SIGKILL:
            return False
        return self.files.kills().more_than(self._kills)

    def explain(self, said: str, returncode: int | None) -> str:
        """What happened, and what to do. `said` is the error that the daemon has of it."""
        numbers = f" ({_numbers(self.last)})" if self.last else ""
        perhaps = exit_in_words(returncode)  # as it is said by who has not seen the kernel's counters
        match self.killed_by_kernel(returncode):
            case True:
                return said.replace(perhaps, f"was ended by SIGKILL: the kernel was out of memory{numbers}")
            case None:
                return f"{said}{numbers}"
        if returncode == -signal.SIGKILL:
            other = "not by the kernel, whose count of processes killed for memory has not risen"
            return said.replace(perhaps, f"was ended by SIGKILL, {other}{_short(self.last)}")
        advice = ADVICE.get(-(returncode or 0))
        return f"{said}: {advice.format(board=board(self.files.proc))}" if advice else said


def _short(last: Reading | None) -> str:
    """The numbers, where they speak against the counter: earlyoom and systemd-oomd kill, too, and nobody counts it."""
    scarce = last is not None and (
        last.available_bytes < RESERVE_BYTES
        or (last.level is not None and last.level.room_bytes < CGROUP_RESERVE_BYTES)
    )
    return f" ({_numbers(last)}: perhaps by a program that watches memory)" if last and scarce else ""


def _numbers(last: Reading) -> str:
    words = [f"the worker used {(last.worker_bytes or 0) / MIB:.0f} MiB", f"the board {last.available_bytes / MIB:.0f}"]
    if last.level is not None:
        words.append(f"its cgroup {last.level.room_bytes / MIB:.0f} of {last.level.limit_bytes / MIB:.0f} left")
    return ", ".join(words)
