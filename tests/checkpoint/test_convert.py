"""Importing the peers' layouts: files written here as they write them, and numbers equal to their model's."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.families import plain_tokenizer
from helpers.tiny import HIDDEN, PROMPT, assert_close, mini_examples, tiny_lm
from kava.checkpoint import Trained, load_checkpoint
from kava.checkpoint.convert import import_checkpoint
from kava.errors import UserError
from kava.model.tokenizer import load_tokenizer
from kava.runtime.atomic import seal

TARGETS = {"llama": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "up_proj", "gate_proj"], "gpt2": ["c_attn", "c_fc", "c_proj"]}


@dataclass
class Published:
    """A peer's model as it was trained, and where it was saved."""

    directory: Path
    base: Path
    model: Any
    prj: nn.Sequential
    ids: tuple[int, int, int]
    tokenizer: Any

    def read(self, question: str) -> list[int]:
        """Ids of a question as both peers' processors make them: the bare text, special tokens included."""
        ids: list[int] = self.tokenizer(question, add_special_tokens=True).input_ids
        return ids

    def prompt(self, number: str, separator: str) -> list[int]:
        """Ids before the number, from the text that their answers are made of."""
        answer: list[int] = self.tokenizer(f"{PROMPT}{separator}{number}", add_special_tokens=False).input_ids
        return answer[: -len(self.tokenizer(number, add_special_tokens=False).input_ids)]


def base_of(place: Path, kind: str, tied: bool) -> tuple[Path, Any]:
    tokenizer = plain_tokenizer("llama3")
    base = place / "base"
    tiny_lm(kind, vocabulary=len(tokenizer), tied=tied).save_pretrained(base)
    tokenizer.save_pretrained(base)
    return base, tokenizer


def moved(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad or "prj" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))


def pccot(place: Path, kind: str = "llama", tied: bool = True, iterations: int = 2) -> Published:
    """As `run_ccot.py` saves: adapter with five trained token rows and `prj` among the saved modules, arguments, config, tokenizer."""
    base, tokenizer = base_of(place, kind, tied)
    causal_lm = tiny_lm(kind, vocabulary=len(tokenizer), tied=tied)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<pccot.bot>", "<pccot.eot>", "<pccot.latent>"]})
    ids = tokenizer.convert_tokens_to_ids(["<pccot.bot>", "<pccot.eot>", "<pccot.latent>"])
    causal_lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    causal_lm.prj = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN))
    embedding = "wte" if kind == "gpt2" else "embed_tokens"
    rows = [*ids, tokenizer.pad_token_id, tokenizer.eos_token_id]
    model = get_peft_model(causal_lm, LoraConfig(
        r=4, lora_alpha=8, target_modules=TARGETS[kind], trainable_token_indices={embedding: rows}, modules_to_save=["prj"],
        fan_in_fan_out=kind == "gpt2",
    ))  # fmt: skip
    moved(model)
    directory = place / "published"
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    arguments = {"bot_token_id": ids[0], "eot_token_id": ids[1], "latent_token_id": ids[2], "num_latent_tokens": 4, "answer_prompt": PROMPT}
    (directory / "pccot_args.json").write_text(json.dumps(arguments))
    (directory / "config.json").write_text(
        json.dumps({"model_type": f"pccot-{kind}", "num_iterations": iterations, "use_projection": True})
    )
    return Published(directory, base, model.eval(), model.get_base_model().prj, tuple(ids), tokenizer)


