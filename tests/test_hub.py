"""Pushing to a Hub and loading from it: the real client in fresh processes and caches, a server on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import make_pipeline
from local_hub import OWNER, READER, STRANGER, LocalHub, serve_hub
from photos import make_folder
from PIL import Image
from safetensors.torch import load_file
from test_train_script import ROOT, command

from colorized_pipeline import EXAMPLES
from colorized_pipeline.diffusion.pipeline import CODE_FILES
from colorized_pipeline.hub import stage
from colorized_pipeline.training.options import parse_options

REPO = "alice/old-town"
CLI = [sys.executable, "-c", "from colorized_pipeline.cli import main; main()"]
PARTS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "image_encoder/config.json")
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "image_encoder/model.safetensors")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "checkpoint"
    make_pipeline(encoder=True).save_pretrained(folder)
    (folder / "notes.txt").write_text("not for the public")
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with serve_hub() as running:
        yield running


class Client:
    """Runs commands in fresh processes, each with a cache of its own, outside the repository."""

    def __init__(self, hub: LocalHub, folder: Path) -> None:
        self.hub, self.folder, self.homes = hub, folder, 0

    def environment(self, token: str | None, *, package: bool = True) -> dict[str, str]:
        self.homes += 1
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
        paths = {"PYTHONPATH": str(ROOT)} if package else {}
        home = self.folder / f"home-{self.homes}"
        return {**kept, "OMP_NUM_THREADS": "1", **paths, **self.hub.environment(token=token, home=home)}

    def run(
        self, words: list[str], *, token: str | None = OWNER, package: bool = True
    ) -> subprocess.CompletedProcess[str]:
        environment = self.environment(token, package=package)
        return subprocess.run(words, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def client(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(hub, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def pushed(hub: LocalHub, client: Client, checkpoint: Path) -> dict[str, bytes]:
    hub.dropped_uploads = 1  # the client tries again by itself
    done = client.run([*CLI, "push", str(checkpoint), REPO])
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{hub.url}/{REPO}/commit/" in done.stdout
    return hub.repos[REPO].files


def test_push_uploads_the_pipeline_its_code_card_and_picture(pushed: dict[str, bytes], checkpoint: Path) -> None:
    assert set(pushed) == {*PARTS, *WEIGHTS, *CODE_FILES, "README.md", "samples.jpg"}
    for name in (*PARTS, *WEIGHTS):
        assert pushed[name] == (checkpoint / name).read_bytes(), name
    for name in CODE_FILES:
        assert pushed[name] == (ROOT / "colorized_pipeline" / "diffusion" / name).read_bytes(), name


def test_push_is_one_commit_even_over_a_dropped_connection(hub: LocalHub, pushed: dict[str, bytes]) -> None:
    assert hub.dropped_uploads == 0
    assert len(hub.repos[REPO].commits) == 2 and hub.repos[REPO].commits[0] == {}
    assert not hub.repos[REPO].private


def test_a_card_takes_its_own_pictures_along(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "docs").mkdir(parents=True)
    for name in ("mine/docs/sheet.jpg", "secret.jpg"):
        (tmp_path / name).write_bytes(b"picture")
    card = tmp_path / "mine" / "card.md"
    card.write_text("![a](docs/sheet.jpg) ![b](../secret.jpg) ![c](https://example.org/x.jpg) ![d](missing.jpg)\n")
    stage(checkpoint, tmp_path / "staged", repo_id="alice/town", caption=None, card=card)
    assert (tmp_path / "staged" / "docs" / "sheet.jpg").read_bytes() == b"picture"
    assert not [file for file in (tmp_path / "staged").rglob("*.jpg") if file.name != "sheet.jpg"]


def test_card_is_filled(pushed: dict[str, bytes]) -> None:
    card = pushed["README.md"].decode()
    front, text = card.split("---\n", 2)[1:]
    assert "library_name: diffusers" in front and "pipeline_tag: image-to-image" in front
    assert not re.search(r"@@|\{\{|\{%|None", text)
    assert text.count(REPO) >= 5 and "colours are invented" in text and "](samples.jpg)" in text
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "card", "exec")


def test_picture_shows_grey_then_three_seeds(pushed: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "samples.jpg").write_bytes(pushed["samples.jpg"])
    sheet = np.asarray(Image.open(tmp_path / "samples.jpg")).astype(int)
    # Four pictures of each photo, 256 pixels high; the widest photo 640 x 427, the first square; 6 pixels apart
    assert sheet.shape == (len(EXAMPLES) * 256 + (len(EXAMPLES) + 1) * 6, 4 * 384 + 5 * 6, 3)
    chroma = np.ptp(sheet[6:262], axis=-1)
    assert chroma[:, 6:262].max() < 12 < chroma[:, 396:652].max()


LOAD = """
import importlib.util, json, sys
import numpy as np, torch
{load}
photo = np.tile(np.linspace(0, 1, 40), (30, 1))
pipe.set_progress_bar_config(disable=True)
result = pipe(photo, generator=torch.Generator().manual_seed(0), output_type="np").images[0]
np.save(sys.argv[1], result)
print(json.dumps({{
    "class": type(pipe).__name__,
    "module": type(pipe).__module__,
    "package": importlib.util.find_spec("colorized_pipeline") is not None,
    "prefixes": [name for name in sys.modules if name.startswith("colorized_pipeline")],
}}))
"""
WITH_PACKAGE = f"""
from colorized_pipeline import ColorizationPipeline
pipe = ColorizationPipeline.from_pretrained("{REPO}")
"""
DIFFUSERS_ALONE = f"""
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("{REPO}", custom_pipeline="{REPO}", trust_remote_code=True)
"""
# An editable installation puts a finder or a path of the package's into sys; without them it isn't importable.
HIDE_PACKAGE = """
import os, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [path for path in sys.path if path and not os.path.isdir(os.path.join(path, "colorized_pipeline"))]
"""


def load_and_colorize(client: Client, load: str, *, package: bool = True) -> tuple[dict, np.ndarray]:
    target = client.folder / f"{client.homes}.npy"
    script = textwrap.dedent(LOAD).format(load=load)
    done = client.run([sys.executable, "-c", script, str(target)], token=None, package=package)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), np.load(target)


@pytest.fixture(scope="module")
def with_package(client: Client, pushed: dict[str, bytes]) -> tuple[dict, np.ndarray]:
    return load_and_colorize(client, WITH_PACKAGE)


def test_loads_with_the_package(with_package: tuple[dict, np.ndarray]) -> None:
    facts, result = with_package
    assert facts["module"] == "colorized_pipeline.diffusion.pipeline"
    assert result.shape == (30, 40, 3) and np.ptp(result, axis=-1).max() > 0.02


def test_loads_with_diffusers_where_the_package_cannot_be_imported(
    client: Client, with_package: tuple[dict, np.ndarray]
) -> None:
    facts, result = load_and_colorize(client, HIDE_PACKAGE + DIFFUSERS_ALONE, package=False)
    assert facts["class"] == "ColorizationPipeline" and facts["module"].startswith("diffusers_modules.")
    assert facts["package"] is False and facts["prefixes"] == []
    np.testing.assert_allclose(result, with_package[1], atol=1e-4)


# One process for all refusals: importing torch takes longer than they do. HF_TOKEN is read at every call.
REFUSALS = """
import json, os, sys
from typer.testing import CliRunner
from colorized_pipeline.cli import app

