"""Which roles a chat template has, read from its source: others it would drop, or give to someone else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from jinja2 import nodes
from msgspec.structs import replace

from contract.faults import Fault, FaultKind
from contract.generation import Message

_EVERYWHERE = frozenset(("system", "user", "assistant"))
_OPENAI = frozenset((*_EVERYWHERE, "tool", "function"))


class Roles:
    """The roles of one template.

    Templates compare a message's role with those they know, and drop or refuse what fits none. Some write
    out whatever role there is; what such a model was trained with cannot be seen, so OpenAI's roles are
    allowed. A ``developer`` is what OpenAI calls the system of newer models, and becomes it for a template
    that does not know one.
    """

    def __init__(self, template: nodes.Template) -> None:
        deciding = template.find_all((nodes.Compare, nodes.Dict))
        operands = chain.from_iterable(map(_operands, deciding))
        named = frozenset(chain.from_iterable(map(_strings, operands)))
        is_written = any(_holds_role(node) for node in template.find_all((nodes.Output, nodes.Assign)))
        self._allowed = named | (_OPENAI if is_written else _EVERYWHERE)
        self._developer = "developer" if "developer" in named else "system"

    def settled(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in roles that the template has. Raises ``Fault`` for a role it does not have."""
        return [self._settled(index, message) for index, message in enumerate(messages)]

    def _settled(self, index: int, message: Message) -> Message:
        if message.role == "developer":
            return replace(message, role=self._developer)
        if message.role in self._allowed:
            return message
        where = f"messages.{index}.role"
        reason = f"{where}: the model's chat template has no role {message.role!r}"
        known = ", ".join(sorted(self._allowed | {"developer"}))
        raise Fault(FaultKind.INVALID_REQUEST, reason, f"its roles are: {known}", {"param": where})


def _operands(node: nodes.Node) -> list[nodes.Node]:
    """What is compared with one another, or what something is looked up by."""
    if isinstance(node, nodes.Dict):
        return [pair.key for pair in node.items]
    return [] if not isinstance(node, nodes.Compare) else [node.expr, *(other.expr for other in node.ops)]


def _strings(operand: nodes.Node) -> Iterator[str]:
    for one in operand.items if isinstance(operand, nodes.List | nodes.Tuple) else (operand,):
        if isinstance(one, nodes.Const) and isinstance(one.value, str):
            yield one.value


def _holds_role(node: nodes.Node) -> bool:
    """Whether a message's role itself goes into this, not only the outcome of a comparison."""
    if isinstance(node, nodes.Compare):
        return False
    if isinstance(node, nodes.Getattr) and node.attr == "role":
        return True
    if isinstance(node, nodes.Getitem):
        return node.arg == nodes.Const("role") or _holds_role(node.node)
    return any(_holds_role(child) for child in node.iter_child_nodes())
