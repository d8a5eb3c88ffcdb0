"""`/v1/models`: what this gateway serves to a key, as its file of upstreams says. No engine is asked."""

import time

from libs.keys import Key
from libs.upstreams.pool import Upstreams
from services.api.dataplane.errors import ApiError

PATH = "/v1/models"
STARTED = int(time.time())

Model = dict[str, str | int]


def may_use(key: Key, model: str) -> bool:
    """Whether a key may ask for a model; one without a list may ask for all."""
    return not key.models or model in key.models


def models_for(key: Key, upstreams: Upstreams) -> list[str]:
    """The ids of the models a key may ask for, in the file's order."""
    return [model for model in upstreams.models() if may_use(key, model)]


def no_such_model(model: str) -> ApiError:
    """The 404 that the official clients know."""
    message = f"there is no model {model!r} here; GET {PATH} lists what there is"
    return ApiError(404, "model_not_found", message, param="model")


def answer_models(path: str, key: Key, upstreams: Upstreams) -> object:
    """The list, or the one model that the rest of the path names. Raises `ApiError` 404."""
    known = models_for(key, upstreams)
    if path == PATH:
        return {"object": "list", "data": [_entry(model) for model in known]}
    asked = path.removeprefix(f"{PATH}/")  # decoded by the server, once
    if asked not in known:
        raise no_such_model(asked)
    return _entry(asked)


def _entry(model: str) -> Model:
    return {"id": model, "object": "model", "created": STARTED, "owned_by": "lexi"}