def codi(place: Path, kind: str = "llama", files: str = "safetensors", tied: bool = True) -> Published:
    """As Trainer saves the module `CODI`: the whole state dict under `codi.` and `prj.`, in one file or in parts."""
    base, tokenizer = base_of(place, kind, tied)
    causal_lm = tiny_lm(kind, vocabulary=len(tokenizer), tied=tied)
    vocabulary = len(tokenizer)
    causal_lm.resize_token_embeddings(vocabulary + 3, mean_resizing=False)
    whole = nn.Module()
    whole.codi = get_peft_model(causal_lm, LoraConfig(r=4, lora_alpha=32, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2"))
    whole.prj = nn.Sequential(nn.Dropout(0.0), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
    whole.prj.add_module("ln", nn.LayerNorm(HIDDEN))
    moved(whole)
    directory = place / "published"
    directory.mkdir()
    state = {key: tensor.clone().contiguous() for key, tensor in whole.state_dict().items()}
    if tied:
        del state["codi.base_model.model.lm_head.weight"]
    if files == "safetensors":
        save_file(state, directory / "model.safetensors")
    elif files == "bin":
        torch.save(state, directory / "pytorch_model.bin")
    else:
        names = sorted(state)
        parts = {f"model-{part + 1:05d}-of-00002.safetensors": names[part::2] for part in range(2)}
        for name, keys in parts.items():
            save_file({key: state[key] for key in keys}, directory / name)
        index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return Published(directory, base, whole.codi.eval(), whole.prj.eval(), (vocabulary + 1, vocabulary + 2, vocabulary), tokenizer)


def embed(published: Published, ids: list[int]) -> Tensor:
    return published.model.get_input_embeddings()(torch.tensor([ids]))


def run(published: Published, embeds: Tensor) -> Any:
    return published.model(inputs_embeds=embeds, output_hidden_states=True)


@torch.no_grad()
def their_logits(published: Published, question: list[int], prompt: list[int], latents: int, iterations: int | None) -> Tensor:
    """What their generation computes for one question alone: logits of the first written token, full passes only."""
    bot, eot, latent = published.ids
    text = embed(published, [*question, bot])
    if iterations is None:
        for _ in range(latents):
            text = torch.cat([text, published.prj(run(published, text).hidden_states[-1][:, -1:])], dim=1)
    else:
        inputs = embed(published, [latent] * latents)
        for _ in range(iterations):
            hidden = run(published, torch.cat([text, inputs], dim=1)).hidden_states[-1]
            inputs = published.prj(hidden[:, -(latents + 1) : -1])
        text = torch.cat([text, inputs], dim=1)
    return run(published, torch.cat([text, embed(published, [eot, *prompt])], dim=1)).logits[0, -1]


@torch.no_grad()
def check(published: Published, place: Path, latents: int, iterations: int | None, **overrides: str) -> Trained:
    from kava.generate import Reasoner

    loaded = load_checkpoint(place, overrides)
    vocabulary = len(load_tokenizer(str(published.base))) - 3
    reasoner = Reasoner(loaded.model, loaded.builder, loaded.config.latent.num_tokens, loaded.config.latent.num_iterations)
    for example in mini_examples(3):
        question = published.read(example.question)
        _, logits, _ = reasoner.start([loaded.builder.question_ids(example.question)])
        # PCCoT tokenises prompt and number apart and joins them; CODI tokenises "The answer is: 18".
        prompt = published.prompt("18", "" if iterations is not None else " ")
        expected = their_logits(published, question, prompt, latents, iterations)
        assert_close(logits[0, :vocabulary], expected[:vocabulary], 1e-4, "logits")
    return loaded


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("gpt2", True)])
def test_pccot(tmp_path: Path, kind: str, tied: bool) -> None:
    published = pccot(tmp_path, kind, tied)
    assert import_checkpoint(published.directory, tmp_path / "ours") == "pccot"
    config = check(published, tmp_path / "ours", latents=4, iterations=2).config
    assert (config.method, config.latent.num_tokens, config.latent.num_iterations) == ("pccot", 4, 2)


@pytest.mark.parametrize(("kind", "files", "tied"), [("llama", "safetensors", True), ("llama", "parts", False), ("gpt2", "bin", True)])
def test_codi(tmp_path: Path, kind: str, files: str, tied: bool) -> None:
    published = codi(tmp_path, kind, files, tied)
    assert import_checkpoint(published.directory, tmp_path / "ours", base=str(published.base), num_latents=3) == "codi"
    config = check(published, tmp_path / "ours", latents=3, iterations=None).config
    assert (config.method, config.latent.num_tokens) == ("codi", 3)


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        (pccot, {"dataset.question_suffix": "\n"}), (pccot, {"dataset.answer_separator": " "}), (codi, {"dataset.question_suffix": "\n"}),
        (codi, {"dataset.answer_separator": ""}),
    ],
)  # fmt: skip
def test_the_peer_s_wording_travels_with_the_checkpoint(tmp_path: Path, layout: Any, change: dict[str, str]) -> None:
    """PendingRequest in our words, the model reads tokens that it never saw, and answers something else."""
    published = layout(tmp_path)
    import_checkpoint(published.directory, tmp_path / "ours", base=str(published.base), num_latents=4)
    sizes = {"latents": 4, "iterations": 2 if layout is pccot else None}
    check(published, tmp_path / "ours", **sizes)
    with pytest.raises(AssertionError, match="logits"):
        check(published, tmp_path / "ours", **sizes, **change)


