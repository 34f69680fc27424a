"""Schemes by the name that stands in a study file: our own, and those of other packages.

Another package offers a scheme as an entry point of the group `fewscan.schemes`, its name the kind
and its value the class. Its distribution's name and version are part of a run's identity: they
stand in the spec and are hashed, as another version may compute something else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fewscan.experiments.schemes import SCHEMES, Scheme
from fewscan.storage.errors import RunError

GROUP = "fewscan.schemes"
RESERVED = ("kind", "package")
"""What stands beside the settings of a scheme in JSON."""


@dataclass(frozen=True)
class Package:
    """The distribution that a scheme comes from."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def kinds() -> dict[str, Package | None]:
    """All that there are here, each with the package that it comes from; None: it is our own.

    Raises `RunError` if a package offers a kind that is ours or another one's.
    """
    return {**dict.fromkeys(SCHEMES), **{kind: _package(it) for kind, it in _offered().items()}}


def scheme_class(kind: str, package: Package | None = None) -> type[Scheme]:
    """The scheme of a kind; of `package`, if it is known where it came from.

    Raises `RunError` if it is not here, or of another package or version, or no scheme.
    """
    here = kinds()
    if kind not in here or (package is not None and here[kind] != package):
        found = f", here is that of {here[kind] or 'fewscan itself'}" if kind in here else ""
        raise RunError(
            f"scheme {kind!r}{f' of {package}' if package else ''} is not known here{found}",
            expected=f"one of: {in_words()}",
            remedy=f"pip install {package.name}=={package.version}, on every machine that runs it"
            if package
            else "install the package that offers it, or use the version of fewscan that has it",
        )
    return SCHEMES[kind] if kind in SCHEMES else _loaded(_offered()[kind])


def package_of(scheme: Scheme) -> Package | None:
    """Where a scheme comes from; None: it is our own."""
    if SCHEMES.get(scheme.kind) is type(scheme):
        return None
    offer = _offered().get(scheme.kind)
    return None if offer is None else _package(offer)


def in_words() -> str:
    """The kinds that there are, and whose they are."""
    return ", ".join(f"{kind} (of {it})" if it else kind for kind, it in kinds().items())


@cache
def _offered() -> dict[str, EntryPoint]:
    """What other packages offer here, looked up once a process; nothing of theirs is run."""
    offered: dict[str, EntryPoint] = {}
    for offer in entry_points(group=GROUP):
        taken = offered.get(offer.name)
        if offer.name in SCHEMES or taken is not None:
            whose = f"of {_package(taken)}" if taken else "fewscan's own"
            raise RunError(
                f"{_package(offer)} offers a scheme named {offer.name!r}, a name that is {whose}",
                where=f"entry point {offer.name} = {offer.value} of group {GROUP}",
                expected="a name of its own",
                remedy="rename it in its package, or uninstall that",
            )
        offered[offer.name] = offer
    return offered


def _package(offer: EntryPoint) -> Package:
    assert offer.dist is not None, "entry points of installed distributions have one"
    return Package(offer.dist.name, offer.dist.version)


@cache
def _loaded(offer: EntryPoint) -> type[Scheme]:
    where = f"entry point {offer.name} = {offer.value} of {_package(offer)}"
    try:
        found: Any = offer.load()
    except Exception as error:
        raise RunError(
            f"scheme {offer.name!r} cannot be loaded ({type(error).__name__}: {error})",
            where=where,
            expected="a module that can be imported, with that class in it",
            remedy=f"mend {_package(offer)}, or install another version of it",
        ) from error
    if problem := _problem(offer.name, found):
        raise RunError(
            f"scheme {offer.name!r} {problem}",
            where=where,
            expected="a frozen dataclass of its settings that inherits from fewscan's Scheme, "
            f"with kind = {offer.name!r}",
            remedy=f"mend {_package(offer)}; docs/schemes.md has an example",
        )
    scheme: type[Scheme] = found
    return scheme


def _problem(kind: str, found: Any) -> str | None:
    if not (isinstance(found, type) and issubclass(found, Scheme)):
        return "is no Scheme"
    if not is_dataclass(found) or "__dataclass_fields__" not in vars(found):
        return "is no dataclass"
    if found.__hash__ is None:  # as that of a dataclass which is not frozen
        return "is not frozen"
    if getattr(found, "kind", None) != kind:
        return f"calls its kind {getattr(found, 'kind', None)!r}"
    taken = sorted({f.name for f in fields(found)} & set(RESERVED))
    return f"has a setting named {taken[0]}, which is taken" if taken else None
