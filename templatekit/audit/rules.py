"""The list of all rules, the most severe first. docs/audit.md has the same list, and a test compares the two."""

from __future__ import annotations

from functools import partial

from templatekit.audit import rules_content, rules_text, rules_training
from templatekit.audit.rule import LEVELS, Rule

_error, _warning, _note = (partial(Rule, level=level) for level in LEVELS)

RULES: tuple[Rule, ...] = (
    _error(
        code="unusable",
        title="rows that cannot be used",
        help="The adapter or the template refuses these rows, so that no one trains on them: mend the data, or drop "
        "them knowingly with --on-error skip.",
        check_row=rules_content.unusable,
    ),
    _error(
        code="nothing-trained",
        title="nothing is trained",
        help="No token of these rows has a loss weight, so they cost time and teach nothing: drop them, or check their "
        "roles, their weights and --train-on.",
        check_row=rules_training.nothing_trained,
    ),
    _error(
        code="end-untrained",
        title="the end marker is not trained",
        help="A model trained on these answers does not learn to stop: let the template write a special token or a "
        "stop text after the answer, inside its generation block if it has one.",
        requires=("tokenizer",),
        check_row=rules_training.end_marker_untrained,
    ),
    _error(
        code="shared-rows",
        title="rows that another data set contains too",
        help="A score measured on the other data set is partly memory: remove these rows from one of the two.",
        requires=("against",),
        check_row=rules_content.shared_rows,
    ),
    _warning(
        code="nearly-shared-rows",
        title="rows that are similar to rows of another data set",
        help="These rows differ from rows of the other data set by a few words, so a score measured there is partly "
        "memory: look at them, and remove those that say the same from one of the two.",
        requires=("against", "shared"),
        check_row=rules_content.nearly_shared_rows,
    ),
    _warning(
        code="shared-prompts",
        title="prompts that another data set contains too, with another answer",
        help="The other data set asks what is trained here: remove these rows from one of the two, unless several "
        "answers to one prompt are intended.",
        requires=("against",),
        check_row=rules_content.shared_prompts,
    ),
    _warning(
        code="too-long",
        title="longer than --max-length",
        help="These rows are dropped, or shortened if --truncation says so: raise --max-length, or split them.",
        requires=("tokenizer", "max_length"),
        check_row=rules_training.too_long,
    ),
    _warning(
        code="end-cut-off",
        title="a cut at --max-length would remove the end marker",
        help="A trainer that cuts there teaches these answers without their end: drop such rows, as --truncation drop "
        "does, raise --max-length, or accept it (--truncation response).",
        requires=("tokenizer", "max_length"),
        check_row=rules_training.end_cut_off,
    ),
    _warning(
        code="stop-token",
        title="no server would stop at the end marker",
        help="The model learns to end with a token at which generation does not stop: add its id to eos_token_id in "
        "generation_config.json (templatekit finetune does).",
        requires=("tokenizer",),
        check_template=rules_training.stop_token,
    ),
    _warning(
        code="end-not-special",
        title="the end marker is no special token",
        help="Servers have to search the answer for a stop text, and the same characters in data end it too: use the "
        "tokenizer that belongs to the template, or add the token to it.",
        requires=("tokenizer",),
        check_template=rules_training.end_marker_not_special,
    ),
    _warning(
        code="control-text",
        title="control strings in data",
        help="templatekit encodes them as plain text, but other trainers, and servers that receive such text, treat "
        "them as the template's own: remove or rewrite them, unless the data is about them.",
        requires=("tokenizer",),
        check_row=rules_text.control_text,
    ),
    _warning(
        code="template-markers",
        title="the template's own markers in data",
        help="No label changes, but the model sees a turn start where there is none, and often such rows are two "
        "records that were merged by mistake: look at them, and split or drop them.",
        check_row=rules_text.template_markers,
    ),
    _warning(
        code="text-changed",
        title="the template changes a text, or leaves it out",
        help="The trained text is not that of the data: check whether the template does this on purpose (dropping old "
        "reasoning), and choose another one if not.",
        check_row=rules_text.text_changed,
    ),
    _warning(
        code="empty-answer",
        title="empty answers",
        help="The model learns to say nothing and stop: drop these rows, or fill in the answers.",
        check_row=rules_content.empty_answer,
    ),
    _warning(
        code="empty-prompt",
        title="empty user messages",
        help="The model learns to answer without having been asked: drop these rows, or check whether a column has the "
        "wrong name (--columns).",
        check_row=rules_content.empty_prompt,
    ),
    _warning(
        code="placeholder",
        title="placeholders where text should be",
        help="The model learns to read and write them: name those that mean no input (--empty-context '<noinput>'), "
        "and drop rows whose answer is one.",
        check_row=rules_content.placeholder,
    ),
    _warning(
        code="duplicate-rows",
        title="duplicate rows",
        help="These rows have the same text as an earlier row, so that they count twice: keep one of each.",
        check_row=rules_content.duplicate_rows,
    ),
    _warning(
        code="encoding",
        title="encoding oddities in data",
        help="Control characters, replacement characters, byte order marks, lone carriage returns and text decoded "
        "wrongly are trained as they are: repair the data at its source.",
        check_row=rules_text.encoding_oddities,
    ),
    _note(
        code="same-prompt",
        title="one prompt, several answers",
        help="An earlier row has the same text up to the last answer: fine if several answers are intended, else a "
        "contradiction to resolve.",
        check_row=rules_content.same_prompt,
    ),
    _note(
        code="text-trimmed",
        title="whitespace at a text's edges is dropped",
        help="The template strips these texts, so that an indented first line loses its indentation: choose another "
        "template if the whitespace matters.",
        check_row=rules_text.text_trimmed,
    ),
    _note(
        code="text-normalized",
        title="encoding and decoding changes a text",
        help="Normalisation (NFC, U+2581 for a space) or an unknown token changes these texts, and the model can only "
        "learn the changed ones: normalise the data the same way, or accept it.",
        requires=("tokenizer",),
        check_row=rules_text.text_normalized,
    ),
    _note(
        code="turn-dependent",
        title="earlier turns render differently when they are last",
        help="The template drops old reasoning, or ends the last turn in another way, so that each of these records is "
        "trained in several samples, every turn as in serving: expect more tokens than the records contain.",
        check_row=rules_training.turn_dependent,
    ),
    _note(
        code="unstable-boundary",
        title="encoding the whole text gives other ids",
        help="Where prompt and answer are encoded as one text, as some trainers and --boundary joint do, tokens merge "
        "across the edge and training sees other ids than serving: keep the default, --boundary cut.",
        requires=("tokenizer",),
        check_row=rules_training.unstable_boundary,
        explain=rules_training.explain_boundary,
    ),
    _note(
        code="control-acts",
        title="control strings in data that act",
        help="Added tokens that are not flagged special (<think>) act in an assistant's text, as reasoning data needs "
        "them to, and with --control-tokens everywhere every control string acts: check that this is intended.",
        requires=("tokenizer",),
        check_row=rules_text.control_that_acts,
    ),
    _note(
        code="trailing-text",
        title="the template continues after the last end marker",
        help="Its text ends with more than the answer, often with a prompt for the next one that no one asked for: "
        "these tokens cost time in every row and teach nothing; repair the template if it is yours.",
        check_template=rules_training.trailing_text,
    ),
    _note(
        code="left-out",
        title="rows that the options leave out",
        help="A condition (--filter) or a repeat (--dedup) takes these rows out of the set, as it would in training: "
        "check that they are the right ones.",
        check_row=rules_content.excluded,
    ),
    _note(
        code="unread-keys",
        title="keys that are not read",
        help="The adapter does not look at these keys of the records: rename them with --columns where they hold text "
        "that should be trained.",
        check_row=rules_content.unread_keys,
    ),
)
