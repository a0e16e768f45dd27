"""The deployment that speaks HTTP."""

from typing import Any

from fastapi import FastAPI
from ray import serve

from serve.api import make_app
from serve.metrics import ServerMetrics
from serve.protection import KEYS_VARIABLE, load_keys
from serve.service import Service
from xrec.config import ConfigError, ServeConfig


@serve.ingress()
class Ingress:
    """Requests in, answers out.

    Args:
        lookup, explainer: handles of the other deployments.
        settings: a `ServeConfig`.

    Raises:
        ConfigError: a key is needed, and there is none, or the keys are malformed.
    """

    def __init__(self, lookup: Any, explainer: Any, settings: dict[str, Any]):
        config = ServeConfig.model_validate(settings)
        self.keys = load_keys(config.api_keys_file)
        if config.require_key and not self.keys:
            raise ConfigError(
                f"serve.require_key is set, but there is no key; put `name:key` in {KEYS_VARIABLE} or in "
                "serve.api_keys_file, or unset it"
            )
        self.service = Service(lookup, explainer, config, ServerMetrics())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self.service, self.keys)
