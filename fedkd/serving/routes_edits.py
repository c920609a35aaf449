"""Pictures that follow one that is given, in the form of OpenAI's image edits: a ControlNet is steered by it."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError

from fedkd.serving.controls import Conditions
from fedkd.serving.engine import Engine
from fedkd.serving.errors import EdgeFault
from fedkd.serving.messages import EditRequest, Pictures
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.models import EdgeModels
from fedkd.serving.multipart import Form, read_form
from fedkd.serving.routes_images import ANSWERS, Drawing, answer, check_request

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        **EditRequest.model_json_schema()["properties"],
                        "scheduler_options": {"type": "string", "description": "a JSON object"},
                    },
                }
            }
        },
    }
}


def edit_routes(models: EdgeModels, engine: Engine, metrics: EdgeMetrics) -> APIRouter:
    """POST /v1/images/edits."""
    routes, conditions = APIRouter(tags=["images"]), Conditions()

    @routes.post(
        "/v1/images/edits",
        response_model=Pictures,
        responses=ANSWERS,
        openapi_extra=FORM,
        summary="Draw pictures that follow a given one, at the edge alone, as OpenAI's clients ask",
    )
    async def edit(request: Request) -> Response:
        began = time.perf_counter()
        form = await read_form(request)
        asked, image = _asked(form), form.file("image")
        if image is None:
            raise EdgeFault(400, "image is missing; send the picture as a file", param="image", code="missing_image")
        if any(name == "mask" for name, _ in form.files):
            raise EdgeFault(
                400, "mask is not supported; the whole picture is drawn anew", param="mask", code="unsupported"
            )
        with models.use(asked.model) as served:
            output, (height, width) = check_request(asked, served), served.resolution
            steering = await conditions.of_source(
                served.controls,
                asked.condition,
                image,
                asked.control_scale,
                (width, height),
                is_condition=asked.extracted,
            )
            owner = request.scope["holder"]
            drawing = Drawing(asked, served, engine, metrics, owner, output, began, steering, "image_edit")
            return await answer(drawing, models, request)

    return routes


def _asked(form: Form) -> EditRequest:
    """The texts of the form as a request; RequestValidationError (422) names the first that is wrong."""
    said: dict[str, Any] = dict(form.texts)
    try:
        if "scheduler_options" in said:
            said["scheduler_options"] = json.loads(said["scheduler_options"])
        return EditRequest.model_validate(said)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    except (ValueError, RecursionError) as error:
        raise EdgeFault(400, "scheduler_options is no JSON", param="scheduler_options", code="invalid_value") from error
