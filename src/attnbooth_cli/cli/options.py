"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from attnbooth_cli.engine.methods import MemoryName, StageName

Stage = StageName
Memory = MemoryName
Precision = Literal["auto", "float32", "bf16", "fp16"]

Project = Annotated[Path, typer.Argument(help="The concept project's folder.", show_default=False)]
Projects = Annotated[list[Path], typer.Argument(help="One or more concept projects.", show_default=False)]
SomeProjects = Annotated[
    list[Path] | None, typer.Argument(help="One or more concept projects; or --from.", show_default=False)
]
ProjectList = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="A text file of more of them, one folder a line, as on the command line; blank lines and # comments "
        "do not count. - for standard input.",
    ),
]
Executor = Annotated[
    Literal["here", "ray"],
    typer.Option(help="here: one after the other. ray: over a Ray cluster, this machine's cores without RAY_ADDRESS."),
]
Resources = Annotated[
    str | None,
    typer.Option(
        help="Of one concept, with --executor ray: cpu=2,gpu=0.5, or what else the cluster names; a GPU by default "
        "where the cluster has any, and a core."
    ),
]
Retries = Annotated[
    int, typer.Option(min=0, help="How often to resume a concept whose worker died, with --executor ray.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More messages, and tracebacks of failures.")]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto by default."),
]
RunReport = Annotated[
    bool, typer.Option("--report/--no-report", help="Write runs/NAME/report.html when the run is finished.")
]
PromptsFile = Annotated[Path | None, typer.Option("--prompts", help="A text file of prompts, one a line.")]
