"""What differs between plans, and between a run's plan and what was written down or said since."""

from __future__ import annotations

import dataclasses
from typing import Any

from attnbooth_cli.engine.layers import DEFAULTS, ENVIRONMENT, MANIFEST, NO_REGULARISER, SMOKE, SPOKEN, settings_in
from attnbooth_cli.engine.plan import NOT_IDENTITY, Plan, settings_of
from attnbooth_cli.project.manifest import Manifest

_STRONGER = {ENVIRONMENT, *SPOKEN, SMOKE, NO_REGULARISER}
"""Origins that go before the manifest."""
_HARMLESS = {f"train.{key}" for key in NOT_IDENTITY - {"schedule"}}
"""Settings that change how a run is done and not what it learns; they may be another's any time."""
_CONCEPT_KEYS = ("category", "token", "vectors")


def continued(recorded: Plan, asked: Plan) -> Plan:
    """A run's own plan, with what was said anew on the command line and does not decide what is learned."""
    said = {key.removeprefix("train."): key for key in sorted(_HARMLESS)}
    spoken = (*SPOKEN, *([f"--memory {asked.memory}"] if asked.origins["train.memory"] in SPOKEN else []))
    changes = {key: getattr(asked, key) for key, name in said.items() if asked.origins[name] in spoken}
    origins = {name: asked.origins[name] for key, name in said.items() if key in changes}
    return dataclasses.replace(recorded, **changes, origins={**recorded.origins, **origins})


def differences(old: Plan, new: Plan) -> tuple[str, ...]:
    """What makes `new` another experiment than `old`, one phrase per setting; another method says it all."""
    before, after = old.identity, new.identity
    keys = dict.fromkeys([*before, *after] if old.method == new.method else ["method"])
    changed = [key for key in keys if before.get(key) != after.get(key)]
    before, after = ({**{key: DEFAULTS.get(f"train.{key}") for key in keys}, **its} for its in (before, after))
    return tuple(f"{key}: {before[key]} -> {after[key]}" for key in changed)


def edited(plan: Plan, manifest: Manifest) -> tuple[str, ...]:
    """What a run's project has come to say otherwise of what is learned, one phrase per setting.

    What a flag or the environment said when the run was begun still goes before the manifest. The base model and the
    pictures are compared by their bytes, elsewhere.
    """
    now = settings_in(manifest.train)
    concept = {key: (getattr(plan.concept, key), getattr(manifest.concept, key)) for key in _CONCEPT_KEYS}
    found: dict[str, tuple[Any, Any]] = {f"concept.{key}": pair for key, pair in concept.items()}
    for key, (value, origin) in settings_of(plan).items():
        if key in _HARMLESS or origin in _STRONGER:
            continue
        if key in now:
            found[key] = (value, now[key])
        elif origin == MANIFEST:
            found[key] = (value, "not said")
    return tuple(f"{key}: {before} -> {after}" for key, (before, after) in found.items() if before != after)
