"""`templatekit generate`."""

from __future__ import annotations

from pathlib import Path

import click

from templatekit.cli.options import PLUGIN_DIR, add_options, load_registry
from templatekit.cli.terminal import print_data, print_json
from templatekit.config.data_options import DataOptions
from templatekit.errors import ConfigError
from templatekit.formats.lookup import TOKENIZER_TEMPLATE, find_template
from templatekit.types import Example, Message


@click.command()
@click.option("--model", default="smollm2-135m-instruct", show_default=True, help="A run's folder, or any model.")
@click.option("--template", help="The template to prompt with; by default the run's own, else the tokenizer's.")
@click.option("--instruction", required=True, help="The instruction for the model.")
@click.option("--context", default="", help="More text for the instruction: Alpaca's input, Dolly's context.")
@click.option("--system", default="", help="A system message, if the template supports one.")
@click.option("--prefill", default="", help="The start of the answer; the model continues it.")
@click.option("--chat-template-kwargs", metavar="NAME=VALUE,…", help="Values for variables that the template reads.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="The maximum length of the answer, in tokens.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="The sampling temperature; 0 is greedy.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of sampling.")
@add_options(DataOptions, only=["trust_remote_code"])
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0, mps.")
@click.option("--json", "as_json", is_flag=True, help="Print prompt, ids and answer as JSON.")
@PLUGIN_DIR
def generate(
    model: str,
    template: str | None,
    instruction: str,
    context: str,
    system: str,
    prefill: str,
    chat_template_kwargs: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    trust_remote_code: bool | None,
    device: str,
    as_json: bool,
    plugin_dirs: tuple[Path, ...],
) -> None:
    """Have a model answer an instruction, prompted as in training and stopped where the template ends an answer."""
    registry = load_registry(plugin_dirs)
    from templatekit.export.serving import stops_of
    from templatekit.formats.kwargs import parse_kwargs
    from templatekit.tokens.encoder import Encoder
    from templatekit.tokens.load import from_transformers, load_transformers_tokenizer, resolve_model
    from templatekit.training.generation import generate as generate_answer
    from templatekit.training.model import load_model, resolve_device

    if not instruction.strip():
        raise ConfigError("--instruction: expected text; found none")
    address = resolve_model(model, registry) or model
    trusted = bool(trust_remote_code)
    tokenizer = from_transformers(load_transformers_tokenizer(address, trust_remote_code=trusted), name=model)
    run_template = Path(address) / "template.jinja"
    prompt_template = find_template(
        template or (str(run_template) if run_template.is_file() else TOKENIZER_TEMPLATE),
        registry,
        chat_template=tokenizer.chat_template,
        kwargs=parse_kwargs(chat_template_kwargs or ""),
    )
    messages = [Message(role="user", content=instruction, context=context)]
    if system:
        messages.insert(0, Message(role="system", content=system))
    if prefill:
        messages.append(Message(role="assistant", content=prefill))
    example = Example(messages=tuple(messages))
    prompt = prompt_template.prompt(example, tokenizer.special_tokens, continue_final=bool(prefill))
    prompt_ids = Encoder(tokenizer).encode(prompt).input_ids
    stops = stops_of(prompt_template, tokenizer)
    answer = generate_answer(
        load_model(address, device=resolve_device(device), trust_remote_code=trusted),
        prompt_ids,
        decode=tokenizer.decode,
        max_new_tokens=max_new_tokens,
        stop_ids=stops.ids,
        stop_strings=stops.strings,
        temperature=temperature,
        seed=seed,
    )
    if as_json:
        result = {
            "prompt": prompt.text,
            "prompt_ids": list(prompt_ids),
            "answer": answer.text,
            "answer_ids": list(answer.ids),
            "stopped": answer.stopped,
        }
        print_json(result)
    else:
        print_data((prefill + answer.text).strip())
