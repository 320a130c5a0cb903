"""The part of the configuration that is about sources: where pictures come from, and what is wanted of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Discriminator, Field, SecretStr, Tag, field_validator, model_validator

from edge_daemon import device_classes, shown_address
from edge_daemon.answers import AnswerType, choices_problem
from edge_daemon.choices import CameraFormat, CaptionLength, Decode, Transport
from edge_daemon.gate_config import GateConfig
from edge_daemon.picture_limits import DECODE_MEMORY_MIB, DECODE_TIMEOUT_S, MAX_FILE_MIB, MAX_PIXELS
from edge_daemon.repeats import Repetition
from edge_daemon.sections import Name, Section, absolute
from edge_daemon.units import DAY_S

SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 0.1, DAY_S


class Question(Section):
    """A question that is asked about every picture of a source."""

    id: Name
    ask: Annotated[str, Field(min_length=1, max_length=1000)]
    type: AnswerType = "text"
    """What the words become: `value` of the result. A value that cannot be told for certain is "unknown"."""
    choices: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(max_length=50)] = ()
    for_frames: Annotated[int, Field(ge=1, le=100)] = 1
    """So many pictures in a row have to say the same before the value changes; yes_no and choice only."""
    unit: Annotated[str, Field(min_length=1, max_length=20)] | None = None
    device_class: str | None = None
    """How Home Assistant shows it, such as `door`."""

    @model_validator(mode="after")
    def _choices_can_be_told_apart(self) -> Self:
        if self.type != "choice":
            if self.choices:
                raise ValueError(f"choices work only with type choice; leave them out for type {self.type}")
            return self
        problem = choices_problem(self.choices)
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _what_is_set_fits_the_type(self) -> Self:
        if self.for_frames > 1 and self.type not in ("yes_no", "choice"):
            raise ValueError(f"for_frames works only with types yes_no and choice; leave it out for type {self.type}")
        problem = device_classes.problem(self.type, self.device_class, self.unit)
        if problem:
            raise ValueError(problem)
        return self


class Detection(Section):
    """Something to look for in every picture of a source; in the file also its name alone."""

    id: Name
    what: Annotated[str, Field(min_length=1, max_length=200)]

    @model_validator(mode="before")
    @classmethod
    def _from_a_name(cls, values: Any) -> Any:
        if isinstance(values, str):
            return {"id": re.sub(r"[^A-Za-z0-9_-]+", "-", values).strip("-"), "what": values}
        if not isinstance(values, dict):
            raise ValueError("write what to look for, such as car, in quotes if it looks like a number")
        return values


class ImageConfig(Section):
    """Whether the picture that was captioned is published as well, and how."""

    enabled: bool = False
    quality: Annotated[int, Field(ge=20, le=95)] = 80
    """Of the JPEG; less where it would be too large."""
    max_kib: Annotated[int, Field(ge=1, le=8192)] = 256
    """An image that does not fit in any quality is not published; its topic is emptied of the one before."""
    boxes: bool = False
    """Frame what `detect` has found."""


class AnySource(Section):
    """What all kinds of sources have."""

    enabled: bool = True
    """Whether it is captioned at all; can be changed over MQTT."""
    priority: Annotated[int, Field(ge=1, le=10)] = 1
    """A source of priority 2 gets twice as many turns as one of priority 1 while both have pictures waiting."""
    caption: Literal[CaptionLength, "none"] = "short"
    questions: tuple[Question, ...] = ()
    detect: tuple[Detection, ...] = ()
    image: ImageConfig = ImageConfig()

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        ids = [question.id for question in self.questions] + [thing.id for thing in self.detect]
        twice = next((name for name in ids if ids.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the id {twice!r} is there twice; each question and each detection needs its own id")
        if "caption" in ids:
            raise ValueError("the id 'caption' is reserved for the caption; give the question another one")
        if self.image.boxes and not self.detect:
            raise ValueError("image.boxes draws what detect finds: add detect, or leave image.boxes out")
        if self.caption == "none" and not ids:
            raise ValueError("this source has nothing to do: set caption, or add questions or detect")
        return self


class FolderConfig(AnySource):
    """Pictures that appear in a folder; each is captioned once."""

    type: Literal["folder"]
    path: Annotated[Path, absolute("/srv/pictures")]
    pattern: Annotated[str, Field(min_length=1)] | None = None
    """Which pictures: a name such as `*.jpg`, or a path below the folder such as `porch/*`; None is all."""
    recursive: bool = True
    poll: bool = False
    """For network mounts, where the kernel tells nothing of new files."""
    settle_s: Annotated[float, Field(ge=0, le=600)] = 2.0
    """A file is taken when it has not changed for so long."""
    rescan_s: Annotated[float, Field(ge=1)] = 60.0
    max_pixels: Annotated[int, Field(ge=1)] = MAX_PIXELS
    max_file_mib: Annotated[int, Field(ge=1)] = MAX_FILE_MIB
    decode_memory_mib: Annotated[int, Field(ge=128)] = DECODE_MEMORY_MIB
    """The most that the process that decodes pictures may allocate."""
    decode_timeout_s: Annotated[float, Field(ge=1, le=600)] = DECODE_TIMEOUT_S
    """Processor time for one picture; longer is stuck."""

    @model_validator(mode="after")
    def _pattern_can_match(self) -> Self:
        """Refuse what other programs know and no file here ever matches: it would be a source without pictures."""
        pattern = self.pattern or ""
        if pattern.startswith(("/", "./")):
            raise ValueError("pattern is matched against the path below the folder: begin it without / or ./")
        if "/" in pattern and not self.recursive:
            raise ValueError("a pattern with / in it is for folders below the folder: set recursive to true")
        if pattern.endswith("}"):
            raise ValueError("pattern supports *, ? and [..] but no braces; without pattern all pictures are taken")
        return self

    @property
    def place(self) -> str:
        """Where it is, in words that hold no secret."""
        return str(self.path)


class LiveSource(AnySource):
    """What all cameras have: frames come for ever, and only the newest counts."""

    interval_s: Annotated[float, Field(ge=SHORTEST_INTERVAL_S, le=LONGEST_INTERVAL_S)] = 1.0
    """A frame is looked at so often; whether it is captioned is the gate's decision."""
    max_age_s: Annotated[float, Field(ge=1, le=LONGEST_INTERVAL_S)] = 120.0
    """A frame that has waited longer for its turn is no longer worth a caption."""
    gate: GateConfig = GateConfig()
    repeats: Repetition = "mark"
    """What becomes of a caption with the words of the one before: published, published with `unchanged: true`, or
    not published."""
    open_timeout_s: Annotated[float, Field(ge=1, le=300)] = 15.0
    read_timeout_s: Annotated[float, Field(ge=1, le=300)] = 10.0
    """A camera that delivers no frame for so long is given up and opened again."""


