"""Deliberately wrong formats, each in one way, under the name of the check that must catch it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

from templatekit import (
    Adapter,
    Example,
    LossSpan,
    Message,
    Record,
    RecordError,
    RenderedText,
    Template,
    TemplateFile,
    TokenizedExample,
    text_of,
)
from templatekit.export.serving import Stops
from templatekit.formats.answers.grammar import AnswerGrammar
from templatekit.formats.answers.parsing import AnswerEvent, AnswerParser, ParsedAnswer
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing import Subject, tiny_tokenizer
from templatekit.tokens.encoder import Encoder
from templatekit.types import Sample


class Mutant(NamedTuple):
    """A wrong format and the check that must fail on it."""

    check: str
    name: str
    make: Callable[[], Subject]


MUTANTS: list[Mutant] = []


def mutant(check: str) -> Callable[[Callable[[], Subject]], Callable[[], Subject]]:
    """Decorator that adds the subject to `MUTANTS`."""

    def add(make: Callable[[], Subject]) -> Callable[[], Subject]:
        MUTANTS.append(Mutant(check, make.__name__, make))
        return make

    return add


# Correct formats, from which the mutants are made.

QA = "Q: {{ instruction }}\n{% if context %}{{ context }}\n{% endif %}A: {{ response }}{{ eos_token }}"
CHAT = """\
{#- templatekit
stop: ["<|im_end|>"]
#}
{% for message in messages %}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""


class Faq(Adapter):
    """A correct adapter: reads and writes a question, optional details, and an answer."""

    name = "faq"
    keys: ClassVar[tuple[str, ...]] = ("question", "details", "answer")
    required = ("question", "answer")

    def to_example(self, record: Record) -> Example:
        details = text_of(record, "details", required=False)
        return example(text_of(record, "question"), text_of(record, "answer"), details)

    def to_record(self, example: Example) -> Record:
        user, assistant = example.messages
        return {"question": user.content, "details": user.context, "answer": assistant.content}


def example(question: str, answer: str, context: str = "") -> Example:
    user = Message(role="user", content=question, context=context)
    return Example(messages=(user, Message(role="assistant", content=answer)))


def template(source: str, name: str = "wrong", *, of: type[Template] = Template) -> Template:
    return of(TemplateFile(name=name, source=source))


def only_template(source: str, tokenizer: str = "bytes", *, of: type[Template] = Template) -> Subject:
    return Subject(template=template(source, of=of), tokenizer=tiny_tokenizer(tokenizer))


def only_adapter(adapter: Adapter) -> Subject:
    return Subject(adapter=adapter, tokenizer=tiny_tokenizer("bytes"))


Encoded = Callable[[TokenizedExample], TokenizedExample]


class ChangedPipeline(Subject):
    """A correct format in a pipeline that is changed."""

    def __init__(
        self, change_pipeline: Callable[[Pipeline], object], *, source: str = CHAT, tokenizer: str = "bytes"
    ) -> None:
        super().__init__(template=template(source, "changed"), tokenizer=tiny_tokenizer(tokenizer))
        self.change_pipeline = change_pipeline

    def new_pipeline(self, **options: Any) -> Pipeline:
        pipeline = super().new_pipeline(**options)
        self.change_pipeline(pipeline)
        return pipeline


class WrongEncoder(Encoder):
    """Changes the results of the correct encoder."""

    def __init__(self, right: Encoder, change: Encoded) -> None:
        super().__init__(right.tokenizer, boundary=right.boundary)
        self.change = change

    def encode_columns(self, texts: Iterable[tuple[RenderedText, Sequence[LossSpan]]]) -> TokenizedColumns:
        return given([self.change(each) for each in super().encode_columns(texts)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Given(TokenizedColumns):
    """Columns that return the given examples, even invalid ones."""

    examples: Sequence[TokenizedExample]

    def __getitem__(self, index: int) -> TokenizedExample:
        return self.examples[index]

    def select(self, keep: Sequence[int]) -> TokenizedColumns:
        return given([self.examples[index] for index in keep])


def given(examples: Sequence[TokenizedExample]) -> TokenizedColumns:
    columns = TokenizedColumns.of(examples)
    return Given(**{field.name: getattr(columns, field.name) for field in fields(columns)}, examples=examples)


def with_encoder(change: Encoded, *, source: str = CHAT, tokenizer: str = "bytes") -> Subject:
    """A subject whose encoder returns changed examples."""

    def change_pipeline(pipeline: Pipeline) -> None:
        assert pipeline.encoder is not None
        pipeline.encoder = WrongEncoder(pipeline.encoder, change)

    return ChangedPipeline(change_pipeline, source=source, tokenizer=tokenizer)


def whole_text_encoding(tokenizer: str, *, source: str = CHAT) -> Subject:
    """Encodes the whole text in one call, with the control strings of the data, as most projects do."""
    backend = tiny_tokenizer(tokenizer).backend(control=True, prefix=True)

    def change(right: TokenizedExample) -> TokenizedExample:
        whole = backend.encode(right.rendered.text, add_special_tokens=False)
        starts = [(span.start, span.weight) for span in right.loss_spans]
        weights = [next((weight for start, weight in reversed(starts) if start <= at), 0.0) for at, _ in whole.offsets]
        return replace(right, input_ids=tuple(whole.ids), loss_weights=tuple(weights))

    return with_encoder(change, source=source, tokenizer=tokenizer)


def with_weights(change: Callable[[tuple[float, ...]], Sequence[float]], *, source: str = CHAT) -> Subject:
    """A subject whose encoder returns changed loss weights."""
    return with_encoder(lambda right: replace(right, loss_weights=tuple(change(right.loss_weights))), source=source)


# 1 to 7.


@mutant("valid_records_are_rendered")
def refuses_system_messages() -> Subject:
    return only_template(
        CHAT.replace("{{ '", "{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ '", 1)
    )


@mutant("valid_records_are_rendered")
def fails_on_empty_questions() -> Subject:
    return only_template(QA.replace("{{ instruction }}", "{{ instruction if 1 / (instruction | length) }}"))


@mutant("valid_records_are_rendered")
def adapter_fails_on_empty_answers() -> Subject:
    class Wrong(Faq):
        def to_example(self, record: Record) -> Example:
            assert record["answer"][0]
            return super().to_example(record)

    return only_adapter(Wrong())


@mutant("bad_records_are_refused_by_name")
def raises_key_errors() -> Subject:
    class Wrong(Faq):
        def to_example(self, record: Record) -> Example:
            return example(record["question"], record["answer"])

    return only_adapter(Wrong())


@mutant("bad_records_are_refused_by_name")
def refuses_without_a_field() -> Subject:
    class Wrong(Faq):
        def to_example(self, record: Record) -> Example:
            if not isinstance(record.get("answer"), str):
                raise RecordError("wrong")
            return super().to_example(record)

    return only_adapter(Wrong())


@mutant("bad_records_are_refused_by_name")
def takes_numbers_for_texts() -> Subject:
    class Wrong(Faq):
        def to_example(self, record: Record) -> Example:
            answer: Any = record.get("answer", "")
            return example(text_of(record, "question"), answer)

    return only_adapter(Wrong())


@mutant("equal_records_give_equal_ids")
def counts_its_calls() -> Subject:
    class Wrong(Faq):
        def __init__(self) -> None:
            self.calls = itertools.count()

        def to_example(self, record: Record) -> Example:
            return example(f"{next(self.calls)}. {text_of(record, 'question')}", text_of(record, "answer"))

    return only_adapter(Wrong())


@mutant("equal_records_give_equal_ids")
def prints_the_date() -> Subject:
    return only_template("{{ strftime_now('%d %B %Y') }}\n" + QA)


@mutant("equal_records_give_equal_ids")
def keeps_the_last_rows_system_message() -> Subject:
    class Wrong(Faq):
        last = ""

        def to_example(self, record: Record) -> Example:
            before, self.last = self.last, text_of(record, "question")
            return example(text_of(record, "question"), text_of(record, "answer"), before)

    return only_adapter(Wrong())


@mutant("records_stay_as_they_are")
def pops_the_answer() -> Subject:
    class Wrong(Faq):
        def to_example(self, record: Record) -> Example:
            made = super().to_example(record)
            record.pop("details", None)  # type: ignore[attr-defined]
            return made

    return only_adapter(Wrong())


@mutant("records_stay_as_they_are")
def fills_metadata_when_writing() -> Subject:
    class Wrong(Faq):
        def to_record(self, example: Example) -> Record:
            example.metadata["written"] = True  # type: ignore[index]
            return super().to_record(example)

    return only_adapter(Wrong())


@mutant("ids_labels_and_weights_agree")
def ids_beyond_the_vocabulary() -> Subject:
    return with_encoder(lambda right: replace(right, input_ids=(*right.input_ids[:-1], 10**6)))


class Shifted(TokenizedExample):
    """Labels that are already shifted, so that the trainer shifts them a second time."""

    @property
    def labels(self) -> tuple[int, ...]:
        return (*super().labels[1:], -100)


@mutant("ids_labels_and_weights_agree")
def labels_shifted_already() -> Subject:
    def change(right: TokenizedExample) -> TokenizedExample:
        return Shifted(
            input_ids=right.input_ids,
            loss_weights=right.loss_weights,
            rendered=right.rendered,
            loss_spans=right.loss_spans,
        )

    return with_encoder(change)


@mutant("a_batch_is_its_single_records")
def pads_to_the_longest() -> Subject:
    class Padding(Encoder):
        def encode_columns(self, texts: Iterable[tuple[RenderedText, Sequence[LossSpan]]]) -> TokenizedColumns:
            right = list(super().encode_columns(texts))
            longest = max(map(len, right), default=0)
            padded = [
                replace(
                    each,
                    input_ids=(*each.input_ids, *[0] * (longest - len(each))),
                    loss_weights=(*each.loss_weights, *[0.0] * (longest - len(each))),
                )
                for each in right
            ]
            return TokenizedColumns.of(padded)

    def change_pipeline(pipeline: Pipeline) -> None:
        pipeline.encoder = Padding(tiny_tokenizer("bytes"))

    return ChangedPipeline(change_pipeline)


@mutant("the_cost_grows_with_the_text")
def looks_at_every_pair_of_characters() -> Subject:
    class Wrong(Faq):
        def to_example(self, record: Record) -> Example:
            text = text_of(record, "question")
            for _ in text:
                for _ in text:
                    pass
            return super().to_example(record)

    return only_adapter(Wrong())


@mutant("the_cost_grows_with_the_text")
def writes_as_much_a_turn_as_there_are_turns() -> Subject:
    dots = "{% for other in messages[: loop.index0 if message.role == 'user' else 0] %}{{ '. ' }}{% endfor %}\n{{ '"
    return only_template(CHAT.replace("{{ '", dots, 1))


# 8 to 12.


@mutant("ids_decode_to_the_text")
def drops_an_id() -> Subject:
    def change(right: TokenizedExample) -> TokenizedExample:
        return replace(right, input_ids=right.input_ids[1:], loss_weights=right.loss_weights[1:])

    return with_encoder(change)


@mutant("texts_stand_unchanged")
def trims_without_saying_so() -> Subject:
    return only_template(CHAT.replace("message.content", "message.content | trim"))


@mutant("texts_stand_unchanged")
def folds_case() -> Subject:
    return only_template(QA.replace("{{ instruction }}", "{{ instruction | lower }}"))


@mutant("texts_stand_unchanged")
def adapter_strips_without_saying_so() -> Subject:
    class Wrong(Faq):
        def to_example(self, record: Record) -> Example:
            return example(text_of(record, "question").strip(), text_of(record, "answer"))

    return only_adapter(Wrong())


@mutant("texts_are_printed_once")
def repeats_the_question() -> Subject:
    return only_template(QA.replace("A: ", "({{ instruction }}) A: "))


@mutant("texts_are_printed_once")
def loses_the_context_behind_a_number() -> Subject:
    # This text depends on the context's characters, so that the template itself takes it for the printed context.
    return only_template("{{ context|unique|list|length }} Q: {{ instruction }}\nA: {{ response }}{{ eos_token }}")


@mutant("prints_no_none")
def prints_the_tools_that_are_none() -> Subject:
    return only_template("{{ 'Tools: ' ~ tools ~ '\\n' }}" + CHAT)


@mutant("prints_no_none")
def prints_none_as_it_is() -> Subject:
    return only_template(CHAT + "{{ tools }}")


@mutant("records_come_back")
def writes_the_question_twice() -> Subject:
    class Wrong(Faq):
        def to_record(self, example: Example) -> Record:
            return {**super().to_record(example), "details": example.messages[0].content}

    return only_adapter(Wrong())


@mutant("records_come_back")
def forgets_a_key_that_it_reads() -> Subject:
    class Wrong(Faq):
        def to_record(self, example: Example) -> Record:
            record = dict(super().to_record(example))
            del record["details"]
            return record

    return only_adapter(Wrong())


@mutant("declared_keys_are_read")
def names_a_key_and_does_not_read_it() -> Subject:
    class Wrong(Faq):
        keys = (*Faq.keys, "notes")

    return only_adapter(Wrong())


@mutant("unknown_keys_are_reported")
def claims_every_key() -> Subject:
    class Everything(tuple[str, ...]):
        def __contains__(self, key: object) -> bool:
            return True

    class Wrong(Faq):
        keys = Everything(Faq.keys)

    return only_adapter(Wrong())


# 13 to 19.


class Retargeted(Template):
    """Moves the ends of the trained text."""

    start = end = 0

    def moved(self, right: RenderedText) -> RenderedText:
        targets = (
            replace(target, start=target.start + self.start, end=min(target.end + self.end, len(right.text)))
            for target in right.target_spans
        )
        return replace(right, target_spans=tuple(targets))

    def render(self, *args: Any, **more: Any) -> RenderedText:
        return self.moved(super().render(*args, **more))

    def samples(self, *args: Any, **more: Any) -> tuple[Sample, ...]:
        return tuple(replace(each, rendered=self.moved(each.rendered)) for each in super().samples(*args, **more))


class Greedy(Retargeted):
    """Also trains the text after the end marker."""

    end = 1


class Headed(Retargeted):
    """Trains the header, which belongs to the prompt."""

    start = -1


@mutant("the_response_alone_is_trained")
def trains_the_newline_behind_the_end() -> Subject:
    return only_template(CHAT, of=Greedy)


@mutant("the_response_alone_is_trained")
def trains_the_header() -> Subject:
    return only_template(CHAT, of=Headed)


@mutant("trained_ids_are_the_responses")
def weights_one_id_too_early() -> Subject:
    return with_weights(lambda weights: (*weights[1:], 0.0))


@mutant("trained_ids_are_the_responses")
def encodes_across_the_edge() -> Subject:
    return whole_text_encoding("nfc", source=QA)


@mutant("prompt_is_prefix")
def another_generation_prompt() -> Subject:
    return only_template(CHAT.replace("assistant\\n", "judge\\n"))


class Prompting(Template):
    """Adds a blank to the prompt."""

    def prompt(self, *args: Any, **more: Any) -> RenderedText:
        right = super().prompt(*args, **more)
        blank = replace(right.spans[0], start=len(right.text), end=len(right.text) + 1)
        return replace(right, text=right.text + " ", spans=(*right.spans, blank))


@mutant("prompt_is_prefix")
def a_blank_behind_the_prompt() -> Subject:
    return only_template(QA, of=Prompting)


@mutant("prompt_ids_are_prefix")
def prompt_merges_with_the_answer() -> Subject:
    return whole_text_encoding("bytes", source=QA)


@mutant("labels_begin_behind_the_prompt")
def the_first_answered_id_is_not_trained() -> Subject:
    return with_weights(lambda weights: (0.0, *weights[:-1]))


@mutant("labels_begin_behind_the_prompt")
def everything_is_trained() -> Subject:
    return with_weights(lambda weights: (0.0, *[1.0] * (len(weights) - 1)))


@mutant("end_marker_is_trained_once")
def nothing_ends_an_answer() -> Subject:
    class Endless(Template):
        def samples(self, *args: Any, **more: Any) -> tuple[Sample, ...]:
            return tuple(endless(sample) for sample in super().samples(*args, **more))

    def endless(sample: Sample) -> Sample:
        targets = [replace(target, end=target.marker_start) for target in sample.rendered.target_spans]
        return replace(sample, rendered=replace(sample.rendered, target_spans=tuple(targets)))

    return only_template(QA, of=Endless)


@mutant("end_marker_is_trained_once")
def the_end_is_padding() -> Subject:
    """Treats EOS as padding and leaves it out of the loss, so that the model never stops."""

    def change(right: TokenizedExample) -> TokenizedExample:
        spans = []
        for span in right.loss_spans:
            markers = [target.marker_start for target in right.rendered.target_spans]
            cut = next((at for at in markers if span.weight and span.start <= at < span.end), span.end)
            spans += [replace(span, end=cut), replace(span, start=cut, weight=0.0)]
        return replace(right, loss_spans=tuple(spans))

    return with_encoder(change)


@mutant("end_marker_is_trained_once")
def the_saved_model_stops_elsewhere() -> Subject:
    class Endless(Subject):
        @property
        def stops(self) -> Stops:
            return Stops(ids=(), strings=())

    return Endless(template=template(CHAT), tokenizer=tiny_tokenizer("bytes"))


# 20 to 24.


@mutant("bos_comes_first_or_never")
def writes_bos_before_every_turn() -> Subject:
    return only_template(CHAT.replace("{{ '", "{{ bos_token ~ '"))


@mutant("bos_comes_first_or_never")
def writes_bos_twice() -> Subject:
    return only_template("{{ bos_token }}{{ bos_token }}" + CHAT)


@mutant("control_ids_are_the_templates")
def takes_control_strings_of_the_data() -> Subject:
    return whole_text_encoding("bytes")


@mutant("texts_change_no_control_id")
def takes_control_strings_of_the_data_in_a_format_of_one_turn() -> Subject:
    return whole_text_encoding("nfc", source=QA)


@mutant("halves_never_join")
def joins_neighbouring_texts() -> Subject:
    return whole_text_encoding("bytes", source="{{ instruction }}{{ context }}:{{ response }}{{ eos_token }}")


@mutant("markers_change_no_label")
def finds_the_answer_by_its_marker() -> Subject:
    """The loss starts after the first response header, as in many projects."""

    def change(right: TokenizedExample) -> TokenizedExample:
        text = right.rendered.text
        start = text.find("A: ") + 3
        weights, at = [], 0
        for id in right.input_ids:
            weights.append(1.0 if at >= start else 0.0)
            at += len(tiny_tokenizer("bytes").decode([id]))
        return replace(right, loss_weights=tuple(weights))

    return with_encoder(change, source=QA)


# 25 to 30.


@mutant("agrees_with_plain_encoding")
def encodes_letter_by_letter() -> Subject:
    backend = tiny_tokenizer("bytes").backend(control=False, prefix=True)

    def change(right: TokenizedExample) -> TokenizedExample:
        ids = [id for letter in right.rendered.text for id in backend.encode(letter).ids]
        return replace(right, input_ids=tuple(ids), loss_weights=(0.0, *[1.0] * (len(ids) - 1)))

    return with_encoder(change)


@mutant("servers_feed_the_same_ids")
def exports_another_template() -> Subject:
    wrong = template(CHAT)
    wrong.source = CHAT.replace("assistant\\n", "assistant:\\n")
    return Subject(template=wrong, tokenizer=tiny_tokenizer("bytes"))


@mutant("turns_are_prefix_stable")
def begins_with_the_number_of_turns() -> Subject:
    return only_template("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}\n" + CHAT)


@mutant("turns_are_masked_as_alone")
def trains_the_last_turn_alone() -> Subject:
    class Last(Subject):
        def new_pipeline(self, **options: Any) -> Pipeline:
            return super().new_pipeline(**{**options, "train_on": "last"})

    return Last(template=template(CHAT), tokenizer=tiny_tokenizer("bytes"))


@mutant("odd_roles_lose_no_message")
def skips_tools_behind_a_number() -> Subject:
    # This text depends on the characters of all texts, so that the template itself takes it for the printed texts.
    number = "{{ messages | map(attribute='content') | join | unique | list | length }}\n"
    skip = "{% if message.role == 'tool' %}{% continue %}{% endif %}\n{{ '"
    return only_template(number + CHAT.replace("{{ '", skip, 1))


class Cutting(Pipeline):
    """Removes ids from the end, whether or not any label is left."""

    def run(self, records: Any = None, **more: Any) -> Iterator[Sample]:
        length, self.limit = self.options.max_length, None
        for prepared in super().run(records, **more):
            right = prepared.tokenized
            assert right is not None
            cut = replace(right, input_ids=right.input_ids[:length], loss_weights=right.loss_weights[:length])
            yield replace(prepared, tokenized=cut)


@mutant("cut_samples_keep_a_label")
def cuts_the_answer_off() -> Subject:
    class Short(Subject):
        def new_pipeline(self, **options: Any) -> Pipeline:
            right = super().new_pipeline(**options)
            return Cutting(
                right.options, self.registry, adapter=self.adapter, template=self.template, tokenizer=self.tokenizer
            )

    return Short(template=template(QA), tokenizer=tiny_tokenizer("bytes"))


class Rereading(Template):
    """A correct chat template, for wrong readers of its answers."""

    def __init__(self) -> None:
        super().__init__(TemplateFile(name="wrong", source=CHAT))


def read_by(wrong: Template) -> Subject:
    return Subject(template=wrong, tokenizer=tiny_tokenizer("bytes"))


@mutant("answers_are_read_back")
def reads_the_end_marker_as_content() -> Subject:
    class Wrong(Rereading):
        def grammar(self, *args: Any) -> AnswerGrammar:
            found = super().grammar(*args)
            return replace(found, stops=(), edges=tuple(e for e in found.edges if e.target != "end"))

    return read_by(Wrong())


class _Forgetting(AnswerParser):
    """Takes every chunk but the first in lower case."""

    chunks = 0

    def feed(self, answer: Any) -> list[AnswerEvent]:
        self.chunks += 1
        if self.chunks > 1 and not isinstance(answer, str):
            answer = [piece._replace(text=piece.text.lower()) for piece in answer]
        return super().feed(answer)


@mutant("answers_in_parts_are_read_alike")
def reads_later_chunks_otherwise() -> Subject:
    class Wrong(Rereading):
        def answer_parser(self, *args: Any, **more: Any) -> AnswerParser:
            return _Forgetting(self.grammar(*args), **more)

    return read_by(Wrong())


class _Losing(AnswerParser):
    """Loses what is left over."""

    def close(self) -> ParsedAnswer:
        parsed = super().close()
        kept = tuple(span for span in parsed.spans if span.field != "leftover")
        return replace(parsed, spans=kept)


@mutant("broken_answers_lose_nothing")
def loses_what_is_left_over() -> Subject:
    class Wrong(Rereading):
        def answer_parser(self, *args: Any, **more: Any) -> AnswerParser:
            return _Losing(self.grammar(*args), **more)

    return read_by(Wrong())


RIGHT: Mapping[str, Callable[[], Subject]] = {
    "one turn": lambda: only_template(QA),
    "chat": lambda: only_template(CHAT),
    "adapter": lambda: only_adapter(Faq()),
    "both": lambda: Subject(adapter=Faq(), template=template(QA), tokenizer=tiny_tokenizer("bytes")),
}
"""The correct formats: every check that applies to them holds."""
