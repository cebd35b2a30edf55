"""Convert checkpoints of PCCoT and CODI: everything that was trained is merged into full weights, so that nothing is lost.

PCCoT (github.com/whyNLP/PCCoT): a peft adapter with five trained token rows (its three, padding, EOS) and `prj` weights,
`pccot_args.json`, the model's `config.json` with `num_iterations`, and a tokenizer.
CODI (github.com/zhenyi4/codi): one state dict, sharded or not, of `codi.` (base weights and LoRA by peft's own names) and `prj.`;
its new tokens are the rows after the base's vocabulary: padding, `<bot>`, `<eot>`.

Their prompt format is kept too: neither ends a question with a line break (except CODI's commonsense data sets: set
`--dataset.question_suffix` at inference), and PCCoT writes the number directly after the answer prompt.

import_checkpoint("downloads/pccot-gpt2", "outputs/pccot-gpt2")
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava.checkpoint import Trained, save_checkpoint
from kava.checkpoint.files import UNREADABLE, set_adapter
from kava.config import Config, build_config
from kava.data.sequences import SPECIAL_TOKENS
from kava.errors import UserError, ran_out_of_memory, reason_of
from kava.model.build import assemble, load_base, make_room
from kava.model.projection import Projection, build_projection
from kava.model.tokenizer import load_tokenizer
from kava.runtime.atomic import refuse_foreign
from kava.runtime.hub import absolute

PCCOT_ARGS = "pccot_args.json"
_NEW_TOKENS = ("bot", "eot", "latent")
_CURE = "give the one it was trained from with --base"
# Names of the two linear layers and the norm in the `prj` modules of PCCoT and CODI (CODI's starts with a dropout layer).
_PROJECTION = {"pccot": ("0", "2", "3"), "codi": ("1", "3", "ln")}


@dataclass(frozen=True)
class _Read:
    """Content of a checkpoint: base model with merged weights, `prj` weights, rows of `<bot>`, `<eot>`, `<latent>`, tokenizer, settings."""

    causal_lm: Any
    prj: dict[str, Tensor]
    rows: list[int]
    tokenizer: Any
    settings: dict[str, Any]


def import_checkpoint(
    source: str | Path,
    directory: str | Path,
    *,
    base: str | None = None,
    layout: str | None = None,
    num_latents: int = 6,
    lora_alpha: float = 32.0,
) -> str:
    """Convert a PCCoT or CODI checkpoint to a kava checkpoint, and return its layout.

    Args:
        source: directory as published.
        directory: where to write the kava checkpoint.
        base: base model; required for CODI, PCCoT's adapter names its own.
        layout: "pccot" or "codi"; default: detected from the files.
        num_latents, lora_alpha: settings that a CODI checkpoint does not record.

    Raises:
        UserError: files are missing, or contain weights that do not fit our model.
    """
    refuse_foreign(Path(directory), "choose another directory")
    source = Path(source)
    layout = layout or ("pccot" if (source / PCCOT_ARGS).exists() else "codi")
    try:
        read = _read_pccot(source, base) if layout == "pccot" else _read_codi(source, base, num_latents, lora_alpha)
    except UNREADABLE as error:
        if ran_out_of_memory(error):
            raise
        raise UserError(f"{source} does not fit its base model ({reason_of(error)}); {_CURE}") from None
    config = build_config({}, str(source), {"lora.enabled": False, "loss.use_projection": bool(read.prj), **read.settings})
    special_ids: list[int] = read.tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    _place_rows(read.causal_lm, read.rows, special_ids)
    embedding = read.causal_lm.get_input_embeddings()
    projection = build_projection(bool(read.prj), embedding.weight.shape[1], embedding)
    if isinstance(projection, Projection):
        _fill_projection(projection, read.prj, layout, source)
    model = assemble(read.causal_lm, special_ids, projection, config).eval()
    metadata = {"name": source.name, "imported_from": layout}
    save_checkpoint(directory, Trained(model, read.tokenizer, config, absolute(config.model.name), metadata))
    return layout


def _read_pccot(source: Path, base: str | None) -> _Read:
    from peft import LoraConfig, get_peft_model

    arguments = _json(source / PCCOT_ARGS, "num_latent_tokens", *(f"{name}_token_id" for name in _NEW_TOKENS))
    adapter = _json(source / "adapter_config.json", *([] if base else ["base_model_name_or_path"]))
    base = base or adapter["base_model_name_or_path"]
    named = source if (source / "tokenizer_config.json").exists() else base
    tokenizer = load_tokenizer(str(named))
    weights = _load(source, "adapter_model")
    causal_lm = load_base(str(base), Config())
    rows = [arguments[f"{name}_token_id"] for name in _NEW_TOKENS]
    trained_rows = [row for ids in (adapter.get("trainable_token_indices") or {}).values() for row in ids]
    make_room(causal_lm, [*rows, *trained_rows])
    prj = {key.rpartition("prj.")[2]: tensor for key, tensor in weights.items() if ".prj." in f".{key}"}
    plain = {key: tensor for key, tensor in weights.items() if ".prj." not in f".{key}"}
    names = ("r", "lora_alpha", "target_modules", "trainable_token_indices", "fan_in_fan_out")
    peft = get_peft_model(causal_lm, LoraConfig(**{name: adapter[name] for name in names if adapter.get(name) is not None}))
    if causal_lm.config.tie_word_embeddings:
        # peft writes the trained rows of a tied embedding twice.
        plain = {key: tensor for key, tensor in plain.items() if "lm_head.token_adapter" not in key}
    _all_fits(source, *set_adapter(peft, plain))
    settings = {
        "method": "pccot",
        "model.name": str(base),
        "latent.num_tokens": arguments["num_latent_tokens"],
        "latent.num_iterations": _json(source / "config.json").get("num_iterations", 3),
        "dataset.answer_prompt": arguments.get("answer_prompt", "The answer is:"),
        "dataset.question_suffix": "",
        "dataset.answer_separator": "",
    }
    return _Read(peft.merge_and_unload(), prj, rows, tokenizer, settings)


def _read_codi(source: Path, base: str | None, num_latents: int, lora_alpha: float) -> _Read:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if base is None:
        raise UserError(f"{source} does not say which base model it was made from; give --base")
    weights = _load(source, "model", "pytorch_model")
    prj = {key.removeprefix("prj."): tensor for key, tensor in weights.items() if key.startswith("prj.")}
    plain = {key.removeprefix("codi."): tensor for key, tensor in weights.items() if key.startswith("codi.")}
    if not plain:
        raise UserError(f"{source} holds no weights named codi.*; this is not CODI's layout")
    causal_lm = load_base(base, Config())
    vocabulary = causal_lm.config.get_text_config().vocab_size
    rows = [vocabulary + 1, vocabulary + 2, vocabulary]
    make_room(causal_lm, rows)
    adapters = {key.partition(".lora_A")[0]: tensor for key, tensor in plain.items() if ".lora_A." in key}
    model = causal_lm
    if adapters:
        targets = sorted({key.removeprefix("base_model.model.") for key in adapters})
        first = dict(causal_lm.named_modules()).get(targets[0])
        rank = next(iter(adapters.values())).shape[0]
        lora = LoraConfig(r=rank, lora_alpha=lora_alpha, target_modules=targets, fan_in_fan_out=isinstance(first, Conv1D))
        model = get_peft_model(causal_lm, lora)
    outcome = model.load_state_dict(plain, strict=False)
    causal_lm.tie_weights()
    tied = {name for name in model.state_dict() if name.endswith(".weight")} - {name for name, _ in model.named_parameters()}
    _all_fits(source, outcome.unexpected_keys, [key for key in outcome.missing_keys if key not in tied])
    settings = {"method": "codi", "model.name": base, "latent.num_tokens": num_latents, "dataset.question_suffix": ""}
    return _Read(model.merge_and_unload() if adapters else model, prj, rows, load_tokenizer(base), settings)


def _place_rows(causal_lm: Any, rows: list[int], special_ids: list[int]) -> None:
    """Copy the three trained token rows of the source checkpoint to the ids that our tokenizer gives them."""
    held = causal_lm.get_input_embeddings().weight.detach()[rows].clone()
    make_room(causal_lm, special_ids)
    with torch.no_grad():
        causal_lm.get_input_embeddings().weight[special_ids] = held


def _fill_projection(projection: Projection, prj: dict[str, Tensor], layout: str, source: Path) -> None:
    modules = (projection.layers[0], projection.layers[2], projection.norm)
    for place, module in zip(_PROJECTION[layout], modules, strict=True):
        for name, parameter in module.named_parameters():
            found = prj.get(f"{place}.{name}")
            if found is None or found.shape != parameter.shape:
                shape = "nothing" if found is None else f"a shape of {tuple(found.shape)}"
                raise UserError(f"{source}: prj.{place}.{name} has {shape} where our projection takes {tuple(parameter.shape)}")
            with torch.no_grad():
                parameter.copy_(found)


def _load(source: Path, *stems: str) -> dict[str, Tensor]:
    """Load all tensors of a checkpoint in float32, from safetensors or torch files (weights only), sharded or not."""
    from safetensors.torch import load_file

    for stem in stems:
        for suffix in ("safetensors", "bin"):
            index = source / f"{stem}.{suffix}.index.json"
            names = sorted(set(_json(index, "weight_map")["weight_map"].values())) if index.exists() else [f"{stem}.{suffix}"]
            files = [source / name for name in names]
            if all(file.is_file() for file in files):
                read: Callable[[Path], dict[str, Tensor]] = load_file if suffix == "safetensors" else _load_torch
                return {key: tensor.float() for file in files for key, tensor in _readable(read, file).items()}
            if index.exists():
                missing = next(file for file in files if not file.is_file())
                raise UserError(f"{missing} is missing; download all parts that {index.name} names")
    raise UserError(f"{source} holds no {' or '.join(f'{stem}.safetensors' for stem in stems)} (nor .bin)")


def _readable(read: Callable[[Path], dict[str, Tensor]], file: Path) -> dict[str, Tensor]:
    try:
        return read(file)
    except UNREADABLE as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)}); download it again") from None


def _load_torch(path: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _all_fits(source: Path, unexpected: list[str], missing: list[str]) -> None:
    if unexpected or missing:
        what = f"has {unexpected[0]}, for which there is no place" if unexpected else f"lacks {missing[0]}"
        raise UserError(f"{source} {what} in this base model; {_CURE}")


def _json(path: Path, *needed: str) -> dict[str, Any]:
    """Read a JSON object and check that it has the needed keys."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from None
    mapping: dict[str, Any] = content if isinstance(content, dict) else {}
    absent = [key for key in needed if mapping.get(key) is None]
    if absent or mapping is not content:
        raise UserError(f"{path} lacks {', '.join(absent) or 'its mapping'}; download it again")
    return mapping
