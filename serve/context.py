"""What Ray Serve knows of the request at hand."""

# Ray keeps the id of a request, which its proxy also sends as the header X-Request-ID, in this context alone.
from ray.serve.context import _get_serve_request_context


def request_id() -> str:
    """The id that the client finds in the header X-Request-ID."""
    return _get_serve_request_context().request_id
