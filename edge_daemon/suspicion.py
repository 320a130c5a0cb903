"""Which message ends our connections, and whether they end again and again. Pure: told what happens, with the time.

A broker that gets a message it does not take, too large or not allowed, hangs up without a word (MQTT 3.1.1 has none).
Sent again after every reconnect, such a message would stop everything for ever. So after a hang-up messages go
one at a time, and the one that was alone on its way at STRIKES hang-ups in a row is guilty, if others arrived.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 20
"""Messages on their way at once, on a good day; as many as paho's client allows itself."""
STRIKES = 3
QUICK_S = 10.0
"""A hang-up so long after the message was sent has another reason."""
CAREFUL_MESSAGES = 100
"""More than can have been on their way: WINDOW, and the retained state of some sources."""
SHORT_S = 60.0
"""A connection that ended within so long was short; longer than the longest wait before the next one."""
LONGEST_DELAY_S = 30
FLAPS = 4
"""Short connections in a row, with no attempt that failed between them: somebody throws us out."""


@dataclass
class Suspicion:
    """What is known so far."""

    short_ones: int = 0
    """Short connections in a row, however they ended."""
    _thrown_out: int = 0
    """Those of them that the broker ended."""
    _careful: int = 0
    _connected_at_s: float = 0.0
    _sent_at_s: float = 0.0
    _suspect: str = ""
    _strikes: int = 0
    _arrived: bool = False
    """Whether anything has arrived in this connection."""

    @property
    def window(self) -> int:
        """How many messages may be on their way at once."""
        return 1 if self._careful else WINDOW

    @property
    def delay_s(self) -> int:
        """How long to wait before the next connection, at first: the longer the more often it ended."""
        return min(1 << max(0, self.short_ones - 1), LONGEST_DELAY_S)

    @property
    def flapping(self) -> bool:
        """Whether the broker ends connections again and again."""
        return self._thrown_out >= FLAPS

    @property
    def unwelcome(self) -> str:
        """The topic at whose message every connection ends before anything else has arrived, if that is so."""
        return self._suspect if self._strikes >= STRIKES else ""

    def connected(self, now_s: float) -> None:
        """A broker has taken us."""
        self._connected_at_s = now_s
        self._arrived = False

    def sent(self, now_s: float) -> None:
        """A message went out."""
        self._sent_at_s = now_s

    def confirmed(self, topic: str) -> None:
        """A message arrived."""
        self._arrived = True
        self._careful = max(0, self._careful - 1)
        if topic == self._suspect:
            self._suspect, self._strikes = "", 0

    def unreachable(self) -> None:
        """An attempt to connect failed: this is a broker that is away, not one that throws us out."""
        self.short_ones = self._thrown_out = 0

    def lost(self, now_s: float) -> None:
        """The connection ended, and not by the broker's will: silence, a cut network."""
        self.short_ones = self.short_ones + 1 if now_s - self._connected_at_s < SHORT_S else 0
        self._thrown_out = 0

    def hung_up(self, on_their_way: list[str], now_s: float) -> str | None:
        """The broker ended the connection while these topics' messages were on their way; the guilty one, if known."""
        thrown_out = self._thrown_out
        self.lost(now_s)
        self._thrown_out = thrown_out + 1 if self.short_ones else 0
        alone = self._careful and len(on_their_way) == 1 and now_s - self._sent_at_s < QUICK_S
        self._careful = CAREFUL_MESSAGES if on_their_way else self._careful
        if not alone:
            return None
        if on_their_way[0] != self._suspect:
            self._suspect, self._strikes = on_their_way[0], 0
        self._strikes += 1
        if self._strikes < STRIKES or not self._arrived:
            return None
        self._suspect, self._strikes, self.short_ones, self._thrown_out = "", 0, 0, 0
        return on_their_way[0]
