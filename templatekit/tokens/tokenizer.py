"""A tokenizer, read from `tokenizer.json` and the files beside it, without transformers.

Its *backend* is a `tokenizers.Tokenizer`. There are variants of the backend: without control tokens, for text that must
not become one, and without the dummy prefix, for text that continues other text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import index
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tokenizers

from templatekit.errors import TokenizerError, nearest, shorten
from templatekit.tokens.token_bounds import TokenBounds, may_make_control_ids, token_bounds
from templatekit.tokens.word_boundaries import components, encodes_words_separately, is_control_token
from templatekit.types import AnswerPiece, SpecialTokens

TOKENIZER_FILE = "tokenizer.json"
SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token")
"""The keys of tokenizer_config.json that name the special tokens which templates may print."""
_CONFIG_FILE = "tokenizer_config.json"
_SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_CHAT_TEMPLATE_FILE = "chat_template.jinja"
_STOP_TOKEN_FILES = ("generation_config.json", "config.json")
"""Files of a model's folder that may name its stop tokens; the first file that names any counts."""
_STOP_TOKENS = "stop_token_ids"
"""The key under which the configuration holds the ids of the stop tokens, once they are read from such a file."""

_PICKLED = ("name", "chat_template", "_backend", "_config", "fingerprint")
"""Attributes that are pickled; all others are computed on demand."""
_TRIM_OFFSETS = re.compile(r'("trim_offsets"\s*:\s*)true')


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlToken:
    """An added token that is more than text (see `is_control_token`)."""

    id: int
    text: str
    special: bool
    strips_left: bool
    strips_right: bool
    whole_word: bool = False
    """Whether it is found only where it is a whole word."""


class StopTokens(NamedTuple):
    """The ids at which a server stops."""

    ids: tuple[int, ...]
    source: str
    """The file or setting that names them."""


def stop_tokens_in(folder: Path) -> StopTokens | None:
    """The stop tokens that a file of a model's folder names; None where none does. Raises `TokenizerError`."""
    for path in (folder / name for name in _STOP_TOKEN_FILES):
        try:
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError) as error:
            raise TokenizerError(f"{str(path)!r} cannot be read: {error}; expected an object of JSON") from None
        ids = ids if isinstance(ids, list) else [ids]
        if all(type(id) is int for id in ids):
            return StopTokens(tuple(ids), path.name)
    return None