class StreamConfig(LiveSource):
    """A network camera, or whatever else FFmpeg opens."""

    type: Literal["rtsp", "http", "stream"]
    url: SecretStr
    """With or without a login in it; never shown whole."""
    username: str | None = None
    password: SecretStr | None = None
    transport: Transport = "tcp"
    """Of RTSP."""
    decode: Decode = "auto"
    """Which frames are decoded; auto: key frames, and all up to the newest one when somebody asks for a picture or
    when key frames are rare."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: SecretStr) -> SecretStr:
        """What is said of it never repeats it: there may be a login in it."""
        if not re.match(r"[a-z][a-z0-9+.-]*://|/", url.get_secret_value()):
            raise ValueError("this must be an address such as rtsp://camera.local:554/stream1, or the path of a file")
        try:
            parts = urlsplit(url.get_secret_value())
            host, _ = parts.hostname, parts.port  # which is checked when it is looked at
        except ValueError:
            raise ValueError(
                "the host or port is not valid: the port must be 1 to 65535, an IPv6 address needs brackets, and a "
                "login with characters such as / # ? [ is better given as username and password"
            ) from None
        if not host and parts.scheme in ("rtsp", "rtsps", "http", "https", "rtmp"):  # udp://:5000 listens
            raise ValueError("it has no host; write it like rtsp://camera.local:554/stream1")
        return url

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        if self.password is not None and self.username is None:
            raise ValueError("a password needs a username; add username")
        if self.username is not None and "@" in urlsplit(self.url.get_secret_value()).netloc:
            raise ValueError("the url has a login as well; leave one of them out")
        return self

    @property
    def place(self) -> str:
        """The address without login and query."""
        return shown_address.place(urlsplit(self.url.get_secret_value()))

    @property
    def film(self) -> Path | None:
        """The file, if it is one."""
        url = self.url.get_secret_value()
        return Path(unquote(urlsplit(url).path)) if url.startswith("file:") else Path(url) if url[0] == "/" else None


class V4l2Config(LiveSource):
    """A USB camera, or another one that the kernel knows as a video device."""

    type: Literal["v4l2"]
    device: Annotated[Path, absolute("/dev/video0")] = Path("/dev/video0")
    width_px: Annotated[int, Field(ge=16, le=16384)] = 640
    height_px: Annotated[int, Field(ge=16, le=16384)] = 480
    fps: Annotated[float, Field(gt=0, le=240)] | None = None
    """None: what the camera likes."""
    format: CameraFormat = "auto"

    @property
    def place(self) -> str:
        """The device."""
        return str(self.device)


class CommandConfig(LiveSource):
    """A program that writes JPEGs to its standard output, one after the other."""

    type: Literal["command"]
    command: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=100)]
    """The program and its arguments; there is no shell."""

    @property
    def place(self) -> str:
        """The program."""
        return self.command[0]


class PicameraConfig(LiveSource):
    """A camera at the board's camera connector, through picamera2 on the system's Python."""

    type: Literal["picamera"]
    camera: Annotated[int, Field(ge=0, le=63)] = 0
    """Its number, as `rpicam-hello --list-cameras` has it."""
    python: Annotated[Path, absolute("/usr/bin/python3")] = Path("/usr/bin/python3")
    """The interpreter that has picamera2 and libcamera."""
    width_px: Annotated[int, Field(ge=64, le=16384)] = 1024
    height_px: Annotated[int, Field(ge=64, le=16384)] = 768
    fps: Annotated[float, Field(gt=0, le=120)] = 2.0
    rotation: Literal[0, 180] = 0
    hflip: bool = False
    vflip: bool = False
    autofocus: Literal["auto", "continuous", "manual"] | None = None
    """None: the camera's default; cameras without a lens motor have none."""
    lens_position: Annotated[float, Field(ge=0, le=64)] | None = None
    """In dioptres (1/m), for autofocus manual."""
    exposure_us: Annotated[int, Field(ge=1)] | None = None
    gain: Annotated[float, Field(gt=0)] | None = None
    exposure_value: Annotated[float, Field(ge=-8, le=8)] | None = None
    hdr: bool | None = None
    tuning_file: Annotated[Path, absolute("/usr/share/libcamera/ipa/rpi/vc4/imx219.json")] | None = None

    @model_validator(mode="after")
    def _lens(self) -> Self:
        if self.lens_position is not None and self.autofocus != "manual":
            raise ValueError("lens_position works only with autofocus: manual")
        return self

    @property
    def place(self) -> str:
        """Which one."""
        return f"camera {self.camera}"


LiveConfig = StreamConfig | V4l2Config | CommandConfig | PicameraConfig
SourceConfig = FolderConfig | LiveConfig


def _kind(values: Any) -> str | None:
    """Which section it is. The brackets tell pydantic's names of choices from keys of the file."""
    kind = values.get("type") if isinstance(values, dict) else getattr(values, "type", "folder")
    return None if kind is None else f"[{kind}]"


TaggedSource = Annotated[
    Annotated[FolderConfig, Tag("[folder]")]
    | Annotated[PicameraConfig, Tag("[picamera]")]
    | Annotated[V4l2Config, Tag("[v4l2]")]
    | Annotated[StreamConfig, Tag("[rtsp]")]
    | Annotated[StreamConfig, Tag("[http]")]
    | Annotated[StreamConfig, Tag("[stream]")]
    | Annotated[CommandConfig, Tag("[command]")],
    Discriminator(_kind),
]
"""As it stands in the file: `type` says which."""
