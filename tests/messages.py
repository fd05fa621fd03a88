"""Every error message in the sources of the package: `python -m tests.messages` writes docs/messages.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "messages.md"
# Raised for programs, not for people: a wrong index of a sequence, a missing attribute, a parameter of our own code.
NOT_FOR_USERS = {
    "AttributeError",
    "IndexError",
    "KeyError",
    "TypeError",
    "ValueError",
    "StopIteration",
    "RuntimeError",
}
HEAD = """# Every error message

Each line that distindex raises itself, by the module that raises it; `…` stands for what differs. Made from the
sources by `python -m tests.messages`, and compared by a test. What to do about the frequent ones is in
[troubleshooting.md](troubleshooting.md).
"""


def text_of(node: ast.expr) -> str | None:
    """A message as it is written, with … for its parts that are put in; None where the node is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [text_of(side) or "…" for side in (node.left, node.right)]
        return "".join(sides)
    return None


def messages(tree: ast.AST) -> Iterator[str]:
    """The messages of the errors that a module makes, in the order of its lines."""
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        name = ast.unparse(function.func).split(".")[-1]
        if not function.args or name in NOT_FOR_USERS:
            continue
        if name.endswith("Error"):
            found = [text_of(argument) for argument in function.args]
        elif name == "check" and len(function.args) == 2:
            found = [text_of(function.args[1])]
        else:
            continue
        for text in found:
            # A field's name, or a message made elsewhere.
            if text and " " in text.strip():
                yield " ".join(text.split())


def page() -> str:
    """docs/messages.md as it should be."""
    lines = [HEAD]
    for path in sorted((REPOSITORY / "distindex").rglob("*.py")):
        found = sorted(set(messages(ast.parse(path.read_text()))))
        if found:
            module = path.relative_to(REPOSITORY)
            lines.append(f"## [{module}](../{module})\n")
            lines.extend(f"- `{text.replace('`', chr(39))}`" for text in found)
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
