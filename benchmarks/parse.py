"""Reading answers of about 1,000 tokens of Qwen 3, compared with `renderers` and with transformers' response parser.

usage: python -m benchmarks.parse [--shared FOLDER] [--times N]

Each answer is what the tokenizer's own chat template writes for a message: prose with a thought, three calls, or one
call with a long argument. `ids` includes the decoding of the ids. `text` is the answer's text with its control tokens;
`bit by bit` feeds the text of one token after the other. transformers' parser reads text by the response template that
TRL has for Qwen 3. All contenders that read an answer must find the message that was written; a peer that finds another
is marked. Peers that are not installed are left out, and so is everything without the tokenizer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.clock import shortest_seconds
from templatekit import Example, Message, Template, Tokenizer, create_registry
from templatekit.formats.lookup import find_template
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.load import find_tokenizer
from templatekit.tokens.supervision import LazyLossSpans

SHARED = Path(__file__).resolve().parents[2] / "shared"
PROSE = "The quick brown fox jumps over the lazy dog, and nobody knows why it <b>does</b> so {again}.\n"


def call(name: str, **arguments: Any) -> Mapping[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


ANSWERS = {
    "prose": Message(role="assistant", reasoning=(PROSE * 14).strip(), content=(PROSE * 28).strip()),
    "three calls": Message(
        role="assistant",
        content="I look.",
        tool_calls=tuple(
            call("search", words=[f"word {n}" for n in range(25)], where={str(n): [n, True] for n in range(14)})
            for _ in range(3)
        ),
    ),
    "a long argument": Message(role="assistant", tool_calls=(call("write", path="a.txt", text=PROSE * 40),)),
}
Found = tuple[str, str, list[Any]]
"""Reasoning, content and calls."""


def found_in(message: Message) -> Found:
    calls = [[each["function"]["name"], each["function"]["arguments"]] for each in message.tool_calls]
    return message.reasoning.strip(), message.content.strip(), calls


class Written:
    """An answer as a model would write it."""

    def __init__(self, answer: Message, template: Template, tokenizer: Tokenizer) -> None:
        example = Example(messages=(Message(role="user", content="So?"), answer))
        rendered = template.samples(example, tokenizer.special_tokens)[-1].rendered
        encoded = Encoder(tokenizer).encode(rendered, LazyLossSpans(rendered, "last"))
        self.ids = [id for id, weight in zip(encoded.input_ids, encoded.loss_weights, strict=True) if weight]
        self.text = "".join(piece.text for piece in tokenizer.pieces(self.ids))
        self.prompt = rendered.text[: rendered.target_spans[-1].start]
        self.bits = [tokenizer.decode([id]) for id in self.ids]


def own(written: Written, template: Template, tokenizer: Tokenizer) -> dict[str, Callable[[], Found]]:
    parse = partial(template.parse, tokens=tokenizer.special_tokens, prompt=written.prompt)

    def bit_by_bit() -> Found:
        parser = template.answer_parser(tokenizer.special_tokens, prompt=written.prompt)
        for bit in written.bits:
            parser.feed(bit)
        return found_in(parser.close().message)

    return {
        "templatekit, ids": lambda: found_in(parse(tokenizer.pieces(written.ids)).message),
        "templatekit, text": lambda: found_in(parse(written.text).message),
        "templatekit, text bit by bit": bit_by_bit,
    }


def by_renderers(written: Written, folder: Path) -> dict[str, Callable[[], Found]]:
    """The renderer for Qwen 3 of `renderers`, with the same tokenizer in transformers."""
    try:
        config, module = import_module("renderers.configs"), import_module("renderers.qwen3")
        from transformers import AutoTokenizer
    except ImportError:
        return {}
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    renderer = module.Qwen3Renderer(tokenizer, config.Qwen3RendererConfig())
    prompt = tokenizer.encode(written.prompt, add_special_tokens=False)

    def parse() -> Found:
        read = renderer.parse_response(written.ids, prompt_ids=prompt)
        calls = [[each.name, each.arguments] for each in read.tool_calls]
        return (read.reasoning_content or "").strip(), read.content.strip(), calls

    return {"renderers, ids": parse}


def by_transformers(written: Written) -> dict[str, Callable[[], Found]]:
    """transformers' parser with TRL's response template."""
    try:
        from transformers.utils.chat_parsing import ResponseParser
        from transformers.utils.chat_parsing.response_templates import load_response_template
        from trl.chat_template_utils import qwen3_template
    except ImportError:
        return {}
    spec = load_response_template(qwen3_template)

    def message(bits: list[str]) -> Found:
        parser = ResponseParser(spec, prefix=written.prompt)
        for bit in bits:
            parser.feed(bit)
        read, _ = parser.finalize()
        calls = [[each["function"]["name"], each["function"]["arguments"]] for each in read.get("tool_calls") or ()]
        return (read.get("reasoning_content") or "").strip(), (read.get("content") or "").strip(), calls

    return {
        "transformers, text": lambda: message([written.text]),
        "transformers, text bit by bit": lambda: message(written.bits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder with tokenizers/qwen3")
    parser.add_argument("--times", type=int, default=30, help="how often each is run; the shortest run counts")
    options = parser.parse_args()
    folder = options.shared / "tokenizers" / "qwen3"
    if not folder.is_dir():
        raise SystemExit(f"no folder {folder}")
    registry = create_registry()
    tokenizer = find_tokenizer(str(folder), registry)
    template = find_template("tokenizer", registry, chat_template=tokenizer.chat_template)
    for name, answer in ANSWERS.items():
        written = Written(answer, template, tokenizer)
        print(f"{name}: {len(written.ids):,} tokens, {len(written.text):,} characters")
        contenders = {
            **own(written, template, tokenizer),
            **by_renderers(written, folder),
            **by_transformers(written),
        }
        base = 0.0
        for contender, work in contenders.items():
            same = json.dumps(work()) == json.dumps(found_in(answer))
            seconds = shortest_seconds(options.times, work)
            base = base or seconds
            note = "" if same else "  reads another message"
            print(f"  {contender:30} {seconds * 1e3:8.3f} ms {seconds / base:7.2f}{note}")


if __name__ == "__main__":
    main()
