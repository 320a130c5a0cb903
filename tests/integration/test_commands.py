"""Commands over MQTT to the real service: what each does, what is refused, and clients that we did not write.

One service for all tests here; each leaves it as it found it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import psutil
import pytest
import yaml

from edge_daemon.controls import AT_ONCE, PER_MINUTE
from edge_daemon.demo.broker import Broker, find_mosquitto
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.inquiries import MOST_PICTURES
from edge_daemon.slots import LONGEST_LINE
from edge_daemon.token_bucket import TokenBucket
from tests.conftest import missing
from tests.integration.service import BASE, Service, Subscriber, running, subscribed, wait_for

ROOT = Path(__file__).parents[2]
RESULT_SCHEMA = json.loads((ROOT / "configs/result.schema.json").read_text())
DOCUMENT_KEYS = {"seq", "replayed"}
"""What a result has only when it is published as one."""
LATER = 4_000_000_000
"""When the newest file was changed."""


@dataclass
class Line:
    """A broker, the service, somebody who hears everything, and two pictures with what is on them."""

    broker: Broker
    service: Service
    heard: Subscriber
    newest: tuple[Path, str]
    """In the inbox."""
    other: tuple[Path, str]
    """Nowhere in the inbox."""
    pace: TokenBucket = field(default_factory=lambda: TokenBucket(AT_ONCE // 2, PER_MINUTE))
    """As fast as commands are taken: the rest is for those that are sent in another way."""

    def send(self, topic: str, *options: str) -> None:
        """mosquitto_pub to a topic below the node."""
        while wait_s := self.pace.take(time.monotonic()):
            time.sleep(wait_s)
        argv = ["mosquitto_pub", "-p", str(self.broker.port), "-t", f"{BASE}/{topic}", *(options or ("-n",))]
        subprocess.run(argv, check=True)

    def ask(self, command: str, **keys: Any) -> dict[str, Any]:
        """The answer to a request, found by its transaction."""
        transaction = time.monotonic_ns()
        self.send(f"request/{command}", "-m", json.dumps({**keys, "transaction": transaction}))
        return self.answer(f"response/{command}", lambda a: a.get("transaction") == transaction)

    def answer(self, topic: str, right: Callable[[dict[str, Any]], bool] = bool, after: int = 0) -> dict[str, Any]:
        """The last message of a topic that is right, of those behind the first `after`."""

        def probe() -> dict[str, Any] | None:
            return next((a for a in reversed(self.heard.results(topic)[after:]) if right(a)), None)

        return wait_for(f"the answer on {topic}", probe)

    def data(self, command: str, **keys: Any) -> dict[str, Any]:
        """The data of the answer to a request that is carried out."""
        answer = self.ask(command, **keys)
        assert answer["status"] == "ok", answer
        found: dict[str, Any] = answer["data"]
        return found

    def refusal(self, command: str, **keys: Any) -> str:
        """Why a request is not carried out."""
        answer = self.ask(command, **keys)
        assert answer["status"] == "error", answer
        return str(answer["error"])


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    if find_mosquitto() is None or shutil.which("mosquitto_rr") is None:
        missing("mosquitto")
    directory = tmp_path_factory.mktemp("line")
    (directory / "broker").mkdir()
    newest, other = sample_pictures(directory / "samples", 2, seed=6)
    questions = [{"id": "count", "ask": "How many shapes are there?", "type": "number"}]
    with Broker(directory / "broker") as broker, subscribed(broker.port) as heard:
        service = Service(directory, broker.port, source={"questions": questions, "detect": ["circle shape"]})
        inbox = service.inbox / newest[0].name
        shutil.copy(newest[0], inbox)
        os.utime(inbox, (LATER, LATER))
        with running(service):
            wait_for("it is captioned", lambda: heard.results("inbox/answer/count"))
            wait_for("health says ok", lambda: (heard.last_health() or {}).get("state") == "ok")
            yield Line(broker, service, heard, (inbox, newest[1]), other)
            assert service.end() == 0


def test_the_current_picture_of_a_source_is_captioned(line: Line) -> None:
    results = len(line.heard.results("inbox/event"))
    made = line.data("caption", source="inbox")
    assert (made["caption"], made["file"], made["trigger"]) == (line.newest[1], line.newest[0].name, "request")
    schema = {**RESULT_SCHEMA, "required": [k for k in RESULT_SCHEMA["required"] if k not in DOCUMENT_KEYS]}
    jsonschema.validate(made, schema)
    assert line.data("caption", length="normal")["length"] == "normal"
    assert len(line.heard.results("inbox/event")) == results, "an answer is no result of the source"


def test_a_picture_in_the_payload_is_captioned_as_it_is_and_in_base64(line: Line) -> None:
    path, truth = line.other
    before = len(line.heard.results("response/caption"))
    line.send("request/caption", "-f", str(path))
    raw = line.answer("response/caption", after=before)["data"]
    assert raw["caption"] == truth
    assert not {"source", "file"} & raw.keys()
    packed = base64.b64encode(path.read_bytes()).decode()
    assert line.data("caption", picture=packed)["caption"] == truth


def test_a_picture_that_is_broken_is_refused_with_the_decoders_reason(line: Line) -> None:
    path, _ = line.other
    cut = base64.b64encode(path.read_bytes()[:300]).decode()
    assert "damaged or incomplete" in line.refusal("caption", picture=cut)
    assert "neither a JPEG nor a PNG" in line.refusal("caption", picture=base64.b64encode(b"hello").decode())


def test_a_question_and_a_search_about_a_picture(line: Line) -> None:
    made = line.data("ask", question="How many shapes are there?", type="number")
    assert made["value"] == int(made["answer"].strip("."))
    assert line.data("ask", question="Is there a banana?")["value"]
    found = line.data("detect", what="shape")
    assert all(0 <= box["x_min"] < box["x_max"] <= 1 for box in found["objects"])
    assert found["target"] == "shape"


def test_a_trigger_makes_results_of_the_source(line: Line) -> None:
    before, answers = line.heard.results("inbox/event"), len(line.heard.results("response/caption"))
    line.send("inbox/trigger", "-m", "whatever")
    made = wait_for("results", lambda: r if len(r := line.heard.results("inbox/event")) > len(before) + 1 else None)
    fresh = made[len(before) :]
    assert [(r["task"], r["trigger"]) for r in fresh[:2]] == [("caption", "request"), ("count", "request")]
    assert not {r["id"] for r in fresh} & {r["id"] for r in before}
    assert line.answer("response/caption", after=answers)["data"]["id"] == fresh[0]["id"]
    retained = line.heard.results("inbox/caption")[-1]
    assert retained["id"] == fresh[0]["id"]


def test_the_question_in_a_topic_of_its_own_stays_with_its_answer(line: Line) -> None:
    before = len(line.heard.results("inbox/question/answer"))
    line.send("inbox/question/set", "-m", "How many shapes are there?")
    made = line.answer("inbox/question/answer", after=before)
    assert made["question"] == "How many shapes are there?"
    with subscribed(line.broker.port) as later:
        state = wait_for(
            "state and answer", lambda: later.on("inbox/question/answer") and later.on("inbox/question/state")
        )
    assert [(m.payload, m.retain) for m in state] == [(b"How many shapes are there?", True)]


def test_a_question_that_is_refused_does_not_stand_beside_an_earlier_answer(line: Line) -> None:
    line.send("inbox/enabled/set", "-m", "OFF")
    wait_for("it is off", lambda: [m.payload for m in line.heard.on("inbox/enabled/state")][-1:] == [b"OFF"])
    before = len(line.heard.results("inbox/question/answer"))
    line.send("inbox/question/set", "-m", "Is there a star?")
    made = line.answer("inbox/question/answer", after=before)
    line.send("inbox/enabled/set", "-m", "ON")
    assert (made["question"], made["answer"], made["value"]) == ("Is there a star?", "", "unknown")
    assert "switched off" in made["error"]
    shown = discovered(line)["components"]["inbox.question.answer.sensor"]["value_template"]
    assert jinja2.Environment().from_string(shown).render(value_json=made) == "None"
    wait_for("it is on", lambda: line.heard.on("inbox/enabled/state")[-1].payload == b"ON")


def drop(line: Line, name: str) -> Path:
    """A new picture in the inbox; older than the newest."""
    path = line.service.inbox / name
    shutil.copy(line.other[0], path)
    return path


def captioned(line: Line, path: Path) -> bool:
    return any(result["file"] == path.name for result in line.heard.results("inbox/caption"))


def left_alone(line: Line, path: Path) -> bool:
    """Whether a picture that the daemon has is not captioned, though the worker had time for it."""
    before = state_of_source(line)["problems"]
    path.with_name(f"{path.name}-next.jpg").write_bytes(b"\xff\xd8 no picture")
    wait_for("what came after it was read", lambda: state_of_source(line)["problems"] > before)
    for _ in range(2):  # never two requests in a row while another picture waits
        line.data("caption", picture=base64.b64encode(line.other[0].read_bytes()).decode())
    return not captioned(line, path)


def state_of_source(line: Line) -> dict[str, Any]:
    source: dict[str, Any] = line.data("health_check")["sources"]["inbox"]
    return source


def test_nothing_is_captioned_in_a_pause_but_what_is_asked_for(line: Line) -> None:
    until = line.data("pause", minutes=5)["paused_until"]["inbox"]
    assert until.endswith("Z")
    path = drop(line, "paused.jpg")
    assert line.data("caption")["caption"] == line.newest[1]
    assert left_alone(line, path)
    assert state_of_source(line)["paused_until"]
    assert line.data("resume") == {"paused_until": {"inbox": ""}}
    wait_for("it goes on", lambda: captioned(line, path))


def test_a_pause_is_over_by_itself(line: Line) -> None:
    line.data("pause", source="inbox")
    assert state_of_source(line)["paused_until"] == "resumed"
    path = drop(line, "shortly.jpg")
    line.data("pause", minutes=0.01)
    wait_for("it goes on", lambda: captioned(line, path))


def test_a_source_that_is_switched_off_is_left_alone_until_it_is_switched_on(line: Line) -> None:
    line.send("inbox/enabled/set", "-m", "OFF")
    wait_for("its state", lambda: line.heard.on("inbox/enabled/state")[-1].payload == b"OFF")
    path = drop(line, "off.jpg")
    assert "switched off" in line.refusal("caption", source="inbox")
    assert left_alone(line, path)
    assert line.heard.on("inbox/availability")[-1].payload == b"online"
    line.send("inbox/enabled/set", "-m", "ON")
    wait_for("its state", lambda: line.heard.on("inbox/enabled/state")[-1].payload == b"ON")
    wait_for("it goes on", lambda: captioned(line, path))


def test_what_is_set_holds_at_once_and_is_told_to_home_assistant(line: Line) -> None:
    asked = [{"id": "colour", "ask": "What colour is the background?", "type": "text"}]
    made = line.data("set", source="inbox", length="normal", questions=asked)
    assert (made["length"], made["persisted"], made["restart_required"]) == ("normal", True, False)
    path = drop(line, "set.jpg")
    wait_for("the new question", lambda: line.heard.results("inbox/answer/colour"))
    last = line.heard.results("inbox/caption")[-1]
    assert (last["file"], last["length"]) == (path.name, "normal")
    kept = json.loads((line.service.directory / "state/settings.json").read_text())
    assert kept["inbox"]["questions"] == [{"id": "colour", "ask": "What colour is the background?"}]
    wait_for("Home Assistant", lambda: "inbox.answer.colour.sensor" in discovered(line)["components"])
    assert "inbox.answer.count.sensor" not in discovered(line)["components"]
    questions = [{"id": "count", "ask": "How many shapes are there?", "type": "number"}]
    line.data("set", source="inbox", length="short", questions=questions)


def test_what_cannot_be_set_is_refused_and_changes_nothing(line: Line) -> None:
    line.data("set", source="inbox", enabled=True)
    kept = line.service.directory / "state/settings.json"
    before = kept.read_bytes()
    assert "a folder has no interval" in line.refusal("set", source="inbox", interval_s=5)
    twice = [{"id": "circle-shape", "ask": "Is there a circle?"}]
    assert "the id 'circle-shape' is there twice" in line.refusal("set", source="inbox", questions=twice)
    refusal = line.refusal("set", source="inbox", length="long")
    assert "demo-shapes has no 'long' caption; it has: short, normal" in refusal
    assert kept.read_bytes() == before


def test_the_configuration_is_read_again(line: Line) -> None:
    path = line.service.config
    original = path.read_text()
    values = yaml.safe_load(original)
    line.data("set", source="inbox", length="short")
    values["sources"]["inbox"]["caption"] = "normal"
    values["sources"]["inbox"]["priority"] = 2
    values["sources"]["inbox"]["rescan_s"] = 77
    values["log_level"] = "debug"
    line.data("set", source="inbox", length="short")
    try:
        path.write_text(yaml.safe_dump(values))
        outcome = line.data("reload")
        assert outcome["applied"] == ["log_level", "sources.inbox.priority"]
        assert outcome["overridden"] == ["sources.inbox.caption"]
        assert outcome["needs_restart"] == ["sources.inbox.rescan_s"]
        before = line.service.log().count("DEBUG")
        assert line.data("caption")["length"] == "short", "what was set by a command stays"
        assert line.service.log().count("DEBUG") > before
        path.write_text("sources: 5")
        assert "so nothing was changed" in line.refusal("reload")
        path.write_text(original.replace("settle_s:", "caption: long\n    settle_s:"))
        assert "nothing was changed: sources.inbox.caption: demo-shapes has no 'long' caption" in line.refusal("reload")
    finally:
        path.write_text(original)
    outcome = line.data("reload")
    assert outcome["applied"] == ["log_level", "sources.inbox.priority", "sources.inbox.caption"]
    assert outcome["overridden"] == []


def test_a_hangup_reads_it_again_and_survives_a_wrong_one(line: Line) -> None:
    """As `systemctl reload` does."""
    path, service = line.service.config, line.service
    original = path.read_text()
    assert service.process is not None
    try:
        for text, words in (
            (original.replace("log_level: info", "log_level: debug"), "these keys are now in effect: log_level"),
            ("sources: 5", "the configuration is wrong, so nothing was changed"),
            (original, "these keys are now in effect: log_level"),
        ):
            path.write_text(text)
            before = service.log().count(words)
            service.process.send_signal(signal.SIGHUP)
            wait_for(words, lambda before=before, words=words: service.log().count(words) > before)  # type: ignore[misc]
    finally:
        path.write_text(original)


def test_figures_and_health(line: Line) -> None:
    health = line.data("health_check")
    assert health["state"] in ("ok", "degraded")
    figures = line.data("stats")
    assert figures["sources"]["inbox"]["captioned"] == health["sources"]["inbox"]["captioned"] > 0
    assert figures["worker"]["rss_bytes"] > figures["rss_bytes"] > 0


def test_the_worker_is_replaced_on_request(line: Line) -> None:
    before = line.service.child("edge_daemon.worker")
    assert before is not None
    assert line.data("restart_worker")["model"] == "demo-shapes"
    after = line.service.child("edge_daemon.worker")
    assert after is not None
    assert after.pid != before.pid
    assert line.data("caption")["caption"] == line.newest[1]
    assert line.data("health_check")["worker"]["restarts"] == 0


def test_the_log_tells_more_on_request(line: Line) -> None:
    before = line.service.log().count("DEBUG")
    line.data("log_level", level="debug")
    line.data("caption")
    assert line.service.log().count("DEBUG") > before
    line.data("log_level", level="info")


@pytest.mark.parametrize(
    ("command", "payload", "reason"),
    [
        ("captoin", b"", "unknown command 'captoin'; did you mean 'caption'?"),
        ("caption", b'{"source": "attic"}', "source: unknown source 'attic'"),
        ("caption", b'{"source": ', "not valid JSON"),
        ("caption", b"\xff\xfe", "neither UTF-8 text nor a JPEG or PNG"),
        ("ask", b"", "question: this key is required"),
        ("pause", b"soon", "minutes: this must be a number"),
    ],
)
def test_a_bad_request_gets_its_reason(line: Line, command: str, payload: bytes, reason: str) -> None:
    before = len(line.heard.results(f"response/{command}"))
    topic = f"{BASE}/request/{command}"
    how = "-s" if payload else "-n"
    subprocess.run(["mosquitto_pub", "-p", str(line.broker.port), "-t", topic, how], input=payload, check=True)
    answer = line.answer(f"response/{command}", after=before)
    assert reason in answer["error"]
    assert answer["status"] == "error"


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("inbox/enable/set", "ON", "unknown topic 'enable/set' of a source; did you mean 'enabled/set'?"),
        ("inbx/enabled/set", "ON", "source: unknown source 'inbx'; did you mean 'inbox'?"),
        ("inbox/enabled/set", "perhaps", "enabled: this must be true or false (on its own topic ON or OFF)"),
        ("inbox/interval/set", "5", "a folder has no interval"),
    ],
)
def test_a_wrong_setting_gets_its_reason(line: Line, topic: str, payload: str, reason: str) -> None:
    before = len(line.heard.results("response/set"))
    line.send(topic, "-m", payload)
    assert reason in line.answer("response/set", after=before)["error"]


def test_our_own_words_are_no_commands(line: Line) -> None:
    before = len(line.heard.on("response/caption"))
    line.send("request/trigger")
    line.answer("response/trigger")
    line.data("stats")
    assert len(line.heard.on("response/caption")) == before


def test_a_retained_command_a_stop_and_a_second_life(line: Line) -> None:
    """A service of its own: what the broker repeats is refused, what waits is told of the end, what was set stays."""
    directory, base = line.service.directory / "second", "edge-daemon/second"
    directory.mkdir()
    source = {"caption": "none", "questions": [{"id": "count", "ask": "How many shapes are there?"}]}
    service = Service(directory, line.broker.port, model={"stop_grace_s": 0.5}, source=source)
    service.config.write_text(service.config.read_text().replace("node: test", "node: second"))
    shutil.copy(line.other[0], service.inbox)
    publish = ["mosquitto_pub", "-p", str(line.broker.port), "-t"]
    subprocess.run([*publish, f"{base}/request/restart_worker", "-r", "-m", '{"transaction": "kept"}'], check=True)
    heard = directory / "heard"
    hear = ["mosquitto_sub", "-p", str(line.broker.port), "-t", f"{base}/response/+"]
    with heard.open("wb") as file:
        subscriber = subprocess.Popen(hear, stdout=file)

    def answers(count: int) -> list[dict[str, Any]]:
        found = wait_for(f"{count} answers", lambda: r if len(r := heard.read_bytes().splitlines()) >= count else None)
        return [json.loads(answer) for answer in found]

    try:
        with running(service):
            assert "a command must not be retained" in answers(1)[0]["error"]
            subprocess.run([*publish, f"{base}/request/caption", "-n"], check=True)
            assert answers(2)[1]["data"]["length"] == "short", "whoever asks for one gets one"
            longer = '{"source": "inbox", "length": "normal"}'
            subprocess.run([*publish, f"{base}/request/set", "-m", longer], check=True)
            assert answers(3)[2]["status"] == "ok"
            worker = wait_for("a worker", lambda: service.child("edge_daemon.worker"))
            subprocess.run([*publish, f"{base}/request/caption", "-n"], check=True)
            assert answers(4)[3]["data"]["length"] == "normal"
            worker.suspend()
            for _ in range(2):
                subprocess.run([*publish, f"{base}/request/caption", "-n"], check=True)
            wait_for("they wait", lambda: service.log().count("request/caption") == 4)
            assert service.end() == 0
            assert [answer["error"] for answer in answers(6)[4:]] == ["the service stops"] * 2
            watched = service.log().count("watching with")
            service.start()
            wait_for("it lives", lambda: service.log().count("watching with") > watched)
            subprocess.run([*publish, f"{base}/request/caption", "-n"], check=True)
            assert answers(8)[-1]["data"]["length"] == "normal"
    finally:
        subscriber.terminate()
        subscriber.wait()


def test_a_few_requests_wait_and_more_are_refused(line: Line) -> None:
    """The worker is made to wait, and then goes on."""
    worker = line.service.child("edge_daemon.worker")
    assert worker is not None
    before = len(line.heard.results("response/caption"))
    worker.suspend()
    try:
        for _ in range(LONGEST_LINE + 1):
            line.send("request/caption")
        assert f"too many requests are waiting ({LONGEST_LINE} of {LONGEST_LINE})" in line.refusal("caption")
    finally:
        worker.resume()
    wait_for("the others", lambda: len(line.heard.results("response/caption")) > before + LONGEST_LINE + 1)
    answers = line.heard.results("response/caption")[before:]
    assert [answer["status"] for answer in answers] == ["error", *["ok"] * (LONGEST_LINE + 1)]


def test_few_pictures_wait_because_they_are_large(line: Line) -> None:
    worker = line.service.child("edge_daemon.worker")
    assert worker is not None
    packed = base64.b64encode(line.other[0].read_bytes()).decode()
    before = len(line.heard.results("response/ask"))
    worker.suspend()
    try:
        for _ in range(MOST_PICTURES):
            line.send("request/ask", "-m", json.dumps({"question": "How many shapes are there?", "picture": packed}))
        why = line.refusal("ask", question="How many shapes are there?", picture=packed)
        assert f"too many requests with a picture are waiting ({MOST_PICTURES} of {MOST_PICTURES})" in why
    finally:
        worker.resume()
    wait_for("the others", lambda: len(line.heard.results("response/ask")) > before + MOST_PICTURES)
    assert line.data("caption", picture=packed)["caption"] == line.other[1]


# ---- clients that we did not write --------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5", "311"])
def test_mosquitto_rr_asks_and_is_answered(line: Line, version: str) -> None:
    """With MQTT 5 on a topic of its own, with 3.1.1 on ours."""
    own = f"somebody/{version}" if version == "5" else f"{BASE}/response/caption"
    argv = ["mosquitto_rr", "-V", version, "-p", str(line.broker.port), "-t", f"{BASE}/request/caption"]
    done = subprocess.run([*argv, "-e", own, "-W", "60", "-n"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["data"]["caption"] == line.newest[1]


def test_an_answer_is_never_sent_where_the_daemon_speaks_for_itself(line: Line, tmp_path: Path) -> None:
    """Neither below its own node nor to Home Assistant, which would believe it."""
    before = len(line.heard.on("inbox/caption/text"))
    hear = ["mosquitto_sub", "-p", str(line.broker.port), "-t", "homeassistant/device/#", "-F", "%t"]
    pub = ["mosquitto_pub", "-V", "5", "-p", str(line.broker.port), "-t", f"{BASE}/request/stats", "-n"]
    with (tmp_path / "heard").open("wb") as file, subprocess.Popen(hear, stdout=file) as listener:
        wait_for("it listens", (tmp_path / "heard").read_text)
        for topic in ("homeassistant/device/other/config", f"{BASE}/inbox/caption/text"):
            answers = len(line.heard.results("response/stats"))
            subprocess.run([*pub, "-D", "publish", "response-topic", topic], check=True)
            line.answer("response/stats", after=answers)
        line.data("health_check")
        listener.terminate()
    assert "other" not in (tmp_path / "heard").read_text()
    assert len(line.heard.on("inbox/caption/text")) == before


def test_what_home_assistant_is_told_fits_what_is_published(line: Line) -> None:
    """Every template is filled in with what the broker keeps on its topic."""
    line.send("inbox/question/set", "-m", "How many shapes are there?")
    wait_for("an answer", lambda: line.heard.on("inbox/question/answer"))
    line.send("inbox/trigger")  # a question that was taken away and came back has no answer yet
    wait_for("the question's", lambda: line.heard.on("inbox/answer/count")[-1].payload)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    components = discovered(line)["components"]
    assert {"inbox.caption.sensor", "inbox.answer.circle-shape.sensor", "memory.sensor"} <= components.keys()
    for key, component in components.items():
        if "value_template" not in component:
            continue
        payload = line.heard.on(component["state_topic"].removeprefix(f"{BASE}/"))[-1].payload.decode()
        value = json.loads(payload) if payload.startswith("{") else None
        said = environment.from_string(component["value_template"]).render(value_json=value, value=payload)
        assert said, key
    templates = {key: c["value_template"] for key, c in components.items() if "value_template" in c}
    health = {"value_json": line.heard.last_health()}
    assert environment.from_string(templates["state.sensor"]).render(health) == "ok"
    assert int(environment.from_string(templates["memory.sensor"]).render(health)) > 100


def discovered(line: Line) -> dict[str, Any]:
    """The discovery message that the broker keeps."""
    argv = ["mosquitto_sub", "-p", str(line.broker.port), "-t", "homeassistant/device/+/config", "-C", "1", "-W", "20"]
    found: dict[str, Any] = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return found


# ---- the README -------------------------------------------------------------------------------------------


def shell_lines(tool: str) -> list[str]:
    """The lines of the README that begin with a tool."""
    return re.findall(rf"^{tool} .*$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_one_liners_of_the_readme(line: Line, tmp_path: Path) -> None:
    """Word for word; where the broker is, the tools read from their own files, as they do for anybody."""
    directory = tmp_path / "porch"
    directory.mkdir()
    for tool in ("mosquitto_sub", "mosquitto_pub", "mosquitto_rr"):
        (tmp_path / tool).write_text(f"-p {line.broker.port}\n")
    shutil.copy(line.other[0], tmp_path / "picture.jpg")
    service = Service(directory, line.broker.port)
    service.config.write_text(service.config.read_text().replace("node: test", "node: porch-pi"))
    shutil.copy(line.newest[0], service.inbox / "picture.png")
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    shell: dict[str, Any] = {"shell": True, "cwd": tmp_path, "env": environment}
    everything, captions, words_alone = (tmp_path / f"heard-{number}" for number in (0, 1, 2))
    subs = []
    for number, words in enumerate(shell_lines("mosquitto_sub")):
        with (tmp_path / f"heard-{number}").open("wb") as file:
            subs.append(subprocess.Popen(words, stdout=file, **shell))

    def good() -> int:
        return len(re.findall(rb"porch-pi/response/.*.status.: .ok.", everything.read_bytes()))

    try:
        with running(service):
            wait_for("a caption", lambda: b"porch-pi/inbox/caption/text A" in everything.read_bytes())
            requests = shell_lines("mosquitto_rr")
            for words in requests:
                done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, **shell)
                assert json.loads(done.stdout)["status"] == "ok", words
            for number, words in enumerate(shell_lines("mosquitto_pub"), len(requests) + 1):
                subprocess.run(words, check=True, timeout=60, **shell)
                wait_for(words, partial(lambda answers: good() == answers, number))
            assert service.end() == 0
    finally:
        for sub in subs:
            end_mosquitto_sub(sub)
    assert not re.findall(rb"porch-pi/response/.*.status.: .error.", everything.read_bytes())
    for heard in (captions, words_alone):
        assert line.newest[1].encode() in heard.read_bytes()


def end_mosquitto_sub(shell: subprocess.Popen[bytes]) -> None:
    """End it alone: what reads from it then comes to its end by itself."""
    process = psutil.Process(shell.pid)
    for one in [process, *process.children()]:
        with suppress(psutil.NoSuchProcess):  # what stands behind it in the pipe may end between two looks
            if one.name() == "mosquitto_sub":
                one.terminate()
    shell.wait(60)


# ---- last, because it leaves nothing for others -----------------------------------------------------------------


def test_a_flood_is_answered_in_measure_and_hurts_nothing(line: Line) -> None:
    count, start_s = 5 * AT_ONCE, time.monotonic()
    before = len(line.heard.results("response/stats"))
    flood = b"\n".join(b'{"transaction": %d}' % number for number in range(count))
    pub = ["mosquitto_pub", "-p", str(line.broker.port), "-t", f"{BASE}/request/stats", "-l"]
    subprocess.run(pub, input=flood, check=True)
    wait_for("it has heard all", lambda: len(line.heard.on("request/stats")) >= count)
    refused = line.answer("response/stats", lambda a: a["status"] == "error")
    assert "too many commands; the next one is accepted in" in refused["error"]
    assert refused["transaction"] >= AT_ONCE, "whoever sent it knows that it is meant"
    captions = len(line.heard.results("response/caption"))

    def answered() -> dict[str, Any] | None:
        """It takes in commands one after the other: when it answers this one, it has done with the flood."""
        line.send("request/caption")
        time.sleep(1.0)  # more than each further command has to wait for
        made = line.heard.results("response/caption")[captions:]
        return next((answer["data"] for answer in made if answer["status"] == "ok"), None)

    assert wait_for("a caption", answered)["caption"] == line.newest[1]
    answers = line.heard.results("response/stats")[before:]
    assert len(answers) <= 2 * (AT_ONCE + (time.monotonic() - start_s) * PER_MINUTE / 60), "taken, and refused"
