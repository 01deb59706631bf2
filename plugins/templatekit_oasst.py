"""The adapters `oasst` and `oasst-all`, for OpenAssistant's message trees.

A message may have several replies, so each path from the first message to a last one is a conversation.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from templatekit import Adapter, Example, Message, Record, RecordError, hookimpl, text_of

ROLES = {"prompter": "user", "assistant": "assistant"}
_NAMES = {role: name for name, role in ROLES.items()}
_METADATA_KEYS = ("message_tree_id", "tree_state", "lang")


class BestReplies(Adapter):
    """Reads a tree from one row (`prompt`, with `replies`), or from one row for each message.

    Rows of messages have `message_id`, `parent_id`, `role` and `text`.

    The conversation follows the best-ranked reply at each step: `rank` 0 is the best, and equal ranks are in the order
    of the file. Deleted messages, all replies below them and unanswered questions are left out.
    """

    name = "oasst"
    description = "OpenAssistant's trees, a tree or a message a row: the best-ranked reply at each step"
    keys = (*_METADATA_KEYS, "prompt", "records", "message_id", "parent_id", "role", "text", "rank", "deleted")
    required: ClassVar[tuple[str, ...]] = ("message_tree_id",)
    example_records: ClassVar[tuple[Record, ...]] = (
        {
            "message_tree_id": "1",
            "tree_state": "ready_for_export",
            "prompt": {
                "message_id": "1",
                "role": "prompter",
                "text": "Name a color.",
                "lang": "en",
                "replies": [
                    {"message_id": "2", "role": "assistant", "text": "Red.", "rank": 1, "replies": []},
                    {"message_id": "3", "role": "assistant", "text": "Blue.", "rank": 0, "replies": []},
                ],
            },
        },
        {
            "records": [
                {"message_tree_id": "1", "message_id": "1", "parent_id": None, "role": "prompter", "text": "Hi."},
                {
                    "message_id": "2",
                    "parent_id": "1",
                    "role": "assistant",
                    "text": "Hello.",
                    "rank": 0,
                    "deleted": False,
                },
            ]
        },
    )

    def group(self, record: Record) -> Hashable:
        """Return the tree of a message; published files have the messages of a tree one after the other."""
        tree = record.get("message_tree_id") if "message_id" in record else None
        return tree if isinstance(tree, str) else None

    def to_example(self, record: Record) -> Example:
        """Return the conversation of the best replies."""
        tree = _read_tree(record)
        path = [tree.root]
        while path[-1].replies:
            path.append(path[-1].replies[0])
        lower_ranked = Counter({"lower-ranked reply and what follows it": tree.size - len(path)})
        return _example([node.message for node in path], tree, tree.left_out + lower_ranked)

    def to_record(self, example: Example) -> Record:
        """Return a tree with one path."""
        replies: list[dict[str, Any]] = []
        for message in reversed(example.messages):
            replies = [{"role": _NAMES[message.role], "text": message.content, "replies": replies}]
        kept = dict(example.metadata)
        prompt = replies[0] | ({"lang": kept.pop("lang")} if "lang" in kept else {})
        return {**kept, "prompt": prompt}


class AllReplies(BestReplies):
    """Reads the same trees; each path from the first message to a last answer is a separate conversation.

    An answer that is in several conversations is trained only in the first.
    """

    name = "oasst-all"
    description = "OpenAssistant's trees, a tree or a message a row: every path as a conversation"
    required = ()  # its records have the keys of `oasst`, so it is never inferred: it must be named

    def to_examples(self, record: Record) -> Iterable[Example]:
        """Return every conversation; the first follows the best replies."""
        tree = _read_tree(record)
        left_out = tree.left_out
        trained: set[int] = set()
        for path in _paths(tree.root):
            yield _example([_train_once(node, trained) for node in path], tree, left_out)
            trained.update(map(id, path))
            left_out = Counter()


@dataclass(slots=True, eq=False)
class _Node:
    message: Message
    rank: float
    replies: list["_Node"] = field(default_factory=list)
    """The best reply first."""

    @property
    def has_answer(self) -> bool:
        """Whether the message is an answer, or has replies (those without an answer below are removed first)."""
        return self.message.role == "assistant" or bool(self.replies)


@dataclass(slots=True, eq=False)
class _Tree:
    root: _Node
    size: int
    left_out: Counter[str]
    metadata: Mapping[str, str]


def _example(messages: Iterable[Message], tree: _Tree, left_out: Counter[str]) -> Example:
    return Example(messages=tuple(messages), metadata=tree.metadata, left_out=dict(+left_out))


def _train_once(node: _Node, trained: set[int]) -> Message:
    """The node's message, with weight 0 if it is already trained."""
    return replace(node.message, weight=0.0) if id(node) in trained else node.message


