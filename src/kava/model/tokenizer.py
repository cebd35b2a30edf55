"""Load the tokenizer of a base model, add the new tokens, and make it agree with the model on where a text begins and ends.

Conversions can fail here without an error: transformers 5.17 gives SmolLM2's tokenizer, read from GGUF, `<|im_start|>` as EOS, where the
model's own configuration has `<|im_end|>`. A model would be trained on an EOS that its generation does not use.
"""

import sys
from contextlib import nullcontext
from typing import Any

from kava.data.sequences import SPECIAL_TOKENS
from kava.errors import UserError
from kava.model.build import from_hub, not_loaded, silence_libraries
from kava.runtime.hub import in_cache, tokenizer_is_cached, without_network


def load_tokenizer(base: str, trust_remote_code: bool = False, revision: str | None = None) -> Any:
    """The tokenizer of a base model (hub name or directory), with the three new tokens.

    Raises:
        UserError: it cannot be loaded, or its `model_max_length` is not a number.
    """
    from transformers import AutoTokenizer

    silence_libraries()
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        complete = not trust_remote_code and tokenizer_is_cached(base, revision)
        tokenizer = from_hub(base, complete, lambda: AutoTokenizer.from_pretrained(base, **options))
    except UserError:
        raise
    # tokenizers (Rust) raises bare Exceptions for a broken tokenizer.json.
    except Exception as error:
        raise not_loaded(f"the tokenizer of model '{base}'", base, error) from None
    if not isinstance(tokenizer.model_max_length, int | float):
        found = tokenizer.model_max_length
        raise UserError(f"the tokenizer of model '{base}' has model_max_length {found!r}; make it a number in its tokenizer_config.json")
    return with_new_tokens(tokenizer)


def with_new_tokens(tokenizer: Any) -> Any:
    """Add the three new tokens, and a padding token if there is none; returns the same tokenizer."""
    tokenizer.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def agree_with_model(tokenizer: Any, base: str, trust_remote_code: bool = False, revision: str | None = None) -> None:
    """Set the EOS token of a base model's tokenizer to that of the model's configuration, if they differ.

    Args:
        tokenizer: as it was loaded; changed in place.
        base: hub name or directory.
        trust_remote_code, revision: as for the model.

    Raises:
        UserError: the tokenizer has no such token, or its BOS token is not that of the configuration.
    """
    config, ends = _read(base, trust_remote_code, revision)
    if ends and tokenizer.eos_token_id not in ends:
        theirs = tokenizer.convert_ids_to_tokens(ends[0]) if 0 <= ends[0] < len(tokenizer) else None
        if theirs is None:
            raise UserError(
                f"the configuration of model '{base}' ends a text with token {ends[0]}, which its tokenizer does not have: fix config.json"
            )
        said = f"ends a text with {tokenizer.eos_token!r}, its configuration with {theirs!r}: the configuration's is used"
        print(f"kava: the tokenizer of model '{base}' {said}", file=sys.stderr, flush=True)
        tokenizer.eos_token = theirs
    begins, first = getattr(config, "bos_token_id", None), tokenizer("a").input_ids[0]
    if isinstance(begins, int) and first == tokenizer.bos_token_id != begins:
        theirs = tokenizer.convert_ids_to_tokens(begins) if 0 <= begins < len(tokenizer) else begins
        raise UserError(
            f"the tokenizer of model '{base}' begins a text with {tokenizer.bos_token!r}, its configuration with {theirs!r}; "
            "set bos_token in its tokenizer_config.json, or bos_token_id in its config.json"
        )


def _read(base: str, trust_remote_code: bool, revision: str | None) -> tuple[Any, list[int]]:
    """The text configuration of a model, and the EOS ids of its model and generation configurations."""
    from transformers import AutoConfig, GenerationConfig

    # What was downloaded is not looked up again: the hub may be slow, or have another version.
    cached = not trust_remote_code and in_cache(base, "config.json", revision)
    with without_network() if cached else nullcontext():
        try:
            config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code, revision=revision).get_text_config()
        except (OSError, ValueError):
            # Loading the model will report the error.
            return None, []
        try:
            generation = GenerationConfig.from_pretrained(base, revision=revision).eos_token_id
        except (OSError, ValueError):
            generation = None
    ends: list[int] = []
    for found in (getattr(config, "eos_token_id", None), generation):
        ends += found if isinstance(found, list) else [] if found is None else [found]
    return config, ends
