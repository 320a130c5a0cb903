"""Every error of our own: one base, the whole tree. A leaf: it imports nothing.

EdgeDaemonError
├─ ConfigError          the YAML, a secret or an argument is wrong        → exit 78, never retried
├─ UnavailableError     something needed is not there                     → exit 69
│  └─ ModelError        a model directory that cannot be used
├─ BudgetError          too little memory for the smallest useful cache   → the worker refuses to start
├─ PictureError         this picture only                                 → reported once, left alone
├─ CaptionError         this request only                                 → counted; the worker lives
├─ CommandError         this command over MQTT only                       → answered with its reason
├─ NotPublished         this message only; the next ones are sent
│  ├─ PublishRefused    never: the broker cannot take it                  → set aside
│  └─ PublishDenied     not now: access or a quota                        → sent again later
├─ WireError            a malformed message                               → the peer is treated as dead
└─ ChildError           a child process
   ├─ ChildBootError    died or stayed silent before READY
   ├─ ChildTimeout      a deadline passed; it has been killed
   ├─ ChildDied         ended unexpectedly; the text has the exit code or signal and the last words
   ├─ SourceLost        a camera that cannot be opened or delivers no more; its grabber is ended
   └─ ChildEnded        by our own will: whoever asked it something asks again later
"""


class EdgeDaemonError(Exception):
    """The base of all errors that edge-daemon raises on purpose."""


class ConfigError(EdgeDaemonError):
    """Raised when the configuration cannot be used; the text names file, line, key and value."""


class UnavailableError(EdgeDaemonError):
    """Raised when something that the command needs is not on this machine."""


class ModelError(UnavailableError):
    """Raised when a model directory is missing, incomplete or not of a shape we know."""


class BudgetError(EdgeDaemonError):
    """Raised when the memory budget does not hold the smallest useful KV cache; says how much is missing."""

    def __init__(self, reason: str, needs: dict[str, int] | None = None) -> None:
        super().__init__(reason)
        self.needs = needs or {}
        """What the model takes, as WorkerReady tells it; empty where that is not known."""


class PictureError(EdgeDaemonError):
    """Raised when one picture cannot be read; the picture is reported and left alone."""


class CaptionError(EdgeDaemonError):
    """Raised when one request cannot be answered; the worker goes on."""


class CommandError(EdgeDaemonError):
    """Raised when a command over MQTT cannot be carried out; its text is the answer."""

    def __init__(self, reason: str, transaction: str | int | None = None) -> None:
        super().__init__(reason)
        self.transaction = transaction
        """Of the command, where it had one that could be read."""


class NotPublished(EdgeDaemonError):
    """The base of the two ways in which a broker does not take a message: never, and not now."""


class PublishRefused(NotPublished):
    """Raised when the broker will never take this message; sending it again would only end the connection again."""


class PublishDenied(NotPublished):
    """Raised when the broker does not take this message now, but may when its owner has changed its settings."""

    def __init__(self, why: str, *, everything: bool = False) -> None:
        """`everything` means that it takes no other message either: a quota is used up."""
        super().__init__(why)
        self.everything = everything


class WireError(EdgeDaemonError):
    """Raised when bytes on a pipe are not a message; its sender is then treated as dead."""


class ChildError(EdgeDaemonError):
    """Raised when a child process failed; whoever started it decides what follows."""


class ChildBootError(ChildError):
    """Raised when a child died or stayed silent before it said READY."""


class ChildTimeout(ChildError):
    """Raised when a child missed a deadline; it has been killed."""


class ChildDied(ChildError):
    """Raised when a child ended unexpectedly; the text says how, with its last words."""

    def __init__(self, why: str, returncode: int | None = None) -> None:
        """`returncode` is what it ended with by itself; None where we ended it."""
        super().__init__(why)
        self.returncode = returncode


class SourceLost(ChildError):
    """Raised when a camera cannot be opened or delivers no more; its grabber said why, and is ended."""


class ChildEnded(ChildError):
    """Raised when a child was ended on purpose, or is not to be asked now: nobody is to blame, ask again later."""