def test_an_import_of_an_earlier_version_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = codi(tmp_path)
    import_checkpoint(published.directory, tmp_path / "ours", base=str(published.base))
    load_checkpoint(tmp_path / "ours")
    assert "import it again" not in capsys.readouterr().err
    path = tmp_path / "ours" / "kava_config.json"
    content = json.loads(path.read_text())
    del content["config"]["dataset"]["question_suffix"]
    path.write_text(json.dumps(content))
    seal(tmp_path / "ours")
    load_checkpoint(tmp_path / "ours")
    assert "was imported by an earlier version, which did not use the original prompt format; import it again" in capsys.readouterr().err


def test_alpha_is_part_of_what_codi_does_not_say(tmp_path: Path) -> None:
    published = codi(tmp_path)
    import_checkpoint(published.directory, tmp_path / "ours", base=str(published.base), num_latents=3, lora_alpha=16.0)
    with pytest.raises(AssertionError, match="logits"):
        check(published, tmp_path / "ours", latents=3, iterations=None)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    published = codi(tmp_path, files="parts")
    with pytest.raises(UserError, match="give --base"):
        import_checkpoint(published.directory, tmp_path / "ours")
    (published.directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is missing"):
        import_checkpoint(published.directory, tmp_path / "ours", base=str(published.base))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model.safetensors or pytorch_model.safetensors"):
        import_checkpoint(tmp_path / "empty", tmp_path / "ours", base=str(published.base))
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / "empty" / name).write_bytes(b"cut off")
        with pytest.raises(UserError, match=f"{name} cannot be read .*; download it again"):
            import_checkpoint(tmp_path / "empty", tmp_path / "ours", base=str(published.base))
    save_file({"something": torch.zeros(1)}, tmp_path / "empty" / "model.safetensors")
    with pytest.raises(UserError, match="not CODI's layout"):
        import_checkpoint(tmp_path / "empty", tmp_path / "ours", base=str(published.base))
    save_file({"codi.something": torch.zeros(1)}, tmp_path / "empty" / "model.safetensors")
    with pytest.raises(UserError, match="has something, for which there is no place"):
        import_checkpoint(tmp_path / "empty", tmp_path / "ours", base=str(published.base))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("layout", [pccot, codi])
def test_a_base_of_another_size_is_one_line(tmp_path: Path, layout: Any) -> None:
    published = layout(tmp_path)
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(published.tokenizer), **shape)).save_pretrained(tmp_path / "other")
    load_tokenizer(str(published.base)).save_pretrained(tmp_path / "other")
    with pytest.raises(
        UserError, match=r"published does not fit its base model .*size mismatch.*; give the one it was trained from with --base"
    ):
        import_checkpoint(published.directory, tmp_path / "ours", base=str(tmp_path / "other"))


def test_a_setting_that_is_missing_is_named(tmp_path: Path) -> None:
    arguments = tmp_path / "pccot_args.json"
    arguments.write_text('{"num_latent_tokens": 3, "bot_token_id": 5}')
    with pytest.raises(UserError, match="pccot_args.json lacks eot_token_id, latent_token_id; download it again"):
        import_checkpoint(tmp_path, tmp_path / "ours")
    arguments.write_text('{"num_latent_tokens": 3, "bot_token_id": null, "eot_token_id": 6, "latent_token_id": 7}')
    with pytest.raises(UserError, match="pccot_args.json lacks bot_token_id; download it again"):
        import_checkpoint(tmp_path, tmp_path / "ours")
    arguments.write_text("[]")
    with pytest.raises(UserError, match="pccot_args.json lacks num_latent_tokens"):
        import_checkpoint(tmp_path, tmp_path / "ours")


def test_a_projection_of_another_shape_is_refused(tmp_path: Path) -> None:
    published = codi(tmp_path)
    from safetensors.torch import load_file

    state = load_file(published.directory / "model.safetensors")
    state["prj.1.weight"] = torch.zeros(2 * HIDDEN, HIDDEN)
    save_file(state, published.directory / "model.safetensors")
    with pytest.raises(UserError, match=r"prj.1.weight has a shape of \(64, 32\) where our projection takes \(32, 32\)"):
        import_checkpoint(published.directory, tmp_path / "ours", base=str(published.base))
