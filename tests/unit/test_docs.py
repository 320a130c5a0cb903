"""README and example configurations say what the code does."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from edge_daemon import cli, config, exit_codes, gate_config, mqtt_config, source_config
from edge_daemon.sections import Section
from edge_daemon.topics import Topics, publications

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "edge_daemon"
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
EXAMPLE_VALUES = {
    *("node", "mqtt.username", "mqtt.password", "mqtt.client_id"),
    *("sources.inbox.questions", "sources.inbox.detect"),
    *("sources.porch.gate.ignore", "sources.porch.gate.schedule"),
}
"""Keys of the full example that have no default, or one that would teach nothing."""
REQUIRED = {"sources"}
CAMERAS: dict[str, type[BaseModel]] = {
    "workshop": source_config.V4l2Config,
    "garden": source_config.PicameraConfig,
    "gate": source_config.CommandConfig,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_DAEMON_MQTT_PASSWORD", "hush")
    for name in ("EDGE_DAEMON_STATE_DIR", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_example_configuration_is_valid(path: Path) -> None:
    config.load(path)


def test_the_full_example_has_every_key() -> None:
    class Loader(yaml.SafeLoader):
        """Knows the tag of the example."""

    Loader.add_constructor("!env", lambda loader, node: f"!env {node.value}")
    values = yaml.load((ROOT / "configs/full.yaml").read_text(), Loader)
    assert set(values) == set(config.Config.model_fields)
    assert set(values["mqtt"]) == set(mqtt_config.MqttConfig.model_fields)
    assert set(values["mqtt"]["tls"]) == set(mqtt_config.TlsConfig.model_fields)
    assert set(values["model"]) == set(config.ModelConfig.model_fields)
    assert set(values["thermal"]) == set(config.ThermalConfig.model_fields)
    assert set(values["homeassistant"]) == set(config.HomeAssistantConfig.model_fields)
    asked = values["sources"]["inbox"]["questions"]
    assert {key for question in asked for key in question} == set(source_config.Question.model_fields)
    sources = values["sources"]
    assert set(sources["inbox"]) == set(source_config.FolderConfig.model_fields)
    live = set(source_config.LiveSource.model_fields)
    assert set(sources["porch"]) == (live | own(source_config.StreamConfig)) - set(source_config.AnySource.model_fields)
    for name, kind in CAMERAS.items():
        assert set(sources[name]) == own(kind), "what all cameras have stands with the first one"
    assert set(sources["porch"]["gate"]) == set(gate_config.GateConfig.model_fields)
    assert {key for span in sources["porch"]["gate"]["schedule"] for key in span} == {"days", "from", "to"}


def own(kind: type[BaseModel]) -> set[str]:
    """The keys of one kind of camera."""
    return set(kind.model_fields) - set(source_config.LiveSource.model_fields)


def test_the_full_example_shows_the_defaults() -> None:
    full = config.load(ROOT / "configs/full.yaml")
    smallest = config.load(ROOT / "configs/folder.yaml")
    full_ones, smallest_ones = leaves(full), leaves(smallest)
    for name, source in full.sources.items():
        fields = type(source).model_fields
        required = {key: getattr(source, key) for key, field in fields.items() if field.is_required()}
        smallest_ones |= {f"sources.{name}.{key}": v for key, v in leaves(type(source)(**required)).items()}
    differing = {key for key, value in full_ones.items() if smallest_ones.get(key) != value and key not in REQUIRED}
    assert {key.removesuffix(".0") for key in differing} <= EXAMPLE_VALUES


def leaves(section: BaseModel) -> dict[str, Any]:
    """Every value by its dotted key."""

    def walk(value: Any, key: str) -> dict[str, Any]:
        if isinstance(value, BaseModel):
            value = {name: getattr(value, name) for name in type(value).model_fields}
        if isinstance(value, dict):
            return {k: v for name, item in value.items() for k, v in walk(item, f"{key}.{name}".strip(".")).items()}
        return {key: value}

    return walk(section, "")


def test_the_readme_has_the_topics_that_are_published() -> None:
    topics = Topics("<base>", "<node>")
    captioned = publications(topics, "<source>", {"task": "caption", "caption": "x"})
    answered = publications(topics, "<source>", {"task": "<id>", "answer": "x"})
    published = {p.topic: p.retain for p in captioned + answered}
    published |= {topics.availability: True, topics.health: True, topics.of("<source>", "availability"): True}
    published[topics.of("<source>", "image")] = True
    table = re.findall(r"^\| `(<base>/[^`]+)` \| [^|]+ \| ([^|]+) \|$", README, re.MULTILINE)
    assert {topic: not note.startswith("not retained") for topic, note in table} == published


def test_the_readme_has_the_exit_codes() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \| ", README, re.MULTILINE)}
    assert codes == {value for name, value in vars(exit_codes).items() if name.isupper()}


def test_the_example_result_of_the_readme_fits_the_schema() -> None:
    example = re.search(r"```json\n(.*?)```", README, re.DOTALL)
    assert example is not None
    schema = json.loads((ROOT / "configs/result.schema.json").read_text())
    jsonschema.validate(json.loads(example[1]), schema)


def test_the_commands_of_the_readme_can_be_run() -> None:
    for command in re.findall(r"^(?:sudo |\./)*(deploy/[\w.-]+)", README, re.MULTILINE):
        assert os.access(ROOT / command, os.X_OK), command


def commands_of(text: str) -> list[list[str]]:
    """What stands behind `edge-daemon` in the shell blocks of a text, without pipes, comments and the next command."""
    found = []
    for line in "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines():
        words = shlex.split(line, comments=True)
        for number, word in enumerate(words):
            if word.rpartition("/")[2] == "edge-daemon":
                end = next((i for i, w in enumerate(words) if i > number and w in ("|", "&&", ";")), len(words))
                found.append(words[number + 1 : end])
    return found


COMMANDS = [words for words in commands_of(README) if words not in ([], ["#"])]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_command_line_takes_every_command_of_the_readme(words: list[str]) -> None:
    """A command, an option or a number that it does not know ends with SystemExit."""
    assert callable(cli.parser().parse_args(words).command)


def test_the_readme_shows_the_commands() -> None:
    assert {"run", "check-config", "caption", "model", "source", "systemd", "doctor", "bench"} <= {
        words[0] for words in COMMANDS
    }
    wrong = commands_of("```sh\nsudo ./edge-daemon doctor --mend | jq . # a comment\n```")
    assert wrong == [["doctor", "--mend"]]
    with pytest.raises(SystemExit):
        cli.parser().parse_args(wrong[0])


def test_the_module_table_of_the_readme_names_every_module() -> None:
    """Once each, and nothing that is not there; a package stands for its modules."""
    table = README.partition("| module | what it does |")[2].partition("\n\n")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = [name.rstrip("/") for cell in first for name in re.findall(r"`([\w/]+)`", cell)]
    tops = [name for name in named if (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name / "__init__.py").is_file()]
    details = [name for name in named if name not in tops]
    assert len(tops) == len(set(tops)), "a module is named twice"
    assert all((PACKAGE / "models" / f"{name}.py").is_file() for name in details), details
    modules = {path.stem for path in PACKAGE.glob("[a-z]*.py")} | {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert modules - set(tops) == set()


def test_the_top_level_is_as_agreed() -> None:
    agreed = {
        "pyproject.toml",
        "edge_daemon",
        "deploy",
        "systemd",
        "tests",
        "configs",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    }
    tracked = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert tracked - {"edge_daemon.egg-info"} == agreed


def sections() -> list[type[Section]]:
    """All sections of the configuration."""
    modules = (config, gate_config, mqtt_config, source_config)
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Section) and kind.__module__ == module.__name__
    ]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_is_exercised_by_a_test(section: type[Section]) -> None:
    """Its name is a word of a test elsewhere: a forgotten key is found, unless it is a common word (`name`, `path`)."""
    written = "\n".join(path.read_text() for path in ROOT.glob("tests/**/*.py") if path != Path(__file__))
    forgotten = [key for key in section.model_fields if not re.search(rf"\b{key}\b", written)]
    assert not forgotten
