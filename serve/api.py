"""The FastAPI application: routes, the page, and what stands before them."""

from pathlib import Path

from fastapi import FastAPI, Security
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from serve import chat, errors, routes
from serve.access_log import AccessLog
from serve.protection import ApiKeys, Protection, RateLimit
from serve.service import Service
from xrec import __version__

_STATIC = Path(__file__).parent / "static"
_DESCRIPTION = "Why would this user enjoy this item? A graph neural network joined to a language model says."


def make_app(service: Service, keys: ApiKeys) -> FastAPI:
    """The application for one ingress replica.

    Args:
        service: what the routes do.
        keys: that open the API.
    """
    config, limits = service.config, service.config.limits
    # Its own documentation pages load scripts from elsewhere.
    app = FastAPI(title="XRec", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.service = service
    # Keys are checked before any route; this only tells readers of the OpenAPI document.
    needed = [Security(HTTPBearer(auto_error=False))] if keys else []
    app.include_router(routes.router, dependencies=needed)
    app.include_router(chat.router, dependencies=needed)
    app.include_router(routes.operations)
    errors.add_handlers(app, limits.retry_after_seconds)
    if config.page:
        _add_page(app)
    # The last added stands outermost.
    rate = RateLimit(limits.rate, limits.rate_storage) if limits.rate else None
    app.add_middleware(Protection, keys=keys, rate=rate, body_bytes=limits.body_bytes)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    if "*" not in config.allowed_hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(config.allowed_hosts), www_redirect=False)
    app.add_middleware(AccessLog, metrics=service.metrics)
    return app


def _add_page(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(_STATIC / "docs.html")
