"""Locations of files: local paths and URLs, which may contain a password that no message shows."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from featgan.errors import UserError
from featgan.system.plain_text import CONTROL_CHARACTER, format_one_line

REMOTE_SCHEMES = ("http", "https", "s3", "gs", "hf")

HTTP_SCHEMES = ("http", "https")

SCHEME_ALIASES = {"gcs": "gs"}

ALLOWED_SCHEMES = "use a path or a URL with file://, http://, https://, s3://, gs:// or hf://"

MAX_URL_LENGTH = 4096
"""Characters of a URL; servers accept less."""

URL_PATTERN = re.compile(r"(?s)([A-Za-z][A-Za-z0-9+.-]*)://(.*)")

COMMAND_PATTERN = re.compile(r"(?i)(pipe|file|https?|s3|gs|gcs|hf):")
"""Starts a URL without slashes, such as `pipe:COMMAND`, which webdataset passes to a shell."""

AUTHORITY_PATTERN = re.compile(r"(?:[^@/?#\\\s]*@)?(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
"""User and password, host or bucket, and port."""

HUB_PARTS = 3
"""Parts of the name of a repository of Hugging Face: `datasets/OWNER/NAME`."""


@dataclass(frozen=True)
class Location:
    """A local path or a URL. `str` and `repr` contain no password and no query, which may contain a signature."""

    scheme: str
    """`path`, `file`, `http`, `https`, `s3`, `gs` or `hf`."""
    raw: str = field(repr=False)
    """The path or the complete URL, which may contain a password: not for messages and files."""

    @classmethod
    def parse(cls, text: str) -> "Location":
        """Return the location that a text names. Raises UserError for a URL that is not allowed.

        A text that does not start with SCHEME:// is a path.
        """
        match = URL_PATTERN.match(text)
        if match is None:
            if COMMAND_PATTERN.match(text) or "://" in text:
                raise UserError(f"{redact_text(text)}: not a URL; {ALLOWED_SCHEMES}")
            return cls("path", text)
        scheme = SCHEME_ALIASES.get(match[1].lower(), match[1].lower())
        check_url(text, scheme, match[2])
        return cls(scheme, f"{scheme}://{match[2].partition('#')[0] if scheme in HTTP_SCHEMES else match[2]}")

    @classmethod
    def from_path(cls, path: Path) -> "Location":
        """Return the location of a local file or folder."""
        return cls("path", str(path))

    @property
    def is_remote(self) -> bool:
        """Whether the files must be downloaded."""
        return self.scheme in REMOTE_SCHEMES

    @property
    def path(self) -> Path:
        """The local path. Raises UserError for a URL of another computer."""
        if self.is_remote:
            raise UserError(f"{self.redacted}: is a URL, but a local path is needed here; download the files first")
        if self.scheme == "path":
            return Path(self.raw)
        return Path(unquote(self.raw.removeprefix("file://").removeprefix("localhost")))

    @property
    def authority(self) -> str:
        """The server, bucket or repository, without a password; empty for a local path."""
        if not self.is_remote:
            return ""
        parts = self.redacted.removeprefix(f"{self.scheme}://").split("/")
        return "/".join(parts[: HUB_PARTS if self.scheme == "hf" else 1])

    @property
    def name(self) -> str:
        """The last part of the path."""
        return unquote(self.redacted.rstrip("/").rpartition("/")[2]) if self.is_remote else self.path.name

    @property
    def redacted(self) -> str:
        """The path or URL without user, password and query, for messages and files."""
        if not self.is_remote:
            return self.raw
        authority, slash, path = self.raw.removeprefix(f"{self.scheme}://").partition("?")[0].partition("/")
        return f"{self.scheme}://{authority.rpartition('@')[2]}{slash}{path}"

    @property
    def has_secret(self) -> bool:
        """Whether the URL contains a user, a password or a query."""
        return self.raw != self.redacted

    @property
    def root(self) -> str:
        """The start of the URL, up to the end of the server, bucket or repository."""
        parts = self.raw.partition("?")[0].split("/")
        return "/".join(parts[: 2 + (HUB_PARTS if self.scheme == "hf" else 1)])

    @property
    def parent(self) -> "Location":
        """The folder of this file."""
        if not self.is_remote:
            return Location.from_path(self.path.parent)
        before, mark, query = self.raw.partition("?")
        folder = before.rstrip("/").rpartition("/")[0]
        return Location(self.scheme, (folder if len(folder) > len(self.root) else self.root) + mark + query)

    def join(self, relative: str) -> "Location":
        """Return the location of a file in this folder; a query is kept.

        Raises UserError if a remote location would be outside its server, bucket or repository.
        """
        if not self.is_remote:
            return Location.from_path(self.path / relative)
        before, mark, query = self.raw.partition("?")
        parts = before[len(self.root) :].strip("/").split("/")
        for part in relative.split("/"):
            if part == ".." and parts not in ([], [""]):
                parts.pop()
            elif part == ".." or CONTROL_CHARACTER.search(part) or "\n" in part or "\t" in part:
                raise UserError(f"{self.redacted}: contains no file {format_one_line(relative)!r}")
            elif part not in ("", "."):
                parts.append(escape_url_path(self.scheme, part))
        return Location(self.scheme, "/".join([self.root, *filter(None, parts)]) + mark + query)

    def absolute(self) -> "Location":
        """Return the location, with a path that does not depend on the working folder."""
        return self if self.is_remote else Location.from_path(self.path.absolute())

    def resolve(self, reference: str) -> "Location":
        """Return the location that a file in this folder names: relative to the folder, an absolute path or a URL.

        A file behind a URL may be written by anyone, so it may name only files of the same server, bucket or
        repository. Raises UserError otherwise.
        """
        try:
            location = Location.parse(reference)
        except UserError as error:
            raise UserError(f"{self.redacted}: names {error}") from None
        if not location.is_remote and "\0" in str(location.path):
            raise UserError(f"{self.redacted}: contains no file {format_one_line(reference)!r}")
        if location.scheme == "path" and not (self.is_remote and reference.startswith("/")):
            return self.join(reference)
        if self.is_remote and (location.scheme, location.authority) != (self.scheme, self.authority):
            raise UserError(
                f"{self.redacted}: names {format_one_line(location.redacted)}, which is not on {self.authority}; "
                "only files of the same server are read"
            )
        return Location(self.scheme, self.root + location.raw[len(location.root) :]) if self.is_remote else location

    def __str__(self) -> str:
        return self.redacted

    def __repr__(self) -> str:
        return f"Location({self.redacted!r})"


def check_url(text: str, scheme: str, rest: str) -> None:
    """Raise UserError if a URL is not allowed."""
    shown = redact_text(text)
    if scheme not in (*REMOTE_SCHEMES, "file"):
        raise UserError(f"{shown}: unknown scheme {scheme!r}; {ALLOWED_SCHEMES}")
    if CONTROL_CHARACTER.search(text) or "\n" in text or "\t" in text:
        raise UserError(f"{shown}: contains a control character; remove it")
    authority = split_authority(rest)
    if "::" in rest[len(authority) :]:
        raise UserError(f"{shown}: contains '::'; a chain of URLs is not supported, {ALLOWED_SCHEMES}")
    if len(text) > MAX_URL_LENGTH:
        raise UserError(f"{shown[:80]}...: is longer than {MAX_URL_LENGTH} characters")
    if scheme == "file":
        if authority not in ("", "localhost") or not rest.removeprefix("localhost").startswith("/"):
            raise UserError(f"{shown}: names the computer {authority!r}; write file:///PATH with three slashes")
    elif not AUTHORITY_PATTERN.fullmatch(authority):
        raise UserError(f"{shown}: names no server or bucket; write {scheme}://NAME/...")


def split_authority(rest: str) -> str:
    """Return the part of a URL between :// and the path, query or fragment."""
    return re.split("[/?#]", rest, maxsplit=1)[0]


def escape_url_path(scheme: str, path: str) -> str:
    """Return a path as it is written in a URL: characters that have a meaning in a URL are escaped for http."""
    return quote(path, safe="/!$&'()*+,;=:@~") if scheme in HTTP_SCHEMES else path


def redact_text(text: str) -> str:
    """Return a text that may be a URL on one line, without user, password and query."""
    start, slashes, rest = text.partition("://")
    authority = split_authority(rest)
    if not slashes or not authority:
        return format_one_line(text)
    if not AUTHORITY_PATTERN.fullmatch(authority):
        return format_one_line(f"{start}://...")  # any part of it may be a part of a password
    path = re.split("[?#]", rest[len(authority) :], maxsplit=1)[0]
    return format_one_line(f"{start}://{authority.rpartition('@')[2]}{path}")


def redact_urls(text: str) -> str:
    """Return a text on one line, without user, password and query of each URL in it."""
    return format_one_line(re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://\S*", lambda match: redact_text(match[0]), text))
