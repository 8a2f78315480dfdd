"""Two processes with half the batch each are one process with the whole batch (accelerate on the CPU)."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attnbooth_cli.engine.base_models import resolve
from attnbooth_cli.engine.devices import make_accelerator
from attnbooth_cli.engine.families import load_components
from attnbooth_cli.engine.initialisation import init
from tests.engine.conftest import EXAMPLE, make_subject
from tests.engine.test_loop import ATTENTION, distance, gradients
from tests.engine.two_processes import STAGE

ROOT = Path(__file__).parents[2]


def launch(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    # `accelerate launch` starts CPU processes through MPI; torch's own launcher sets the same environment without it.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=90, check=False)


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    done = launch(["-m", "tests.engine.two_processes", str(tmp_path / "gradients.safetensors")], ROOT)
    assert done.returncode == 0, done.stderr
    theirs = load_file(tmp_path / "gradients.safetensors")
    losses = theirs.pop("losses").tolist()
    assert theirs.pop("stop").tolist() == [15]  # in all of them, and not the sum of what each received
    subject = make_subject(load_components(resolve("tiny")))
    ours, our_losses = gradients(subject, STAGE, make_accelerator(torch.device("cpu"), "float32"), 0)
    assert STAGE.batch_size == 8
    assert STAGE.name == ATTENTION.name
    assert distance(ours, theirs) < 1e-5
    assert losses == pytest.approx(dataclasses.astuple(our_losses), rel=1e-5)
    assert our_losses.attention_mean > 0 < our_losses.attention_variance


def test_the_whole_command_in_two_processes(tmp_path: Path) -> None:
    project = tmp_path / "p"
    init(project, images=[EXAMPLE], category="cat", model="tiny")
    done = launch(["-m", "attnbooth_cli", "train", str(project), "--smoke", "--json", "--device", "cpu"], tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events].count("done") == 1  # only one process reports
    assert sum(event["event"] == "step" for event in events) == 6
    assert (project / "concept" / "concept.json").exists()
    (run,) = (project / "runs").iterdir()
    assert events[-1]["report"] == str(run / "report.html")
    assert Path(events[-1]["report"]).is_file()
