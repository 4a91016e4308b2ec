"""Which Python code a command may import as a classifier: only what its user named, never what a file names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from featgan.errors import UserError

CALLABLE_PATTERN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""The form of a SPEC that names Python code: `package.module:callable`."""

OTHER_PREFIXES = ("torchvision:", "timm:")
"""SPECs of this form that do not name Python code."""


class UntrustedCallableError(UserError):
    """A file names Python code that the user has not named; it was not imported."""


@dataclass(frozen=True)
class TrustedCallables:
    """The callables that may be imported: those that the user named, or all."""

    names: frozenset[str] = frozenset()
    trusts_all: bool = False

    def includes(self, spec: str) -> bool:
        """Return whether the SPEC names no Python code, or code that may be imported."""
        name = callable_name(spec)
        return name is None or self.trusts_all or name in self.names

    def extend(self, names: Iterable[str]) -> "TrustedCallables":
        """Return these callables and further ones."""
        return TrustedCallables(self.names | frozenset(names), self.trusts_all)


NO_CALLABLES = TrustedCallables()
ALL_CALLABLES = TrustedCallables(trusts_all=True)


def callable_name(spec: str) -> str | None:
    """Return `package.module:callable` if the SPEC has this form, without its options; else None."""
    location = spec.partition("?")[0]
    return location if CALLABLE_PATTERN.fullmatch(location) and not location.startswith(OTHER_PREFIXES) else None


def callable_names(specs: Iterable[str | None]) -> list[str]:
    """Return the callables among the SPECs, without duplicates, in order."""
    names = [callable_name(spec) for spec in specs if spec]
    return list(dict.fromkeys(name for name in names if name))


def trust_given_specs(specs: Iterable[str | None], trusts_all: bool = False) -> TrustedCallables:
    """Trust the callables among the SPECs that the user gave; with `trusts_all`, every callable."""
    return TrustedCallables(frozenset(callable_names(specs)), trusts_all)


def check_stored_spec(spec: str, trusted: TrustedCallables, source: str, option: str) -> None:
    """Raise UntrustedCallableError if a file names Python code that the user does not trust.

    `source` names the file and the key, and `option` the option that gives the SPEC on the command line instead.
    """
    if not trusted.includes(spec):
        raise UntrustedCallableError(
            f"{source}: names the Python code {callable_name(spec)}, and featgan does not run code that a file names; "
            f"if you trust it, give it with {option} {callable_name(spec)}, or add --trust-callables"
        )
