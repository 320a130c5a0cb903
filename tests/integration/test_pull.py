"""`edge-daemon model pull`: the real command in a process of its own, against a hub on loopback.

Every proxy setting points at a port where nobody listens, except for loopback: a request to anything else fails
the command. What was asked is counted at the hub.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_daemon.demo import MODEL_DIR
from edge_daemon.exit_codes import CONFIG, OK, UNAVAILABLE
from edge_daemon.models.export import export
from edge_daemon.models.store import Store
from edge_daemon.moondream.config import load_config
from tests.integration.hub import COMMIT, REPOSITORY, Hub

ROOT = Path(__file__).parents[2]
TOKEN = "hf_this_is_a_secret"
FILES = ("model.safetensors", "tokenizer.json", "config.json")

PROGRAM = """\
import functools, json, sys
from edge_daemon import cli, model_commands
from edge_daemon.models.catalogue import HALF_BILLION, Artefact, RemoteFile
facts = json.loads(sys.argv[1])
files = tuple(RemoteFile(**file) for file in facts.pop("files"))
small = Artefact(name="small", summary="a test", files=files, licence="none", shape=HALF_BILLION, **facts)
arguments = cli.parser().parse_args(sys.argv[2:])
arguments.command = functools.partial(arguments.command, catalogue=(small,))
sys.exit(cli.perform(arguments))
"""
"""The program, with a catalogue of one small artefact."""


@dataclass
class Pull:
    """One artefact and the surroundings of the command."""

    directory: Path
    hub: Hub
    environment: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return Store(self.directory / "state")

    @property
    def cache(self) -> Path:
        return self.directory / "hf"

    def serve(self, names: tuple[str, ...] = FILES) -> None:
        """These files of the built-in model, with their right sizes and hashes in the catalogue."""
        self.hub.answers.files = {name: (MODEL_DIR / name).read_bytes() for name in names}
        self.facts["files"] = [
            {
                "repository": REPOSITORY,
                "commit": COMMIT,
                "path": name,
                "size_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for name, content in self.hub.answers.files.items()
        ]

    def __call__(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", PROGRAM, json.dumps(self.facts), "model", "pull", "small", *options]
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        surroundings |= self.environment | environment
        return subprocess.run(
            argv, capture_output=True, text=True, env=surroundings, check=False, cwd=ROOT, timeout=120
        )


@pytest.fixture
def pull(tmp_path: Path) -> Iterator[Pull]:
    nobody = "http://127.0.0.1:9"
    with Hub() as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "EDGE_DAEMON_STATE_DIR": str(tmp_path / "state"),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), nobody),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
        }
        prepared = Pull(tmp_path, hub, environment)
        prepared.serve()
        yield prepared


def assert_nothing_installed(pull: Pull) -> None:
    assert pull.store.names() == []
    assert not list(pull.store.root.rglob("*")) if pull.store.root.exists() else True


def test_a_model_is_fetched_checked_and_imported(pull: Pull) -> None:
    done = pull()
    assert (done.returncode, done.stderr) == (OK, "")
    directory = pull.store.root / "small"
    assert f"small: 9 MiB in {directory}, engine torch" in done.stdout
    config = load_config(directory)
    assert config.name == "small"
    assert config.provenance["repository"] == REPOSITORY
    assert config.provenance["commit"] == COMMIT
    assert config.provenance["sha256"] == {"model.safetensors": pull.facts["files"][0]["sha256"]}
    asked = {(asked.server, asked.method, asked.path.partition("?")[0]) for asked in pull.hub.asked}
    resolve = f"/{REPOSITORY}/resolve/{COMMIT}"
    assert asked == {("hub", "HEAD", f"{resolve}/{name}") for name in FILES} | {
        ("content", "GET", f"/content/{name}") for name in FILES
    }


def test_json_is_one_document(pull: Pull) -> None:
    done = pull("--json")
    document = json.loads(done.stdout)
    assert document["name"] == "small"
    assert document["directory"] == str(pull.store.root / "small")
    assert done.stderr == ""


def test_without_a_redirect(pull: Pull) -> None:
    """As the hub serves small files, and as mirrors serve all."""
    pull.hub.answers.redirects = False
    assert pull().returncode == OK
    assert {asked.server for asked in pull.hub.asked} == {"hub"}


def test_a_cut_connection_is_gone_on_from_where_it_was(pull: Pull) -> None:
    size = len(pull.hub.answers.files["model.safetensors"])
    pull.hub.answers.cuts = [3_000_000]
    assert pull().returncode == OK
    first, second = (asked for asked in pull.hub.gets() if "model.safetensors" in asked.path)
    assert "range" not in first.headers
    assert first.sent_bytes == 3_000_000
    got = int(second.headers["range"].removeprefix("bytes=").rstrip("-"))
    assert 1_900_000 < got <= 3_000_000  # at most one piece of a MiB is lost
    assert second.sent_bytes == size - got
    assert pull.store.names() == ["small"]


def test_a_download_that_gave_up_goes_on_in_the_next_process(pull: Pull) -> None:
    """Cut as often as the library tries again; then the same command once more."""
    size = len(pull.hub.answers.files["model.safetensors"])
    pull.hub.answers.cuts = [3_000_000, 0, 0, 0, 0, 0, 0]
    failed = pull()
    assert failed.returncode == UNAVAILABLE
    assert "what has arrived is kept; run the same command again to continue" in failed.stderr
    assert_nothing_installed(pull)
    pull.hub.answers.cuts = []
    before = len(pull.hub.asked)
    assert pull().returncode == OK
    (last,) = (asked for asked in pull.hub.asked[before:] if "content/model.safetensors" in asked.path)
    got = int(last.headers["range"].removeprefix("bytes=").rstrip("-"))
    assert got > 1_900_000
    assert last.sent_bytes == size - got


def test_offline_mode_uses_the_cache_and_still_checks_it(pull: Pull) -> None:
    assert pull().returncode == OK
    before = len(pull.hub.asked)
    assert pull("--replace", HF_HUB_OFFLINE="1").returncode == OK
    blob = max(pull.cache.rglob("blobs/*"), key=lambda path: path.stat().st_size)
    with blob.open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2\3")
    done = pull("--replace", HF_HUB_OFFLINE="1")
    assert done.returncode == UNAVAILABLE
    assert "the sha256 of model.safetensors should be" in done.stderr
    assert "remove that file and pull again" in done.stderr
    assert pull.store.names() == ["small"]
    assert len(pull.hub.asked) == before


def test_offline_mode_without_a_cache(pull: Pull) -> None:
    done = pull(HF_HUB_OFFLINE="1")
    assert done.returncode == UNAVAILABLE
    assert f"{REPOSITORY}/model.safetensors is not in the cache ({pull.cache}" in done.stderr
    assert "HF_HUB_OFFLINE forbids asking for it" in done.stderr
    assert pull.hub.asked == []


def test_the_token_goes_to_the_endpoint_and_nowhere_else(pull: Pull) -> None:
    pull.hub.answers.needs_token = TOKEN
    done = pull(HF_TOKEN=TOKEN)
    assert done.returncode == OK
    for asked in pull.hub.asked:
        assert (asked.headers.get("authorization") == f"Bearer {TOKEN}") == (asked.server == "hub")
    assert TOKEN not in done.stdout + done.stderr
    written = b"".join(path.read_bytes() for path in pull.directory.rglob("*.json"))
    assert TOKEN.encode() not in written


def test_a_wrong_token(pull: Pull) -> None:
    pull.hub.answers.needs_token = "another"
    done = pull(HF_TOKEN=TOKEN)
    assert done.returncode == UNAVAILABLE
    assert f"{pull.hub.endpoint}: {REPOSITORY}/model.safetensors: refused (HTTP 401)" in done.stderr
    assert "needs HF_TOKEN" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size_offset": 7}, "should have {size} bytes, the endpoint offers {offered}"),
        ({"commit": "f" * 40}, f"asked for commit {COMMIT}, the endpoint answers with {'f' * 40}"),
        ({"etag": "../../../evil"}, "the endpoint names the content '../../../evil', which is not a digest"),
    ],
)
def test_an_endpoint_that_offers_something_else(pull: Pull, change: dict[str, Any], words: str) -> None:
    size = len(pull.hub.answers.files["model.safetensors"])
    for name, value in change.items():
        setattr(pull.hub.answers, name, value)
    done = pull()
    assert done.returncode == UNAVAILABLE
    assert words.format(size=size, offered=size + 7) in done.stderr
    assert pull.hub.gets() == []
    assert_nothing_installed(pull)


def test_content_with_a_wrong_hash_is_refused_with_both_values(pull: Pull) -> None:
    pull.hub.answers.damage = True
    content = pull.hub.answers.files["model.safetensors"]
    right, wrong = (hashlib.sha256(c).hexdigest() for c in (content, content[:-1] + bytes([content[-1] ^ 1])))
    done = pull()
    assert done.returncode == UNAVAILABLE
    assert (
        f"the sha256 of model.safetensors should be {right} and is {wrong}; nothing was kept: try again" in done.stderr
    )
    assert_nothing_installed(pull)
    assert not [path for path in pull.cache.rglob("*") if path.is_file() and path.stat().st_size > 1_000_000]


def test_a_hash_that_the_catalogue_does_not_know_is_the_hubs(pull: Pull) -> None:
    """The digest by which the hub names the content is checked as well."""
    for file in pull.facts["files"]:
        file["sha256"] = None
    pull.hub.answers.damage = True
    done = pull()
    assert done.returncode == UNAVAILABLE
    assert "the sha256 of model.safetensors should be" in done.stderr


@pytest.mark.parametrize(
    ("status", "words"), [(404, "not there (HTTP 404)"), (503, "answered HTTP 503: try again later")]
)
def test_an_endpoint_that_refuses(pull: Pull, status: int, words: str) -> None:
    pull.hub.answers.status = status
    done = pull()
    assert done.returncode == UNAVAILABLE
    assert f"{pull.hub.endpoint}: {REPOSITORY}/model.safetensors:" in done.stderr
    assert words in done.stderr
    assert "edge-daemon model import FILE" in done.stderr


def test_an_endpoint_that_is_not_there(pull: Pull) -> None:
    done = pull(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == UNAVAILABLE
    assert f"http://127.0.0.1:9: {REPOSITORY}/model.safetensors cannot be fetched: " in done.stderr
    assert "Connection refused" in done.stderr
    assert "is this board online? Set HF_ENDPOINT for a mirror" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_is_taken_is_told_before_anything_is_asked(pull: Pull) -> None:
    (pull.store.root / "small").mkdir(parents=True)
    done = pull()
    assert done.returncode == UNAVAILABLE
    assert "small exists: choose another name (--name), or add --replace" in done.stderr
    assert pull.hub.asked == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_asked(pull: Pull) -> None:
    pull.facts["unpacked_bytes"] = 1 << 50
    done = pull()
    assert done.returncode == UNAVAILABLE
    assert "MiB of disk are needed" in done.stderr
    assert "MiB are free" in done.stderr
    assert pull.hub.asked == []


def test_a_wrong_source_leaves_nothing_behind(pull: Pull) -> None:
    """The right bytes of the wrong thing: fetched, refused by the import, kept in the cache only."""
    content = b"no weights at all"
    pull.hub.answers.files["model.safetensors"] = content
    digest = hashlib.sha256(content).hexdigest()
    pull.facts["files"][0] |= {"size_bytes": len(content), "sha256": digest}
    done = pull()
    assert done.returncode == UNAVAILABLE
    assert "not a usable safetensors file" in done.stderr
    assert_nothing_installed(pull)


def test_an_unknown_name_is_a_wrong_argument(pull: Pull) -> None:
    argv = [sys.executable, "-m", "edge_daemon", "model", "pull", "moondream-9b"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == CONFIG
    assert "nothing named 'moondream-9b' can be fetched; there are: moondream-0.5b, moondream-0.5b-int4" in done.stderr


# ---- a moonfile -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moonfile(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The built-in model as a packed int8 moonfile."""
    out = tmp_path_factory.mktemp("moonfile") / "demo.mf.gz"
    export(MODEL_DIR, out, "moonfile", "int8")
    return out.read_bytes()


