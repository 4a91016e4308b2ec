"""Errors of servers: those that a later attempt may not have, and those that the user must fix, in one line."""

import errno
from collections.abc import Iterator

from featgan.errors import TrainingInterrupted, UserError
from featgan.system.locations import Location
from featgan.system.os_errors import os_error_reason
from featgan.system.plain_text import format_one_line

TRANSIENT_STATUSES = frozenset({408, 425, 429})
"""Statuses of HTTP, besides 5xx, after which a later attempt may succeed."""

DENIED_STATUSES = frozenset({401, 403, 407})
MISSING_STATUSES = frozenset({404, 410})

TRANSIENT_NUMBERS = frozenset({errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.ESTALE, errno.EINTR, errno.EAGAIN})

TRANSIENT_CLASSES = frozenset(
    {
        *("ConnectionError", "TimeoutError", "gaierror", "herror", "IncompleteRead", "RemoteProtocolError"),
        *("ClientConnectionError", "ClientPayloadError", "FSTimeoutError", "ServerTimeoutError", "TransportError"),
        *("HTTPClientError", "EndpointConnectionError", "ResponseStreamingError", "IncompleteReadError"),
        *("RetriesExceededError", "ChecksumError", "RequestException", "FileExpired"),
    }
)
"""Classes of errors of aiohttp, botocore, httpx and requests after which a later attempt may succeed."""

INTERRUPTED_CLASSES = frozenset({"ClientConnectionError", "ClientPayloadError"})
"""Those of aiohttp, whose causes contain the status 400 of an answer that is not complete."""

CREDENTIAL_CLASSES = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"),
        *(
            "DefaultCredentialsError",
            "RefreshError",
            "ProfileNotFound",
            "TokenRetrievalError",
            "UnauthorizedSSOTokenError",
        ),
        *("LocalTokenNotFoundError", "GatedRepoError"),
    }
)

CERTIFICATE_CLASSES = frozenset({"ClientConnectorCertificateError", "SSLCertVerificationError"})

URL_CLASSES = frozenset(
    {"InvalidURL", "NonHttpUrlClientError", "InvalidUrlClientError", "ParamValidationError", "HFValidationError"}
)

EXTRAS = {"s3": "s3", "gs": "gcs"}
"""The extra of featgan that each scheme needs."""

CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "hf": "set HF_TOKEN",
    "http": "write user and password to ~/.netrc",
    "https": "write user and password to ~/.netrc",
}
"""Where the client of each scheme finds credentials."""

CHECK = "check the URL"
MISSING_FILE = "no such file on the server"


class TransientError(Exception):
    """An error of a server after which another attempt may succeed; the message is the reason.

    `delay` is the number of seconds that the server asks to wait.
    """

    def __init__(self, reason: str, delay: float = 0.0) -> None:
        super().__init__(reason)
        self.delay = delay


def convert_error(error: Exception, location: Location) -> Exception:
    """Return a TransientError, or a UserError with the redacted URL, for an error of a read; else the error itself.

    The messages of the libraries are not used: they contain the complete URL.
    """
    if isinstance(error, UserError | TransientError | TrainingInterrupted | MemoryError):
        return error
    if not location.is_remote:
        return convert_local_error(error, location)
    chain = list(error_chain(error))
    classes = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    problem = describe_permanent(error, location, classes)
    if problem is not None:
        return UserError(f"{location}: {problem}")
    if INTERRUPTED_CLASSES & {kind.__name__ for kind in type(error).__mro__}:
        return TransientError(describe_connection(error, classes))
    if "HttpProcessingError" in classes:  # aiohttp gives it the status 400, which the server has not sent
        return TransientError("the answer of the server is not valid HTTP")
    status = next(filter(None, map(status_of, chain)), 0)
    if status in TRANSIENT_STATUSES or status >= 500:
        return TransientError(f"the server answers with HTTP status {status}", retry_delay(error))
    if status >= 300:
        return UserError(f"{location}: {describe_status(status, location)}")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{location}: {describe_status(404, location)}")
    if isinstance(error, PermissionError):
        return UserError(f"{location}: {describe_status(403, location)}")
    if classes & TRANSIENT_CLASSES or (isinstance(error, OSError) and error.errno in TRANSIENT_NUMBERS):
        return TransientError(describe_connection(error, classes))
    if isinstance(error, OSError):
        return UserError(f"{location}: cannot be read ({format_one_line(os_error_reason(error))[:200]}); {CHECK}")
    return error


def convert_local_error(error: Exception, location: Location) -> Exception:
    """Return the error of a read from a disk; a shared file system may answer again later."""
    if not isinstance(error, OSError):
        return error
    reason = format_one_line(os_error_reason(error))
    if error.errno in TRANSIENT_NUMBERS:
        return TransientError(reason)
    return UserError(f"{location}: {reason}; check the path")


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that caused it."""
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def describe_permanent(error: Exception, location: Location, classes: set[str]) -> str | None:
    """Return the problem and the remedy of an error that has its own class and does not end by waiting."""
    if isinstance(error, ImportError):
        extra = EXTRAS.get(location.scheme)
        package = f"'featgan[{extra}]'" if extra else format_one_line(error.name or "huggingface_hub")
        return f"{location.scheme}:// needs another package; pip install {package}"
    if "TooManyRedirects" in classes:
        return f"the server redirects in a loop; {CHECK}"
    if classes & CREDENTIAL_CLASSES:
        return f"no valid credentials; {CREDENTIALS[location.scheme]}"
    if classes & CERTIFICATE_CLASSES:
        return "the certificate of the server is not valid; check the name of the server and the clock"
    if classes & URL_CLASSES:
        return f"not a valid URL; {CHECK}"
    return None


def describe_status(status: int, location: Location) -> str:
    """Return the problem and the remedy of a status of HTTP."""
    if status in MISSING_STATUSES:
        return f"{MISSING_FILE}; {CHECK}"
    if status in DENIED_STATUSES:
        return f"access denied; {CREDENTIALS.get(location.scheme, CHECK)}"
    return f"the server answers with HTTP status {status}; {CHECK}"


def status_of(error: BaseException) -> int:
    """Return the status of HTTP that an error contains; 0 if there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        metadata = response.get("ResponseMetadata")
        candidates = [metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None]
    else:
        candidates = [getattr(error, "status", None), getattr(response, "status_code", None)]
        candidates += [] if any(candidates) else [getattr(error, "code", None)]
    return next((int(value) for value in candidates if isinstance(value, int) and 300 <= value < 600), 0)


def retry_delay(error: Exception) -> float:
    """Return the seconds in the header Retry-After; 0 if there is none."""
    headers = getattr(error, "headers", None) or {}
    text = str(headers.get("Retry-After", ""))
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def describe_connection(error: Exception, classes: set[str]) -> str:
    """Return why a server cannot be reached, in a few words."""
    if "gaierror" in classes or "ClientConnectorDNSError" in classes:
        return "the name of the server is not known"
    if classes & {"TimeoutError", "FSTimeoutError", "ReadTimeoutError", "ConnectTimeoutError", "TimeoutException"}:
        return "the server does not answer"
    numbers = {getattr(cause, "errno", None) for cause in error_chain(error)}
    if errno.ECONNREFUSED in numbers:
        return "the connection was refused"
    return "the connection was interrupted"
