"""The HTTP routes of the page: check the size and form of every request and pass it to the session."""

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from featgan.errors import UserError
from featgan.explore.access_control import AccessMiddleware, AccessPolicy
from featgan.explore.edit_request import MAX_REQUEST_BYTES, EditRequest, parse_edit_request
from featgan.explore.export import export_gif, export_png
from featgan.explore.image_store import MAX_UPLOAD_BYTES, ImageNotFoundError
from featgan.explore.latest_request_queue import LatestRequestQueue, QueueFullError, SupersededError
from featgan.explore.page import NUM_IMAGES, build_explore_page, images_to_json, load_static_files
from featgan.explore.session import ExploreSession, encode_png
from featgan.system.os_errors import describe_os_error

BODY_TIMEOUT_SECONDS = 30
"""Time limit for receiving the body of a request."""
MAX_CONCURRENT_UPLOADS = 2
"""Maximum number of uploads in progress."""
MAX_SEED = (1 << 31) - 1


class HttpError(Exception):
    """A rejected request: the status and a one-line message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the body of a request, at most `max_bytes`.

    Raises HttpError if it is larger, takes longer than BODY_TIMEOUT_SECONDS, or is not complete.
    """
    content_length = request.headers.get("content-length", "0")
    if not content_length.isdecimal() or len(content_length) > 20 or int(content_length) > max_bytes:
        raise HttpError(413, f"request body: larger than {max_bytes >> 10} KiB")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise HttpError(413, f"request body: larger than {max_bytes >> 10} KiB")
    except TimeoutError:
        raise HttpError(408, f"request body: not received within {BODY_TIMEOUT_SECONDS} seconds") from None
    except ClientDisconnect:
        raise HttpError(400, "request body: the client disconnected") from None
    return bytes(body)


class ExploreServer:
    """The request handlers of a session; every error response is one line of plain text."""

    def __init__(self, session: ExploreSession) -> None:
        self.session = session
        self.request_queue = LatestRequestQueue()
        self.num_uploads = 0
        self.static_files = load_static_files()
        self.page_html = build_explore_page(session)

    async def get_page(self, request: Request) -> Response:
        """Return the page."""
        return HTMLResponse(self.page_html)

    async def get_static_file(self, request: Request) -> Response:
        """Return a style sheet or script."""
        content, kind = self.static_files[request.url.path.removeprefix("/")]
        return Response(content, media_type=kind)

    async def list_images(self, request: Request) -> Response:
        """Return a sample of the validation images, chosen by `?seed=N`."""
        seed = request.query_params.get("seed", "0")
        if not seed.isdecimal() or len(seed) > 10 or int(seed) > MAX_SEED:
            raise HttpError(400, f"seed: must be an integer from 0 to {MAX_SEED}")
        stored_images = await asyncio.to_thread(self.session.image_store.sample, NUM_IMAGES, int(seed))
        return JSONResponse(images_to_json(stored_images))

    async def get_image(self, request: Request) -> Response:
        """Return an image as PNG, at the image size of the first run."""
        stored_image = self.session.image_store.find_image(request.path_params["id"])
        image_size = self.session.first_run.model.metadata.image_size
        return Response(encode_png(stored_image.images_by_size[image_size]), media_type="image/png")

    async def upload_image(self, request: Request) -> Response:
        """Store an uploaded image: the body is the file, `?name=` its name."""
        if not self.session.accepts_uploads:
            raise HttpError(403, "the classifier is not available, so only validation images can be edited")
        if self.num_uploads >= MAX_CONCURRENT_UPLOADS:
            raise HttpError(429, f"{MAX_CONCURRENT_UPLOADS} uploads are in progress; try again")
        self.num_uploads += 1
        try:
            content = await read_body(request, MAX_UPLOAD_BYTES)
            name = request.query_params.get("name", "")
            stored_image = await asyncio.to_thread(self.session.image_store.add_upload, content, name)
        finally:
            self.num_uploads -= 1
        return JSONResponse(images_to_json([stored_image])[0])

    async def post_edit(self, request: Request) -> Response:
        """Apply an edit with every run and return the results as JSON."""
        edit_request = await self.read_edit_request(request)
        return JSONResponse(
            await self.request_queue.submit(
                edit_request.client_id, lambda: self.session.edit_with_all_runs(edit_request)
            )
        )

    async def save_png(self, request: Request) -> Response:
        """Return an edit as PNG image."""
        return Response(await self.export_edit(request, export_png), media_type="image/png")

    async def save_gif(self, request: Request) -> Response:
        """Return an edit as GIF animation."""
        return Response(await self.export_edit(request, export_gif), media_type="image/gif")

    async def export_edit(self, request: Request, export: Callable[[ExploreSession, EditRequest], bytes]) -> bytes:
        """Export the requested edit in the worker thread; an export does not supersede the client's pending edit."""
        edit_request = await self.read_edit_request(request)
        return await self.request_queue.submit(
            f"{edit_request.client_id} export", lambda: export(self.session, edit_request)
        )

    async def read_edit_request(self, request: Request) -> EditRequest:
        """Parse the edit request in the body; it must be JSON, which an HTML form of another site cannot send."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise HttpError(415, "Content-Type: an edit request must be application/json")
        return parse_edit_request(await read_body(request, MAX_REQUEST_BYTES))


def text_response(status: int, message: str) -> Response:
    """Return a response with a message on one line."""
    return PlainTextResponse(" ".join(message.split()) + "\n", status)


async def error_response(request: Request, error: Exception) -> Response:
    """Return the response for a rejected or failed request."""
    if isinstance(error, HttpError):
        return text_response(error.status, str(error))
    if isinstance(error, SupersededError):
        return text_response(409, "superseded by a newer request")
    if isinstance(error, QueueFullError):
        return text_response(503, "too many requests are pending; try again")
    if isinstance(error, OSError):
        return text_response(500, describe_os_error(error) or f"{type(error).__name__}: {error}")
    return text_response(404 if isinstance(error, ImageNotFoundError) else 400, str(error))


def build_app(session: ExploreSession, policy: AccessPolicy) -> ASGIApp:
    """Return the ASGI application that serves the page of a session."""
    server = ExploreServer(session)
    routes = [
        Route("/", server.get_page),
        *(Route(f"/{name}", server.get_static_file) for name in server.static_files),
        Route("/images", server.list_images),
        Route("/images", server.upload_image, methods=["POST"]),
        Route("/images/{id:str}", server.get_image),
        Route("/edit", server.post_edit, methods=["POST"]),
        Route("/save.png", server.save_png, methods=["POST"]),
        Route("/save.gif", server.save_gif, methods=["POST"]),
    ]
    errors = dict.fromkeys((UserError, HttpError, SupersededError, QueueFullError, OSError), error_response)
    return Starlette(routes=routes, exception_handlers=errors, middleware=[Middleware(AccessMiddleware, policy=policy)])
