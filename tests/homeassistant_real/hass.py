"""A real Home Assistant in a root of make_root.sh: started, set up as its first user does, asked over REST."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.service import wait_for

HERE = Path(__file__).parent
JSON = "application/json"


@dataclass
class Hass:
    """One that runs."""

    port: int
    log: Path
    _token: str = ""

    def post(self, path: str, **body: Any) -> Any:
        """What its REST interface answers."""
        return self._ask(f"/api/{path}", json.dumps(body).encode(), JSON)

    def serve(self, domain: str, service: str, entity: str, **data: Any) -> None:
        """Call one of its services on an entity."""
        self.post(f"services/{domain}/{service}", entity_id=entity, **data)

    def entities(self) -> dict[str, dict[str, Any]]:
        """All of them, by their ids."""
        return {one["entity_id"]: one for one in self._ask("/api/states", None, JSON)}

    def state(self, entity: str) -> str:
        """Of one entity; empty where there is none."""
        found: dict[str, Any] = self.entities().get(entity, {})
        return str(found.get("state", ""))

    def complaints(self) -> list[str]:
        """What it says of MQTT and templates in its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if re.search(r" (WARNING|ERROR) .*(mqtt|template)", line)]

    def answers(self) -> bool:
        """Whether it has started as far as that."""
        try:
            self._ask("/api/onboarding", None, JSON)
        except (urllib.error.URLError, OSError):
            return False
        return True

    def set_up(self, broker_port: int) -> None:
        """As its first user does: an account, and the broker in the dialogue of the mqtt integration."""
        client = f"http://127.0.0.1:{self.port}/"
        account = {"name": "b", "username": "bench", "password": "bench-bench", "language": "en"}
        code = self.post("onboarding/users", client_id=client, **account)["auth_code"]
        form = {"grant_type": "authorization_code", "code": code, "client_id": client}
        form_type = "application/x-www-form-urlencoded"
        self._token = self._ask("/auth/token", urllib.parse.urlencode(form).encode(), form_type)["access_token"]
        flow = self.post("config/config_entries/flow", handler="mqtt")
        if flow["type"] == "menu":
            flow = self.post(f"config/config_entries/flow/{flow['flow_id']}", next_step_id="broker")
        made = self.post(f"config/config_entries/flow/{flow['flow_id']}", broker="127.0.0.1", port=broker_port)
        assert made["type"] == "create_entry", made

    def _ask(self, path: str, body: bytes | None, content_type: str) -> Any:
        headers = {"Content-Type": content_type, **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def hass(root: str, directory: Path, broker_port: int, automations: str) -> Iterator[Hass]:
    """One with nothing but a broker and these automations."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = (HERE / "configuration.yaml").read_text()
    (directory / "configuration.yaml").write_text(text.replace("PORT", str(port)))
    (directory / "automations.yaml").write_text("[]")
    log = directory / "said"
    argv = [str(HERE / "in_root.sh"), root, str(directory), "SSL_CERT_FILE=/opt/ca.crt", "hass"]
    options = ["--config", "/opt/config", "--skip-pip", "--log-no-color"]
    with log.open("wb") as said:
        process = subprocess.Popen([*argv, *options], stdout=said, stderr=said, start_new_session=True)
    made = Hass(port, log)
    try:
        wait_for("Home Assistant answers", made.answers)
        made.set_up(broker_port)
        (directory / "automations.yaml").write_text(automations)  # before, those that listen to MQTT cannot
        made.post("services/automation/reload")
        yield made
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
