"""Optimization profiles: the batch sizes that an engine is compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt.graph_check import CheckedGraph
from optimizer.engines.tensorrt.options import Options, Profile
from optimizer.errors import UsageError

__all__ = ["DEFAULT_PROFILE", "ProfileRange", "batch_profiles", "pick_profile"]

DEFAULT_PROFILE: Profile = (1, 8, 32)


def batch_profiles(graph: CheckedGraph, settings: BuildSettings, options: Options) -> list[Profile]:
    """The profiles of a build; none for a graph with a fixed batch.

    Raises:
        UsageError: A profile is invalid or contradicts the graph.
    """
    requested = [*([settings.profile] if settings.profile else []), *options.profiles]
    for profile in requested:
        _check(profile)
    if graph.batch is not None:
        _check_fixed(graph, settings, requested)
        return []
    if settings.batch is not None:
        if settings.batch < 1:
            raise UsageError(f"a batch of {settings.batch}", hint="--batch 1 or more")
        fixed = (settings.batch,) * 3
        if any(profile != fixed for profile in requested):
            raise UsageError(
                f"a fixed batch of {settings.batch} and profile {_colon_form(requested[0])} contradict",
                hint="give one of them",
            )
        return [fixed]
    return requested or [DEFAULT_PROFILE]


def _check(profile: Profile) -> None:
    low, best, high = profile
    if low < 1:
        raise UsageError(
            f"profile {_colon_form(profile)} starts at batch {low}", hint="start at 1 or more"
        )
    if not low <= best <= high:
        raise UsageError(
            f"profile {_colon_form(profile)} is not in ascending order",
            hint="--profile min:opt:max, as in 1:8:32",
        )


def _check_fixed(graph: CheckedGraph, settings: BuildSettings, requested: list[Profile]) -> None:
    fixed = graph.batch
    wrong = next((p for p in requested if p != (fixed,) * 3), None)
    if wrong is not None:
        raise UsageError(
            f"{graph.path.name} has a fixed batch of {fixed}, the profile is {_colon_form(wrong)}",
            hint="export it with --batch dynamic, or leave the profile out",
        )
    if settings.batch is not None and settings.batch != fixed:
        raise UsageError(
            f"{graph.path.name} has a fixed batch of {fixed}, not {settings.batch}",
            hint=f"export it with --batch {settings.batch} or --batch dynamic",
        )


def _colon_form(profile: Profile) -> str:
    return ":".join(map(str, profile))


@dataclass(frozen=True)
class ProfileRange:
    """The batch sizes that profile number ``index`` of an engine accepts."""

    index: int
    low: int
    best: int
    high: int

    def takes(self, images: int) -> bool:
        """Whether a batch of this size runs without padding."""
        return self.low <= images <= self.high


def pick_profile(profiles: list[ProfileRange], images: int) -> tuple[ProfileRange, int]:
    """The profile for a batch, and how many of its images to compute at once.

    The tightest profile that accepts the batch. If the batch is too large for all of them, the
    largest profile with its maximum (the batch is split); if it is too small, the one with the
    smallest minimum (the batch is padded).

    Returns:
        The profile and the number of images, including padding.
    """
    fitting = [profile for profile in profiles if profile.takes(images)]
    if fitting:
        return min(fitting, key=lambda p: (abs(p.best - images), p.high)), images
    largest = max(profiles, key=lambda p: p.high)
    if images > largest.high:
        return largest, largest.high
    above = min((p for p in profiles if p.low > images), key=lambda p: p.low)
    return above, above.low
