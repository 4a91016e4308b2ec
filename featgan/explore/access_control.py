"""Access control of the page: reject requests from other sites, and require a token outside the loopback interface.

A page of another site, open in the same browser, can send requests to a server on the loopback interface. Three
headers reveal such requests: Host (DNS rebinding), Origin and Sec-Fetch-Site.
"""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Headers of every response: the browser loads nothing from other sites, embeds it nowhere and caches nothing."""

TOKEN_REQUIRED_MESSAGE = "access token: missing or wrong; open the address that `featgan explore` printed\n"
OTHER_SITE_MESSAGE = "requests from other sites are rejected\n"


@dataclass(frozen=True)
class AccessPolicy:
    """Which requests the server accepts."""

    host_names: frozenset[str] = frozenset({"localhost"})
    allows_any_ip: bool = False  # accept any IP address in the Host header, not only loopback addresses
    token: str | None = None  # None: no token is required
    cookie_name: str = "featgan"


def build_access_policy(host: str, address: str, port: int, token: str | None) -> AccessPolicy:
    """Return the policy of a server started with `--host host` that listens on the IP `address`."""
    machine_names = frozenset(name.lower() for name in (host, "localhost", socket.gethostname(), socket.getfqdn()))
    is_local = ipaddress.ip_address(address).is_loopback
    # Browsers share cookies between the ports of a host, so each server uses its own cookie name.
    return AccessPolicy(frozenset({"localhost"}) if is_local else machine_names, not is_local, token, f"featgan-{port}")


def is_allowed_host(policy: AccessPolicy, host: str) -> bool:
    """Return whether a Host header names this server.

    IP addresses are safe: DNS rebinding needs a name that resolves to this machine.
    """
    try:
        host_name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        address = ipaddress.ip_address(host_name)
    except ValueError:
        return host_name in policy.host_names
    return policy.allows_any_ip or address.is_loopback


def access_error(policy: AccessPolicy, request: Request) -> tuple[int, str] | None:
    """Return the status and the one-line message of a rejected request, or None if the request is allowed."""
    hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
    if len(hosts) != 1 or not is_allowed_host(policy, hosts[0]):
        return 403, "Host: not a name of this server\n"
    if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
        return 403, f"Origin: {OTHER_SITE_MESSAGE}"
    is_page_request = request.url.path == "/" and request.method == "GET"
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_page_request:
        return 403, f"Sec-Fetch-Site: {OTHER_SITE_MESSAGE}"
    if policy.token is not None and not has_valid_token(policy.token, policy.cookie_name, request):
        return 401, TOKEN_REQUIRED_MESSAGE
    return None


def has_valid_token(token: str, cookie_name: str, request: Request) -> bool:
    """Return whether the cookie, the Authorization header or the query of the page's own URL contains the token."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    candidates = [request.cookies.get(cookie_name, ""), bearer if scheme.lower() == "bearer" else ""]
    if request.url.path == "/":
        candidates.append(request.query_params.get("token", ""))
    # A list, not a generator: every candidate is compared, so that the time does not depend on the match.
    matches = [compare_digest(candidate.encode(), token.encode()) for candidate in candidates]
    return any(matches)


class AccessMiddleware:
    """ASGI middleware that applies the access policy and adds the security headers."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        headers = dict(SECURITY_HEADERS)
        error = access_error(self.policy, request)
        if error is None and self.policy.token is not None and request.url.path == "/":
            # The page is opened with the token in its URL; its later requests carry the cookie.
            headers["set-cookie"] = f"{self.policy.cookie_name}={self.policy.token}; HttpOnly; SameSite=Strict; Path=/"
        handler = self.app if error is None else PlainTextResponse(error[1], error[0])
        await handler(scope, receive, with_response_headers(send, headers))


def with_response_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """Return a `send` function that adds the headers to the response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers
