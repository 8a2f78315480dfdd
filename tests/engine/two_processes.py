"""Run by two processes: adds up the gradients of one step and saves them (see test_distributed)."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from attnbooth_cli.engine.base_models import resolve
from attnbooth_cli.engine.conditioning import conditioning_of, recording
from attnbooth_cli.engine.devices import disband, make_accelerator
from attnbooth_cli.engine.families import load_components
from attnbooth_cli.engine.loop import add_over_processes, only_trainable, trainable_parameters
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH
from attnbooth_cli.engine.objective import accumulate_gradients
from attnbooth_cli.engine.session import Session
from attnbooth_cli.engine.weights import write_tensors
from tests.engine.conftest import make_source, make_subject

STAGE = replace(ATTNDREAMBOOTH.stages[1], batch_size=8, mean_weight=50.0, variance_weight=50.0)


def main(path: Path) -> None:
    accelerator = make_accelerator(torch.device("cpu"), "float32")
    subject = make_subject(load_components(resolve("tiny")))
    parameters = trainable_parameters(subject, STAGE)
    source = make_source(subject.components)
    with only_trainable(parameters), recording(STAGE, subject) as recorder:
        conditioning = conditioning_of(STAGE, subject, source, accelerator)
        losses = accumulate_gradients(STAGE, 0, subject, source, accelerator, conditioning, recorder, 0)
        add_over_processes(parameters, accelerator)
        # A signal that one of them received.
        asked = SimpleNamespace(accelerator=accelerator, should_stop=lambda: 15 * (accelerator.process_index == 1))
        agreed = Session._agreed_stop(asked)
        if accelerator.is_main_process:
            assert accelerator.num_processes == 2
            gradients = {name: parameter.grad for name, parameter in parameters.items()}
            told = {"losses": torch.tensor(dataclasses.astuple(losses)), "stop": torch.tensor([agreed])}
            write_tensors(path, {**gradients, **told})
        accelerator.wait_for_everyone()
    disband()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