answers = []
for token, words in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    result = CliRunner().invoke(app, words)
    answers.append([result.exit_code, result.stdout, result.stderr])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def refusals(hub: LocalHub, client: Client, checkpoint: Path, pushed: dict[str, bytes]) -> dict[str, list]:
    folder, photo = str(checkpoint), str(EXAMPLES[0])
    unfilled = client.folder / "unfilled.md"
    unfilled.write_text("# {{ repo_id }}\n@@RESULTS@@")
    by_hand = client.folder / "by-hand.md"
    by_hand.write_text("# {{ repo_id }}, by hand")
    push, colorize = ["push", folder], ["colorize", photo, "-o", "x.png", "--checkpoint"]
    public = ["colorize", photo, "-o", "public.png", "--checkpoint", REPO]
    cases: dict[str, tuple[str | None, list[str]]] = {
        "public, nobody": (None, public),
        "no token": (None, [*push, "alice/new"]),
        "wrong token": ("hf_wrong", [*push, "alice/new"]),
        "reading token": (READER, [*push, "alice/new"]),
        "someone else's name": (STRANGER, [*push, "alice/new"]),
        "existing": (OWNER, [*push, REPO]),
        "existing and public": (OWNER, [*push, REPO, "--overwrite", "--private"]),
        "no namespace": (OWNER, [*push, "new"]),
        "bad name": (OWNER, [*push, "alice/a name"]),
        "no pipeline": (OWNER, ["push", str(checkpoint.parent), "alice/new"]),
        "card to fill": (OWNER, [*push, "alice/new", "--card", str(unfilled)]),
        "private": (OWNER, [*push, "alice/secret", "--private"]),
        "private, again": (OWNER, [*push, "alice/secret", "--overwrite", "--card", str(by_hand), "--photo", photo]),
        "private, nobody": (None, [*colorize, "alice/secret"]),
        "private, another": (STRANGER, [*colorize, "alice/secret"]),
        "nowhere": (OWNER, [*colorize, "alice/nowhere"]),
        # Last: then it is in the cache
        "private, its owner": (OWNER, [*colorize, "alice/secret"]),
    }
    done = client.run([sys.executable, "-c", REFUSALS, json.dumps(list(cases.values()))])
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_the_command_takes_a_public_repository_as_checkpoint(client: Client, refusals: dict[str, list]) -> None:
    assert refusals["public, nobody"][0] == 0, refusals["public, nobody"]
    with Image.open(client.folder / "public.png") as image, Image.open(EXAMPLES[0]) as grey:
        assert image.size == grey.size and image.mode == "RGB"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no token", "no Hugging Face token found: run `hf auth login`, or set HF_TOKEN"),
        ("wrong token", "doesn't accept this token (401)"),
        ("reading token", "may not write to alice/new (403)"),
        ("someone else's name", "may not write to alice/new (403)"),
        ("existing", f"repository {REPO} has 15 files already; add --overwrite"),
        ("existing and public", "exists and is public"),
        ("no namespace", "must be user/name"),
        ("bad name", "'alice/a name'"),
        ("no pipeline", "did you mean"),
        ("card to fill", "unfilled.md isn't filled yet: @@RESULTS@@"),
        ("private, nobody", "repository alice/secret isn't on the Hub, or it is private"),
        ("private, another", "repository alice/secret isn't on the Hub, or it is private"),
        ("nowhere", "repository alice/nowhere isn't on the Hub"),
    ],
)
def test_refusals_are_one_clear_line(refusals: dict[str, list], case: str, message: str) -> None:
    code, _, stderr = refusals[case]
    lines = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], stderr
    assert "Traceback" not in stderr


