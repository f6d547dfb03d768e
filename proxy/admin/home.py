"""The home page: every command as a form or a link. No script and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from proxy import version
from proxy.admin.commands import Command, Parameter

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; --accent: #2563eb; --danger: #b45309; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0; }
header p { margin: .2rem 0 1.2rem; color: var(--dim); }
section { border-top: 1px solid var(--line); padding: .55rem 0; display: grid;
  grid-template-columns: 13rem 1fr; gap: .2rem 1.2rem; align-items: start; }
a, button { color: var(--accent); font: inherit; font-family: ui-monospace, monospace; background: none; border: 0;
  padding: 0; cursor: pointer; text-decoration: underline; text-align: left; }
button.post { color: var(--danger); border: 1px solid; border-radius: .3rem; padding: 0 .5rem; text-decoration: none;
  justify-self: start; }
.what { grid-column: 2; }
form { display: contents; }
fieldset { grid-column: 2; border: 0; margin: .2rem 0 0; padding: 0; display: grid;
  grid-template-columns: 12rem 1fr; gap: .3rem .8rem; align-items: center; }
fieldset label { color: var(--dim); font-size: .9em; }
fieldset code { color: CanvasText; margin-right: .4rem; }
input[type=text], select { font: inherit; width: 12rem; box-sizing: border-box; }
input[type=checkbox] { justify-self: end; }
@media (max-width: 40rem) { section, fieldset { grid-template-columns: 1fr; } .what, fieldset { grid-column: 1; }
  input[type=checkbox] { justify-self: start; } fieldset label { margin-bottom: .4rem; } }
"""


def page(commands: Iterable[Command], state: str, node: str) -> str:
    """The page for a proxy in this state, of this node."""
    about = " · ".join(filter(None, (state, node, f"pysidecar {version.VERSION}, Envoy API {version.ENVOY_VERSION}")))
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Proxy admin</title>\n'
            f'<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
            f"<header><h1>Proxy admin</h1><p>{escape(about)}<br>Commands in a frame change something.</p></header>\n"
            f"{''.join(map(_section, commands))}</body>\n</html>\n")


def _section(command: Command) -> str:
    name = command.path.lstrip("/")
    what = f'<span class="what">{escape(command.text)}</span>'
    if not command.parameters and not command.post:
        return f'<section><a href="{name}">/{name}</a>{what}</section>\n'
    fields = "".join(_field(f"{name}-{p.name}".replace("/", "-"), p) for p in command.parameters)
    fields = f"<fieldset>{fields}</fieldset>" if fields else ""
    method, style = ("post", ' class="post"') if command.post else ("get", "")
    return (f'<section><form action="{name}" method="{method}"><button{style}>/{name}</button>{what}{fields}'
            f"</form></section>\n")


def _field(identity: str, parameter: Parameter) -> str:
    name = escape(parameter.name)
    if parameter.choices:
        options = "".join(f"<option>{escape(choice)}</option>" for choice in parameter.choices)
        control = f'<select name="{name}" id="{identity}">{options}</select>'
    elif parameter.flag:
        control = f'<input type="checkbox" name="{name}" id="{identity}">'
    else:
        control = f'<input type="text" name="{name}" id="{identity}">'
    return f'{control}<label for="{identity}"><code>{name}</code>{escape(parameter.text)}</label>'
