"""What the path of a request says."""

from __future__ import annotations

from starlette.requests import Request

from daemon.kserve.request import Target


def target_of(request: Request, request_id: str = "") -> Target:
    """Model and version of the path; the id is the caller's, else the request's own."""
    version = request.path_params.get("version")
    return Target(
        model=request.path_params["model"],
        version="" if version is None else str(version),
        request_id=request_id or request.state.request_id,
        caller=request.state.caller,
    )
