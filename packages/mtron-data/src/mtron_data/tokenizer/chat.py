"""Chat templates: Jinja from strangers, so it runs in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says for training masks; here it is plain."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own declaration has no ClassVar

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
    variables: Mapping[str, Any],
) -> str:
    """Render a conversation as `transformers` renders it.

    Args:
        template: Jinja, from the tokenizer's files.
        messages: `{"role": ..., "content": ...}` each.
        add_generation_prompt: end with the beginning of the assistant's answer.
        special_tokens: `bos_token`, `eos_token` and so on, by name.
        variables: further variables of the template.

    Raises:
        ValueError: the template is wrong, leaves the sandbox, or refuses the messages.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            **{"tools": None, "documents": None, **special_tokens, **variables},
        )
    except (TemplateError, TypeError, ArithmeticError, LookupError) as error:
        raise ValueError(
            f"chat_template: cannot render these messages: {error}; check their roles and order"
        ) from None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
