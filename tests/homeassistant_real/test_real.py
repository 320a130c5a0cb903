"""The node as a device of a real Home Assistant, and the automations of the README in it.

By hand:

    sudo tests/homeassistant_real/make_root.sh /var/tmp/homeassistant            (once: 2 to 6 minutes, 1.5 GB)
    sudo env EDGE_DAEMON_HASS_ROOT=/var/tmp/homeassistant .venv/bin/python -m pytest tests/homeassistant_real

Not a part of CI, which has no minutes for it. One Home Assistant and one service for all tests here, in this order.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from tests.homeassistant_real.hass import Hass, hass
from tests.integration.service import NODE, Service, wait_for

ROOT = os.environ.get("EDGE_DAEMON_HASS_ROOT", "")
README = Path(__file__).parents[2] / "README.md"
CIRCLE, CAPTION, SWITCH = (
    f"{platform}.{NODE}_inbox_{name}"
    for platform, name in (("binary_sensor", "circle"), ("sensor", "caption"), ("switch", "enabled"))
)
QUESTION = {"id": "circle", "ask": "Is there a circle?", "type": "yes_no"}
UNKNOWN = re.compile(r"_(temperature|throttl\w+|last_error|answer_to_the_question|question|caption_now)$")
"""Of which a PC without sensors, and a node that nobody asked anything, know nothing."""
pytestmark = pytest.mark.skipif(not ROOT, reason="by hand: see the head of this file")


@dataclass
class House:
    """What is at home here."""

    hass: Hass
    service: Service
    pictures: list[tuple[Path, str]]
    """With what is on them."""

    def show(self, circle: bool) -> str:
        """Another picture, with a circle or without; what is on it."""
        at = next(i for i, (_, words) in enumerate(self.pictures) if ("circle" in words) is circle)
        path, words = self.pictures.pop(at)
        shutil.copy(path, self.service.inbox)
        wait_for(words, lambda: self.hass.state(CAPTION) == words)
        return words

    def ran_at(self, automation: str) -> str:
        """When an automation did so last; empty if never."""
        return self.hass.entities()[f"automation.{automation}"]["attributes"]["last_triggered"] or ""


def automations() -> str:
    """The README's, of our node."""
    (found,) = (text for text in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if "alias" in text)
    return str(found).replace("porch_pi", NODE).replace("porch-pi", NODE)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    directory, config = tmp_path_factory.mktemp("house"), tmp_path_factory.mktemp("hass")
    (directory / "broker").mkdir()
    pictures = sample_pictures(directory / "samples", 20, seed=6)
    with Broker(directory / "broker") as broker, hass(ROOT, config, broker.port, automations()) as home:
        service = Service(directory, broker.port, source={"questions": [QUESTION], "image": {"enabled": True}})
        service.start()
        made = House(home, service, pictures)
        wait_for("the node is ready", lambda: home.state(f"sensor.{NODE}_state") == "ok")
        yield made
        assert service.end() == 0


def test_all_of_it_is_there_and_known(house: House) -> None:
    house.show(circle=False)
    assert house.hass.state(CIRCLE) == "off"
    ours = {id: one["state"] for id, one in house.hass.entities().items() if f".{NODE}_" in id}
    assert len(ours) > 15
    unknown = {id for id, state in ours.items() if state in ("unknown", "unavailable") and not UNKNOWN.search(id)}
    assert not unknown


def test_the_automations_of_the_readme_run(house: House) -> None:
    assert len(yaml.safe_load(automations())) == 2
    house.show(circle=True)
    wait_for("it is seen", lambda: house.hass.state(CIRCLE) == "on")
    assert wait_for("a circle has come", lambda: house.ran_at("a_circle_has_come"))
    assert wait_for("every caption", lambda: house.ran_at("every_caption"))


def test_a_node_that_was_killed_comes_back_as_it_was(house: House) -> None:
    ran_at = house.ran_at("a_circle_has_come")
    assert house.service.end(signal.SIGKILL) == -signal.SIGKILL
    wait_for("it is gone", lambda: house.hass.state(CIRCLE) == "unavailable")
    house.service.start()
    wait_for("it is back", lambda: house.hass.state(f"sensor.{NODE}_state") == "ok")
    assert house.hass.state(CIRCLE) == "on"
    assert house.ran_at("a_circle_has_come") == ran_at


def test_the_switch_follows(house: House) -> None:
    for service, state in (("turn_off", "off"), ("turn_on", "on")):
        house.hass.serve("switch", service, SWITCH)
        wait_for(f"it is {state}", lambda state=state: house.hass.state(SWITCH) == state)  # type: ignore[misc]


def test_a_question_that_is_gone_goes_from_there(house: House) -> None:
    text = house.service.config.read_text()
    house.service.config.write_text(text.replace("type: yes_no", "type: text"))
    assert house.service.process is not None
    house.service.process.send_signal(signal.SIGHUP)
    wait_for("it is no binary sensor", lambda: not house.hass.state(CIRCLE))


def test_it_has_no_complaints(house: House) -> None:
    assert house.hass.complaints() == []
