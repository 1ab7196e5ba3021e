"""A process that renders chat templates, so that a template can neither hang nor fill the parent.

jinja2's sandbox keeps a template from running code, but `'a' * 10**10` or nested loops end in no
useful time or memory. `sip/text/chat.py` starts this file; it imports nothing of sip. It reads
requests from stdin and writes answers to stdout, one JSON value per line.
"""

import datetime
import functools
import json
import resource
import sys
from typing import Any

MEMORY = 1 << 30  # address space of the process, bytes
CPU_SECONDS = 600  # for all texts together
MOST = 1 << 24  # characters of a rendered text


def serve() -> None:
    """Answers requests until stdin ends. The first line says that the process is ready."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))  # if the parent is gone
    _compiled("")  # imports jinja2 before the memory is limited
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def answer(asked: dict[str, Any]) -> dict[str, str]:
    """Renders a request {source, today, variables}. Returns {"text": ..} or {"error": ..}."""
    import jinja2

    today = datetime.date.fromisoformat(asked["today"])
    try:
        template = _compiled(asked["source"])
        text = template.render(strftime_now=today.strftime, **asked["variables"])
    except jinja2.TemplateError as error:
        return {"error": _line(error)}
    except Exception as error:  # whatever a template can provoke
        reason = f"{type(error).__name__}: {_line(error)}".removesuffix(": ")
        return {"error": f"cannot render this conversation ({reason})"}
    if len(text) > MOST:
        return {"error": f"it writes {len(text)} characters"}
    return {"text": text.encode(errors="replace").decode()}  # no lone surrogates


def _line(error: Exception) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(error)[:2000])
    return " ".join(text.split())[:500]


@functools.lru_cache(maxsize=32)
def _compiled(source: str):
    """Compiles a template in a sandbox, with the extensions that transformers adds to jinja."""
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """The block {% generation %}, which marks the assistant's tokens.

        Renders its content between the variables generation_start and generation_end; undefined
        ones are empty.
        """

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            mark = lambda name: nodes.Output([nodes.Name(f"generation_{name}", "load")])
            return nodes.Scope([mark("start"), *body, mark("end")], lineno=line)

    env = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = functools.partial(_refuse, jinja2.TemplateError)
    del env.filters["random"], env.globals["lipsum"]  # a prompt is the same each time
    return env.from_string(source)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Returns JSON without the HTML escapes of jinja's own `tojson`, as transformers does."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(kind: type[Exception], message: str):
    raise kind(message)


if __name__ == "__main__":
    serve()
