"""The page of `raydapt review`: a server on this machine alone, for whoever has the address with its token.

What keeps others out: it listens on 127.0.0.1; every address begins with a random token; a request must name this
machine as its host, so that no foreign name may be pointed here (DNS rebinding); what changes something must be JSON
from this very page (Origin), so that no other page can send it; images are found by id among those of the review, never
by path; pixels are encoded anew; the page runs its own script alone (Content-Security-Policy) and loads nothing from
elsewhere.
"""

import json
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from raydapt.errors import UserError
from raydapt.review.results import headline
from raydapt.review.review import Review
from raydapt.verbs.review_images import ReviewImages, media_type

HOSTS = ("127.0.0.1", "localhost")
_MOST_BODY_BYTES = 4096
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
Handler = Callable[[Request], Awaitable[Response]]


def make_app(review: Review, images: ReviewImages, token: str) -> Starlette:
    """The server's application.

    Args:
        review: What is reviewed.
        images: Where the images come from.
        token: The first step of every address.
    """
    page = _Page(review, images, token)
    routes = [
        Route("/{token}/", page.show, methods=["GET"]),
        Route("/{token}/image/{id}", page.image, methods=["GET"]),
        Route("/{token}/next", page.next, methods=["POST"]),
        Route("/{token}/answer", page.answer, methods=["POST"]),
        Route("/{token}/undo", page.undo, methods=["POST"]),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
        Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
    ]
    return Starlette(routes=routes, middleware=middleware)


class _Page:
    def __init__(self, review: Review, images: ReviewImages, token: str) -> None:
        self._review, self._images, self._token = review, images, token
        loader = FileSystemLoader(Path(__file__).parent / "templates")
        self._templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)

    async def show(self, request: Request) -> Response:
        if not self._knows(request):
            return _refused()
        nonce = secrets.token_urlsafe(16)
        html = self._templates.get_template("review.html.j2").render(
            nonce=nonce, classes=self._review.population.classes, runs=self._review.population.names[1:]
        )
        policy = (
            f"default-src 'none'; img-src 'self' data:; connect-src 'self'; script-src 'nonce-{nonce}'; "
            f"style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    async def image(self, request: Request) -> Response:
        id_ = request.path_params["id"]
        if not self._knows(request) or id_ not in self._review.session.index_of:
            return _refused()
        data = await run_in_threadpool(self._images.read, id_, self._review.ahead_of(id_))
        if data is None:
            return PlainTextResponse("This image is gone or cannot be read.", status_code=404)
        return Response(data, media_type=media_type(data))

    async def next(self, request: Request) -> Response:
        return await self._change(request, lambda given: None)

    async def answer(self, request: Request) -> Response:
        def give(given: dict[str, Any]) -> None:
            self._review.give(str(given.get("id")), str(given.get("kind")), given.get("name"), _reviewer(given))

        return await self._change(request, give)

    async def undo(self, request: Request) -> Response:
        def take_back(given: dict[str, Any]) -> None:
            self._review.session.undo(_reviewer(given))

        return await self._change(request, take_back)

    async def _change(self, request: Request, act: Callable[[dict[str, Any]], None]) -> Response:
        """Does what was asked for, and answers with the next image and what is known by now."""
        if not self._knows(request) or not _from_this_page(request):
            return _refused()
        body = await request.body() if int(request.headers.get("content-length", "0")) <= _MOST_BODY_BYTES else b""
        try:
            given = json.loads(body)
            if not isinstance(given, dict):
                raise ValueError("no object")
            return JSONResponse(await run_in_threadpool(self._act, given, act))
        except ValueError:
            return JSONResponse({"error": "The request is not what this page sends: reload it."}, status_code=400)
        except UserError as error:
            return JSONResponse({"error": str(error)}, status_code=409)

    def _act(self, given: dict[str, Any], act: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        act(given)
        last = str(given.get("id")) if given.get("kind") else None
        return {
            "image": self._review.next_id(_reviewer(given)),
            "said": None if last is None else self._review.said(last),
            **headline(self._review),
        }

    def _knows(self, request: Request) -> bool:
        return secrets.compare_digest(request.path_params["token"].encode(), self._token.encode())


def _reviewer(given: dict[str, Any]) -> str:
    return str(given.get("reviewer"))[:40]


def _from_this_page(request: Request) -> bool:
    """Whether a request was made by a page that this server gave out: browsers tell, and no page can lie about it."""
    own = f"http://{request.headers.get('host', '')}"
    is_json = request.headers.get("content-type", "").split(";")[0].strip() == "application/json"
    same_site = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    return is_json and same_site and request.headers.get("origin", "") == own


def _refused() -> Response:
    return PlainTextResponse("Not found: use the address that 'raydapt review' printed.", status_code=404)


async def _with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response