def test_refused_pushes_leave_no_repository(hub: LocalHub, refusals: dict[str, list]) -> None:
    assert "alice/new" not in hub.repos and len(hub.repos[REPO].commits) == 2


def test_private_repository_is_for_its_owner(hub: LocalHub, refusals: dict[str, list]) -> None:
    assert refusals["private"][0] == 0, refusals["private"]
    assert hub.repos["alice/secret"].private and "model_index.json" in hub.repos["alice/secret"].files
    assert refusals["private, its owner"][0] == 0, refusals["private, its owner"]


def test_overwriting_adds_a_commit_and_keeps_the_history(hub: LocalHub, refusals: dict[str, list]) -> None:
    assert refusals["private, again"][0] == 0, refusals["private, again"]
    secret = hub.repos["alice/secret"]
    assert len(secret.commits) == 3 and "alice/secret" in secret.commits[1]["README.md"].decode()
    assert secret.files["README.md"] == b"# alice/secret, by hand"
    assert set(secret.commits[1]) == set(secret.files)


def test_interrupted_upload_changes_nothing_and_can_be_repeated(
    hub: LocalHub, client: Client, checkpoint: Path
) -> None:
    hub.blobs.clear()
    hub.uploads.clear()
    hub.uploading.clear()
    hub.hold_uploads = threading.Event()
    words = [*CLI, "push", str(checkpoint), "alice/cut-off"]
    environment = client.environment(OWNER)
    # Where the tests run in the background of a shell, Ctrl-C is ignored, by what they start too
    listening = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {CLI[2]}"
    process = subprocess.Popen(
        [*CLI[:2], listening, *words[3:]],
        env=environment,
        cwd=client.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert hub.uploading.wait(240), "the upload never began"
        process.send_signal(signal.SIGINT)
    finally:
        hub.hold_uploads.set()
        hub.hold_uploads = None
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped." in stderr and "the same command" in stderr
    assert hub.repos["alice/cut-off"].files == {}

    done = client.run(words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {*PARTS, *WEIGHTS} < set(hub.repos["alice/cut-off"].files)
    assert len(hub.uploads) == len(set(hub.uploads)), "a file that had arrived was sent again"


def test_training_pushes_in_the_background_and_outlives_a_failed_push(
    hub: LocalHub, client: Client, tmp_path: Path
) -> None:
    photos = make_folder(tmp_path / "photos", 14)
    hub.refused_commits = 1
    run = command(photos, tmp_path / "run", hub_model_id="alice/trained", sample_steps=3, optimizer="muon")
    done = client.run([*run, "--push_to_hub", "--hub_private_repo"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("the training goes on: the Hub answered 400") == 1 and hub.refused_commits == 0
    repo = hub.repos["alice/trained"]
    assert repo.private and repo.messages == ["Step 6 of 6, 24 photos seen"]
    assert {"pipeline.py", "color.py", "variants.py", "samples.jpg", "unet/config.json"} < set(repo.files)
    card = repo.files["README.md"].decode()
    assert "| optimizer | muon |" in card and "AdamW" not in card
    assert "| optimizer steps | 6 |" in card and "| photos seen | 24 |" in card and str(tmp_path) not in card
    (tmp_path / "w.safetensors").write_bytes(repo.files[WEIGHTS[0]])
    saved, uploaded = load_file(tmp_path / "run" / WEIGHTS[0]), load_file(tmp_path / "w.safetensors")
    assert all((saved[name] == uploaded[name]).all() for name in saved) and saved.keys() == uploaded.keys()

    # The same name again, for another run: refused before anything is trained
    other = command(photos, tmp_path / "other", hub_model_id="alice/trained")
    done = client.run([*other, "--push_to_hub"])
    assert done.returncode == 1 and "choose another --hub_model_id" in done.stderr
    assert not (tmp_path / "other").exists()


def test_training_flags_for_the_hub_belong_together() -> None:
    for flags in (["--push_to_hub"], ["--hub_model_id", "a/b"], ["--hub_private_repo"]):
        with pytest.raises(SystemExit):
            parse_options(["--train_data", "photos", *flags])
    with pytest.raises(SystemExit):
        parse_options(["--train_data", "photos", "--push_to_hub", "--hub_model_id", "no-namespace"])


@pytest.mark.slow
def test_fresh_environment_with_diffusers_alone_colorizes(
    hub: LocalHub, client: Client, pushed: dict[str, bytes], tmp_path: Path
) -> None:
    """Torch, diffusers and transformers from the package index, and nothing of ours."""
    wanted = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line.startswith(("torch==", "diffusers==", "transformers==", "accelerate=="))
    ]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    for packages in (wanted[:1], wanted[1:]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    script = textwrap.dedent(LOAD).format(load=DIFFUSERS_ALONE)
    words = [str(python), "-c", script, str(tmp_path / "result.npy")]
    done = client.run(words, token=None, package=False)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["package"] is False and facts["class"] == "ColorizationPipeline"
    result = np.load(tmp_path / "result.npy")
    assert result.shape == (30, 40, 3) and np.ptp(result, axis=-1).max() > 0.02
