"""`/runtime` and `/runtime_modify`."""

from __future__ import annotations

from proxy.admin.console import Console
from proxy.admin.messages import MAX_PARAMETERS, Request, Response, as_json, bad_request, ok
from proxy.runtime.layers import NoAdminLayer, RuntimeRefused

USAGE = ("usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n"
         "       or send the parameters as form values\n"
         "use an empty value to remove a previously added override")


async def handle_runtime(console: Console, _request: Request) -> Response:
    """The layers of the runtime and the value that each key has in them; the last layer that has one wins."""
    return as_json(console.server.runtime.layers.document())


async def handle_runtime_modify(console: Console, request: Request) -> Response:
    """Override keys, or take overrides away; in force in every worker when this answers OK."""
    if not request.parameters:
        return bad_request(USAGE)
    if len(request.parameters) >= MAX_PARAMETERS:
        return bad_request(f"at most {MAX_PARAMETERS - 1} keys can be changed at once\n")
    overrides: dict[str, str] = {}
    for key, value in request.parameters:
        overrides.setdefault(key, value)
    try:
        late = await console.server.modify_runtime(overrides)
    except NoAdminLayer as error:
        return Response(503, str(error))
    except RuntimeRefused as error:
        return bad_request(f"{error}\n")
    if late:
        return Response(503, f"written, but not yet in force: no answer from worker {', '.join(map(str, late))}\n")
    return ok()