class Tokenizer:
    """The backends that encode text, with the control tokens, the special tokens and the chat template."""

    def __init__(
        self, definition: str, *, config: Mapping[str, Any], chat_template: str | None = None, name: str = "tokenizer"
    ) -> None:
        """`definition` is the text of tokenizer.json, `config` the content of tokenizer_config.json."""
        self.name = name
        self.chat_template = chat_template
        try:
            # Offsets must cover all characters of a token, blanks included.
            backend = tokenizers.Tokenizer.from_str(_TRIM_OFFSETS.sub(r"\1false", definition))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"tokenizer {name!r}: {TOKENIZER_FILE} cannot be read: {error}") from None
        backend.no_truncation()
        backend.no_padding()
        _add_configured_tokens(backend, config, name)
        _check_added_tokens(backend, name)
        self._backend = backend
        self._config = config
        self._variants: dict[tuple[bool, bool], tokenizers.Tokenizer] = {}
        self.fingerprint = hashlib.sha256(
            json.dumps([definition, dict(config), chat_template], sort_keys=True, default=str).encode()
        ).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Without the attributes that are computed on demand."""
        return {**{name: vars(self)[name] for name in _PICKLED}, "_variants": {}}

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Reads `tokenizer.json` and the files beside it. Raises `TokenizerError`."""
        folder = Path(folder)
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            found = sorted(entry.name for entry in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
            raise TokenizerError(f"tokenizer {str(folder)!r}: expected a folder with {TOKENIZER_FILE}; found {found}")
        config = {**_read_json(folder / _SPECIAL_TOKENS_FILE), **_read_json(folder / _CONFIG_FILE)}
        if (stops := stop_tokens_in(folder)) is not None:
            config[_STOP_TOKENS] = stops.ids
        template_file = folder / _CHAT_TEMPLATE_FILE
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
        try:
            definition = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"tokenizer {str(path)!r} cannot be read: {error}") from None
        return cls(definition, config=config, chat_template=_default_template(template), name=str(folder))

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def control_tokens(self) -> Mapping[str, ControlToken]:
        """The control tokens by their text."""
        return {
            token.content: ControlToken(
                id=id,
                text=token.content,
                special=token.special,
                strips_left=token.lstrip,
                strips_right=token.rstrip,
                whole_word=token.single_word,
            )
            for id, token in self._backend.get_added_tokens_decoder().items()
            if is_control_token(token)
        }

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids of the control tokens."""
        return frozenset(token.id for token in self.control_tokens.values())

    @cached_property
    def has_ambiguous_control_ids(self) -> bool:
        """Whether control tokens are matched against normalized text, or as whole words before the text is normalized.

        Text that contains none of them may then give their ids, so an id does not prove which characters it came from.
        """
        tokens = self._backend.get_added_tokens_decoder().values()
        return self._backend.normalizer is not None and any(
            token.content in self.control_tokens and (token.normalized or token.single_word) for token in tokens
        )

    @cached_property
    def encodes_words_separately(self) -> bool:
        """Whether the ids of every text without control tokens are those of its words, concatenated."""
        tokens = self._backend.get_added_tokens_decoder().values()
        if self.has_ambiguous_control_ids or any(token.single_word for token in tokens):
            return False
        if self.dummy_prefix != "never" and len(tokens) > len(self.control_tokens):
            return False  # the dummy prefix is also put after added tokens that are text
        return encodes_words_separately(self._backend)

    @cached_property
    def bounds(self) -> TokenBounds | None:
        """What is certain of the tokens of any text; None where it is not proven."""
        return None if self.has_ambiguous_control_ids else token_bounds(self._backend)

    @cached_property
    def encodes_starts_alike(self) -> bool:
        """Whether the ids of the first words of every text are the first ids of the text, control tokens included."""
        if not self.encodes_words_separately or self.bounds is None:
            return False
        return not may_make_control_ids(self._backend, self.control_ids)

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of text that the vocabulary lacks; None where the same token is BOS, EOS or padding."""
        model = self._backend.model
        text = getattr(model, "unk_token", None)
        id = self.id_of(text) if text is not None else None
        if isinstance(model, tokenizers.models.Unigram):
            id = json.loads(model.__getstate__())["unk_id"]
        tokens = self.special_tokens
        return None if id in {self.id_of(text) for text in (tokens.bos, tokens.eos, tokens.pad)} else id

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """BOS, EOS and the other tokens that templates need to know."""
        bos = self._special_token("bos_token")
        return SpecialTokens(
            bos=bos,
            eos=self._special_token("eos_token"),
            pad=self._special_token("pad_token"),
            unk=self._special_token("unk_token"),
            sep=self._special_token("sep_token"),
            special=frozenset(token.text for token in self.control_tokens.values() if token.special),
            added=frozenset(self.control_tokens),
            stop_tokens=self._stop_tokens(),
            adds_bos=bool(bos) and self._backend.encode("a").ids[:1] == [self.id_of(bos)],
        )

    def _stop_tokens(self) -> tuple[str, ...]:
        """The texts of the stop tokens that can be trained: control tokens, and EOS where no file names any."""
        if _STOP_TOKENS not in self._config:
            eos = self._special_token("eos_token")
            return (eos,) if eos else ()
        texts = {token.id: token.text for token in self.control_tokens.values()}
        return tuple(texts[id] for id in self._config[_STOP_TOKENS] if id in texts)

    @cached_property
    def dummy_prefix(self) -> Literal["never", "first", "each"]:
        """Where SentencePiece puts a dummy prefix (a space): at the start of a text, or also after control tokens."""
        steps = [*components(self._backend.normalizer), *components(self._backend.pre_tokenizer)]
        if any(step["type"] == "Prepend" or step.get("add_prefix_space") for step in steps):
            return "each"
        schemes = {step.get("prepend_scheme", "never") for step in steps if step["type"] == "Metaspace"}
        return "each" if "always" in schemes else "first" if "first" in schemes else "never"

    def id_of(self, token: str) -> int | None:
        """The id of a token's text; None where the vocabulary lacks it."""
        id: int | None = self._backend.token_to_id(token)
        return id

    def backend(self, *, control: bool, prefix: bool) -> tokenizers.Tokenizer:
        """The backend with or without control tokens, and with or without the dummy prefix."""
        prefix = prefix or self.dummy_prefix == "never"
        if control and prefix:
            return self._backend
        if (control, prefix) not in self._variants:
            definition = json.loads(self._backend.to_str())
            definition["post_processor"] = None
            if not control:
                definition["added_tokens"] = list(self._without_control(definition["added_tokens"]))
            if not prefix:
                for stage in ("normalizer", "pre_tokenizer"):
                    definition[stage] = _without_prefix(definition[stage])
            self._variants[control, prefix] = tokenizers.Tokenizer.from_str(json.dumps(definition))
        return self._variants[control, prefix]

    def _without_control(self, added: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The added tokens that are text, with their ids unchanged.

        The library gives ids, in order, to added tokens that the model's vocabulary lacks. So a control token among
        them is not removed, since that would change the ids after it. It is replaced by characters that no text should
        contain. A text that does contain them gets a control id, which the encoder notices.
        """
        for token in added:
            if token["content"] not in self.control_tokens:
                yield token
            elif self._backend.model.id_to_token(token["id"]) is None:
                yield {**token, "content": f"\ufffe{token['id']}\uffff", "special": True, "normalized": False}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens included."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    def pieces(self, ids: Iterable[int], *, behind_control: bool = False) -> list[AnswerPiece]:
        """What a model wrote, in pieces: each control token by itself, and the text between them.

        The text is that which was encoded: a continuation keeps the blank space at its start, and the dummy prefix that
        some tokenizers write behind every control token is left out. `behind_control` says that the first id stands
        behind one. Bytes that are no whole character, as at the end of a cut answer, become U+FFFD, and so does an id
        that the vocabulary lacks. Raises `TokenizerError` for what is no id.
        """
        ids = [*map(_checked_id, ids)]
        controls = {token.id: token for token in self.control_tokens.values()}
        found: list[AnswerPiece] = []
        for is_control, run in groupby(ids, key=controls.__contains__):
            if is_control:
                found += [AnswerPiece(controls[id].text, True, controls[id].special) for id in run]
                behind_control = True
                continue
            text = self._text_of(run)
            if behind_control and self.dummy_prefix == "each":
                text = text.removeprefix(" ")
            found.append(AnswerPiece(text))
        return found

    def _text_of(self, ids: Iterable[int]) -> str:
        """The text of ids that do not begin a text, with U+FFFD for each that the vocabulary lacks."""
        runs = groupby(ids, key=self._known_ids.__contains__)
        return "".join(self._continuation(list(run)) if known else "\ufffd" * len(list(run)) for known, run in runs)

    @cached_property
    def _known_ids(self) -> frozenset[int]:
        return frozenset(self._backend.get_vocab(with_added_tokens=True).values())

    def _continuation(self, ids: list[int]) -> str:
        """The text of ids that do not begin a text."""
        if self._letter is None:
            return self.decode(ids)
        return self.decode([self._letter, *ids]).removeprefix(self.decode([self._letter]))

    @cached_property
    def _letter(self) -> int | None:
        """A token to decode before others where the decoder removes blank space from the start of a text; else None."""
        ids = self.backend(control=False, prefix=False).encode("x", add_special_tokens=False).ids
        if len(ids) != 1:
            return None
        blank = self.backend(control=False, prefix=False).encode(" x", add_special_tokens=False).ids
        return None if self.decode(blank) == " x" else ids[0]

    def _special_token(self, key: str) -> str:
        value = self._config.get(key)
        text = value.get("content") if isinstance(value, Mapping) else value
        if text is None:
            return ""
        if not isinstance(text, str) or self.id_of(text) is None:
            near = nearest(str(text), self.control_tokens)
            raise TokenizerError(f"tokenizer {self.name!r}: {key} {text!r} is not in its vocabulary; {near}")
        return text


def _checked_id(value: Any) -> int:
    """A number, also of NumPy, as an id; raises `TokenizerError` for any other value."""
    try:
        id = index(value)
    except TypeError:
        id = -1
    if id < 0 or isinstance(value, bool):
        raise TokenizerError(f"found {shorten(value)} among ids; expected whole numbers from 0 on")
    return id


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"tokenizer file {str(path)!r} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"tokenizer file {str(path)!r}: expected an object; found {type(value).__name__}")
    return value


def _default_template(value: object) -> str | None:
    """The chat template; the default where a tokenizer has several by name."""
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None


def _add_configured_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], name: str) -> None:
    """Add the tokens that only tokenizer_config.json lists, and flag its special ones, as transformers does."""
    known = backend.get_added_tokens_decoder()
    listed = config.get("added_tokens_decoder") or {}
    try:
        tokens = [(int(key), _parse_added_token(entry)) for key, entry in listed.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"tokenizer {name!r}: added_tokens_decoder must map ids to objects with content; found {shorten(listed)} "
            f"({type(error).__name__}: {error})"
        ) from None
    for id, token in sorted(tokens, key=lambda item: item[0]):
        if id not in known or token.special > known[id].special:
            _add(backend, token)
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for text in _special_texts(config):
        if text not in special and backend.token_to_id(text) is not None:
            _add(backend, tokenizers.AddedToken(text, special=True, normalized=False))


def _check_added_tokens(backend: tokenizers.Tokenizer, name: str) -> None:
    """Refuse a token that the normalizer turns into nothing: the library would panic, or use all memory."""
    for id, token in backend.get_added_tokens_decoder().items():
        if token.normalized and backend.normalizer and not backend.normalizer.normalize_str(token.content):
            raise TokenizerError(
                f"tokenizer {name!r}: its normalizer leaves nothing of the added token {token.content!r} ({id}); "
                "expected a token with normalized=false"
            )


def _parse_added_token(entry: Mapping[str, Any]) -> tokenizers.AddedToken:
    flags = {flag: bool(entry.get(flag, False)) for flag in ("lstrip", "rstrip", "single_word", "special")}
    return tokenizers.AddedToken(entry["content"], normalized=bool(entry.get("normalized", True)), **flags)


def _add(backend: tokenizers.Tokenizer, token: tokenizers.AddedToken) -> None:
    if token.special:
        backend.add_special_tokens([token])
    else:
        backend.add_tokens([token])


def _special_texts(config: Mapping[str, Any]) -> Iterator[str]:
    """The texts that tokenizer_config.json names as special tokens."""
    values = [config.get(key) for key in SPECIAL_TOKEN_KEYS]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(key)
        if isinstance(more, (list, Mapping)):
            values += more.values() if isinstance(more, Mapping) else more
    for value in values:
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str) and text:
            yield text


def _without_prefix(stage: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer of tokenizer.json without its dummy prefix; None where nothing is left."""
    if stage is None or stage["type"] == "Prepend":
        return None
    for key in ("normalizers", "pretokenizers"):
        if key in stage:
            return {**stage, key: [step for inner in stage[key] if (step := _without_prefix(inner)) is not None]}
    changed = dict(stage)
    if "add_prefix_space" in changed:
        changed["add_prefix_space"] = False
    if "prepend_scheme" in changed:
        changed["prepend_scheme"] = "never"
    return changed