def _paths(root: _Node) -> Iterator[tuple[_Node, ...]]:
    """The path from the root to each leaf, in order."""
    path: list[_Node] = []
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        path[depth:] = [node]
        stack += [(reply, depth + 1) for reply in reversed(node.replies)]
        if not node.replies:
            yield tuple(path)


def _read_tree(record: Record) -> _Tree:
    """The tree without deleted and unanswered messages; raises `RecordError` if no answer remains."""
    left_out: Counter[str] = Counter()
    top = record.get("prompt")
    if "records" in record or ("message_id" in record and top is None):
        top = _join_rows(record.get("records", [record]), left_out)
    if not isinstance(top, Mapping):
        raise RecordError(
            f"found {top!r:.60}; expected a message with role, text and replies", field="prompt", reason="bad_message"
        )
    root = _node(top, "prompt")
    nodes = []
    stack: list[tuple[_Node, Any, str]] = [(root, top, "prompt")]
    while stack:
        node, value, where = stack.pop()
        nodes.append(node)
        for index, reply in enumerate(_replies(value, where)):
            location = (
                f"{where}.replies[{index}]" if "message_id" not in reply else f"message {reply['message_id']!r:.60}"
            )
            if reply.get("deleted"):
                left_out["deleted message"] += 1
                left_out["message below a deleted one"] += _count(reply) - 1
            else:
                child = _node(reply, location)
                node.replies.append(child)
                stack.append((child, reply, location))
        node.replies.sort(key=lambda reply: reply.rank)
    size = len(nodes)
    for node in reversed(nodes):  # replies before the message that they reply to
        kept = [reply for reply in node.replies if reply.has_answer]
        size -= len(node.replies) - len(kept)
        node.replies = kept
    if not root.has_answer:
        raise RecordError("nobody answered; expected a reply of the assistant's", field="prompt", reason="no_response")
    left_out["question without an answer"] = len(nodes) - size
    values = {**top, **record}
    metadata = {key: text for key in _METADATA_KEYS if (text := text_of(values, key, required=False))}
    return _Tree(root=root, size=size, left_out=left_out, metadata=metadata)


def _node(value: Mapping[str, Any], where: str) -> _Node:
    if value.get("deleted"):
        raise RecordError("the first message is deleted", field=where, reason="deleted_message")
    rank = value.get("rank")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool)):
        raise RecordError(f"found {rank!r:.60}; expected a number or null", field=f"{where}.rank", reason="bad_rank")
    try:
        role, text = text_of(value, "role"), text_of(value, "text")
    except RecordError as error:
        error.field = f"{where}.{error.field}"
        raise
    if role not in ROLES:
        raise RecordError(
            f"unknown role; found {role!r:.60}; expected {' or '.join(ROLES)}", field=f"{where}.role", reason="bad_role"
        )
    return _Node(Message(role=ROLES[role], content=text), float("inf") if rank is None else rank)


def _replies(value: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    replies = value.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        raise RecordError(
            f"found {replies!r:.60}; expected a list of messages", field=f"{where}.replies", reason="bad_replies"
        )
    return replies


def _count(value: Mapping[str, Any]) -> int:
    """The count of a message and all messages below it."""
    count, stack = 0, [value]
    while stack:
        message = stack.pop()
        count += 1
        stack += _replies(message, "deleted")
    return count


def _join_rows(rows: object, left_out: Counter[str]) -> Mapping[str, Any]:
    """The first message of a tree whose messages are separate rows, with the others nested under `replies`."""
    messages: dict[str, dict[str, Any]] = {}
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, Mapping):
            raise RecordError(f"found {row!r:.60}; expected messages", field="records", reason="bad_message")
        id = text_of(row, "message_id")
        if id in messages:
            raise RecordError(f"found {id!r:.60} twice; expected each once", field="message_id", reason="message_twice")
        messages[id] = {**row, "replies": []}
    first = []
    for message in messages.values():
        parent = text_of(message, "parent_id", required=False)
        if not parent:
            first.append(message)
        elif parent in messages:
            messages[parent]["replies"].append(message)
    if len(first) != 1:
        raise RecordError(
            f"found {len(messages)} messages, of which {len(first)} reply to none; expected one that does, and the "
            "messages of a tree one after the other: sort the file by message_tree_id",
            field="parent_id",
            reason="no_root",
        )
    left_out["message whose parent is missing"] = len(messages) - _count(first[0])
    return first[0]


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    """Two adapters for the same records."""
    return [BestReplies(), AllReplies()]
