"""Guard for the members of Panel, Bokeh and param that are not public but that the viewer uses.

Each member is listed here with its purpose. The import fails with an error that names the missing member and the
versions that work, so that a new release cannot break a page silently.

`_bundle`, `_esm`, `_render_esm`
    Serve the file of a component by URL instead of inlining it into every session.
`_constants`
    Send the palette to the JavaScript side.
`_priority_changes`, `_busy__ignore`
    Skip the 50 ms wait for changes that come from the browser, and do not mark the process as busy.
`_param_change`, `_models`, `_in_process__events`, `_changing`, `apply_changes_without_dispatch`
    Send changes of data through the outbox in `wire.py`.
`_handle_msg`, `_send_msg`, `_process_event`, `_process_events`, `_process_bokeh_event`
    Receive and send messages, and gather the changes of one message.
`_get_model`
    Find the component that a message of the browser names.
`component_resource_path`
    Address of a component's file on the server.
`no_instance_params`
    Share the parameters of a component class between its instances.
`WSHandler.open`, `_async_open`, `on_message`, `write_message`, `_token`, `connection`, `handler`
    Check web sockets and their messages before Bokeh does (server/session_socket.py).
`DocHandler.get_session`, `Server._http`, `BokehTornado.new_connection`
    Serve a page of our own, behind a gate of our own (server/page_handler.py, server/gate.py).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import bokeh
import panel
import param
from panel.layout import Spacer

KNOWN_VERSIONS = "panel 1.9, bokeh 3.9 and param 2.2 to 2.4"
CLASS_MEMBERS = {
    "panel.custom:JSComponent": (
        "_bundle", "_esm", "_render_esm", "_constants", "_priority_changes", "_busy__ignore", "_param_change",
        "_handle_msg", "_send_msg", "_process_event", "_process_events", "_process_bokeh_event", "_get_model",
    ),
    "bokeh.server.views.ws:WSHandler": ("open", "_async_open", "on_message", "write_message", "set_nodelay"),
    "bokeh.server.tornado:BokehTornado": ("new_connection", "client_lost"),
    "panel.io.server:DocHandler": ("get_session",),
}  # fmt: skip
"""Members of classes, by module and class."""
INSTANCE_MEMBERS = ("_models", "_in_process__events", "_changing")
"""Attributes that Panel sets on every component."""
FUNCTIONS = {
    "panel.io.model": ("apply_changes_without_dispatch",),
    "panel.io.resources": ("component_resource_path",),
    "param.parameterized": ("batch_call_watchers", "no_instance_params"),
}
"""Functions, by module."""


def missing_members(component: Any) -> list[str]:
    """Return the listed members that the installed versions lack. `component` is any instance of a Panel component."""
    missing = [f"{type(component).__name__}.{name}" for name in INSTANCE_MEMBERS if not hasattr(component, name)]
    for path, names in CLASS_MEMBERS.items():
        module, class_name = path.split(":")
        owner = getattr(import_module(module), class_name)
        missing += [f"{class_name}.{name}" for name in names if not hasattr(owner, name)]
    for module, names in FUNCTIONS.items():
        missing += [f"{module}.{name}" for name in names if not hasattr(import_module(module), name)]
    return missing


def check_members() -> None:
    """Check that the installed versions have all members of the lists above.

    Raises
    ------
    ImportError
        A member is missing.
    """
    if missing := missing_members(Spacer()):
        installed = f"panel {panel.__version__}, bokeh {bokeh.__version__} and param {param.__version__}"
        raise ImportError(
            f"{installed} lack {', '.join(missing)}, which the viewer uses. It works with {KNOWN_VERSIONS}. "
            "Install these versions: pip install 'panel>=1.9,<2' 'bokeh>=3.9,<4' 'param>=2.2,<3'."
        )


check_members()
