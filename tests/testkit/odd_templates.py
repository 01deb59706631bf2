"""Chat templates that do something odd on a condition, conversations that meet it, and how both would be served.

The oracle knows nothing of this project: transformers renders the messages before a turn as the prompt that a server
feeds, and the messages up to the turn as the text that the turn ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import jinja2
from hypothesis import strategies as st

from templatekit import Example, Message, RecordError, Template, TemplateFile
from templatekit.types import SpecialTokens
from testkit.published import assistant, user
from testkit.theirs import is_served_answer, rendered

TOKENS = SpecialTokens(bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>"}))
CONTENTS = ("a", "A", "abc", "b b", " b", "b ", "7", "12", "no", "/no_think", "x#y", "{}", "\nb", "", "ABC DEF", "é")

_MESSAGE = ["m", "messages[-1]", "messages[0]", "loop.previtem", "messages[loop.index0 - 1]"]
_TESTS = [
    "'b' in {0}.content",
    "'/no_think' in {0}.content",
    "{0}.content == 'abc'",
    "{0}.content[:1] == 'a'",
    "{0}.content[-1:] == ' '",
    "{0}.content is upper",
    "{0}.content | int > 5",
    "{0}.content | length > 2",
    "{0}.content.startswith('a')",
    "{0}.content.split('#') | length > 1",
    "{0}.content | trim != {0}.content",
    "{0}.role == 'assistant'",
    "{0}.content",
]
_LOOP = [
    "loop.last",
    "loop.first",
    "loop.index == {n}",
    "loop.index0 % 4 == {n}",
    "loop.revindex <= {n}",
    "loop.length > {n}",
    "loop.nextitem is defined",
    "loop.nextitem is defined and 'b' in loop.nextitem.content",
]
_GLOBAL = [
    "messages | length > {n}",
    "messages | length % 4 == {n}",
    "messages[1:] | selectattr('role', 'equalto', 'assistant') | list | length > {n}",
    "messages | map(attribute='content') | join | length > {n}0",
    "ns.seen > {n}",
    "option",
]


@st.composite
def _condition(draw: st.DrawFn, *, in_loop: bool, depth: int = 2) -> str:
    """A condition of a template, in its loop over the messages or after it."""
    if depth and draw(st.integers(0, 2)) == 0:
        left, right = (draw(_condition(in_loop=in_loop, depth=depth - 1)) for _ in range(2))
        return draw(st.sampled_from(["({0}) and ({1})", "({0}) or ({1})", "({0}) and not ({1})"])).format(left, right)
    about_message = st.sampled_from(_TESTS).flatmap(
        lambda test: st.sampled_from(_MESSAGE if in_loop else ["messages[-1]", "messages[0]", "messages[-2]"]).map(
            lambda message: test.format(message)
        )
    )
    number = draw(st.integers(0, 9))
    others = st.sampled_from([*(_LOOP if in_loop else []), *_GLOBAL]).map(lambda text: text.format(n=number))
    return draw(about_message | others)


@st.composite
def templates(draw: st.DrawFn) -> str:
    """A chat template that does something odd at one to three of its places."""
    places = ["start", "user", "before", "prompt", "content", "after", "end", "tail"]
    odd = draw(st.lists(st.sampled_from(places), min_size=1, max_size=3, unique=True))

    def at(place: str, *texts: str) -> str:
        if place not in odd:
            return ""
        condition = draw(_condition(in_loop=place not in ("start", "prompt", "tail")))
        return f"{{% if {condition} %}}{draw(st.sampled_from(texts))}{{% endif %}}"

    content = draw(st.sampled_from(["m.content", "m.content | trim", "m['content']", "m.content.strip()"]))
    if "content" in odd:
        other = draw(
            st.sampled_from(["m.content", "m.content | trim", "m.content.split('#')[-1]", "m.content | upper"])
        )
        content = f"({other}) if {draw(_condition(in_loop=True))} else ({content})"
    ask = f"A {at('prompt', '<think></think>', '?')}"
    return (
        f"{{% set ns = namespace(seen=0) %}}{at('start', 'S ', '<s>')}{{% for m in messages %}}"
        f"{{% if m.role == 'user' %}}{{% set ns.seen = ns.seen + 1 %}}U {{{{ m.content }}}}{at('user', '!', ' ')}\n"
        f"{{% else %}}{at('before', '(note)')}A {at('after', '<think></think>', '?')}{{{{ {content} }}}}</s>"
        f"{at('end', '~', '</s>')}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{ask}"
        f"{{% else %}}{at('tail', '$')}{{% endif %}}"
    )


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    """One to eight turn pairs, some of whose answers are not trained."""
    text = st.sampled_from(CONTENTS)
    messages = []
    for _ in range(draw(st.integers(1, 8))):
        messages += [user(draw(text)), assistant(draw(text), weight=draw(st.sampled_from([1.0, 1.0, 1.0, 0.0])))]
    return Example(messages=tuple(messages))


def made(source: str) -> Template:
    return Template(TemplateFile(name="made", source=source), strict=False)


class Wrong(AssertionError):
    """A turn is trained otherwise than it is served."""


def served(source: str, messages: Sequence[Message], turn: int) -> tuple[str, str]:
    """The prompt that transformers renders before a turn, and the text up to and with the turn."""
    rows = [{"role": message.role, "content": message.content} for message in messages]
    prompt, _ = rendered(source, rows[:turn], TOKENS, add_generation_prompt=True)
    return prompt, rendered(source, rows[: turn + 1], TOKENS)[0]


def _can_be_trained(source: str, messages: Sequence[Message], turns: Sequence[int]) -> bool:
    """Whether transformers renders the whole conversation, and each turn behind its prompt."""
    try:
        pairs = [served(source, messages, turn) for turn in [*turns, len(messages) - 1]]
    except (jinja2.TemplateError, IndexError, TypeError, ValueError, AttributeError):
        return False
    return all(text.startswith(prompt) for prompt, text in pairs[:-1])


def check(source: str, template: Template, example: Example) -> str:
    """Raise `Wrong` where a turn is trained behind another prompt or with another answer; return what came of it."""
    wanted = [turn for turn, message in enumerate(example.messages) if message.role == "assistant" and message.weight]
    try:
        samples = template.samples(example, TOKENS)
    except RecordError as error:
        if _can_be_trained(source, example.messages, wanted):
            raise Wrong(f"refused without need: {error}") from error
        return error.reason or "refused"
    trained = Counter[int]()
    for sample in samples:
        for target in sample.rendered.target_spans:
            prompt, text = served(source, example.messages, target.message)
            if sample.rendered.text[: target.start] != prompt:
                raise Wrong(f"turn {target.message}: another prompt than a server feeds")
            answer, fed = sample.rendered.text[target.start : target.end], prompt.rpartition("\n")[2]
            if not any(is_served_answer(answer, prompt, text, header=header) for header in ("A ", fed)):
                raise Wrong(f"turn {target.message}: another answer than a server continues")
            trained[target.message] += bool(example.messages[target.message].weight)
    if +trained != Counter(wanted):
        raise Wrong(f"trained {dict(trained)}, wanted {wanted}")
    return f"{len(samples)} samples" if len(samples) < 3 else "3 samples or more"