def serve_moonfile(pull: Pull, moonfile: bytes, unpacked_sha256: str) -> None:
    pull.hub.answers.files = {"demo.mf.gz": moonfile}
    file = {"repository": REPOSITORY, "commit": COMMIT, "path": "demo.mf.gz"}
    pull.facts = {
        "files": [{**file, "size_bytes": len(moonfile), "sha256": None}],
        "unpacked_bytes": len(gzip.decompress(moonfile)),
        "unpacked_sha256": unpacked_sha256,
    }


def test_a_moonfile_is_fetched_converted_and_proven(pull: Pull, moonfile: bytes) -> None:
    digest = hashlib.sha256(gzip.decompress(moonfile)).hexdigest()
    serve_moonfile(pull, moonfile, digest)
    done = pull("--json")
    assert (done.returncode, done.stderr) == (OK, "")
    assert json.loads(done.stdout)["proof"]["passed"] is True
    provenance = load_config(pull.store.root / "small").provenance
    assert (provenance["sha256"], provenance["repository"], provenance["commit"]) == (digest, REPOSITORY, COMMIT)


def test_a_moonfile_for_the_other_engine(pull: Pull, moonfile: bytes) -> None:
    serve_moonfile(pull, moonfile, hashlib.sha256(gzip.decompress(moonfile)).hexdigest())
    done = pull("--engine", "onnx")
    assert (done.returncode, done.stderr) == (OK, "")
    assert "engine onnx" in done.stdout
    assert len(list((pull.store.root / "small" / "graphs").glob("*.onnx"))) == 8


def test_an_unpacked_moonfile_with_a_wrong_hash_is_refused_with_both_values(pull: Pull, moonfile: bytes) -> None:
    wanted, found = "5" * 64, hashlib.sha256(gzip.decompress(moonfile)).hexdigest()
    serve_moonfile(pull, moonfile, wanted)
    done = pull()
    assert done.returncode == UNAVAILABLE
    assert wanted in done.stderr
    assert found in done.stderr
    assert_nothing_installed(pull)
