"""Questions and answers as files and public collections hold them: as a text, or as a chat.

Before `collections` and `rollouts`, which read them from there. Works on single values and writes
nothing.
"""

from typing import Any


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages with a role."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and "role" in message for message in value)
    )


def text_in(value: Any, role: str) -> str:
    """A text as it is, and of a chat the content of its only message, which `role` wrote ("user"
    or "assistant").

    Raises ValueError, with words to follow the name of the value, for all else: two messages, a
    message with more than a text (tools, images, reasoning apart from the content), a number.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise ValueError("is missing")
    if not is_chat(value):
        raise ValueError(f"is no text but the {_kind(value)} {_beginning(value)}")
    roles = [str(message["role"]) for message in value]
    if roles != [role]:
        raise ValueError(
            f"is a chat of messages by {', '.join(roles)}: only one of a single message by the "
            f"{role} can be read"
        )
    (message,) = value
    # A field that is empty says nothing: clients write all those of the protocol.
    further = [
        field for field, held in message.items() if field not in ("role", "content") and held
    ]
    if further or not isinstance(message.get("content"), str):
        raise ValueError(
            f"is a message with {further[0] if further else 'a content'} that is no text: "
            f"{_beginning(message)}"
        )
    return str(message["content"])


def _kind(value: Any) -> str:
    kinds = {dict: "record", list: "list", bool: "truth value", int: "number", float: "number"}
    return kinds.get(type(value), type(value).__name__)


def _beginning(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
