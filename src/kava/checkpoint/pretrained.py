"""Trained models the way transformers' users expect them: by path or hub name, and back to either.

model = KavaForCausalLM.from_pretrained("builtin:mini")
model.answer([kava.data.mini.problems.EXAMPLE])[0].text   # 3
model.push_to_hub("me/kava-llama-1b")
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kava.checkpoint import CARD, KAVA_CONFIG, Trained, load_checkpoint, read_kava_config, save_checkpoint
from kava.checkpoint.card import is_local, render_card
from kava.checkpoint.shipped import located
from kava.errors import UserError
from kava.generate import Generation, Reasoner
from kava.results import Result, read_result
from kava.runtime.atomic import refuse_foreign, seal


class KavaForCausalLM:
    """A trained model with its tokenizer and everything that is known about it.

    Attributes:
        trained: the model (`trained.model`), tokenizer, configuration and metadata.
        results: evaluations that go into its model card.
    """

    def __init__(self, trained: Trained, results: Sequence[Result] = ()) -> None:
        self.trained = trained
        self.results = list(results)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | None = None, revision: str | None = None, overrides: dict[str, Any] | None = None
    ) -> "KavaForCausalLM":
        """Load a checkpoint from a directory or the hub.

        Args:
            name: a checkpoint's directory, a hub name, or `builtin:mini`, the trained model of the package.
            device: where the model goes (default: stays on the CPU).
            revision: branch, tag or commit on the hub.
            overrides: dotted configuration keys to change, such as `latent.num_iterations`.

        Raises:
            UserError: there is no such checkpoint, or it is damaged, or its base model cannot be found.
        """
        place = located(name)
        directory = place if place.is_dir() else _download(str(name), revision)
        return cls(load_checkpoint(directory, overrides, device), _results_beside(directory))

    def answer(self, questions: Sequence[str], **options: Any) -> list[Generation]:
        """Answer questions; options are those of `kava.generate.Reasoner.generate`."""
        latent = self.trained.config.latent
        reasoner = Reasoner(self.trained.model, self.trained.builder, latent.num_tokens, latent.num_iterations)
        defaults = {"max_new_tokens": self.trained.config.evaluation.max_new_tokens}
        return reasoner.generate(questions, **defaults | options)

    def save_pretrained(self, directory: str | Path, *, base: str | None = None, name: str | None = None) -> None:
        """Write a checkpoint: a peft adapter (or full weights), projection, tokenizer, configuration and model card.

        Args:
            directory: where to; an older checkpoint there is replaced.
            base: what to call the base model, where others know it by another name than this machine.
            name: what the card calls this model.

        Raises:
            UserError: the place cannot be written to, or holds something else than a checkpoint.
        """
        refuse_foreign(Path(directory), "choose another directory")
        trained = replace(self.trained, base=base or self.trained.base)
        save_checkpoint(directory, trained)
        if base is not None:
            _rename_base(Path(directory), base)
        card = render_card(trained.config, trained.base, trained.metadata, self.results, name)
        (Path(directory) / CARD).write_text(card, encoding="utf-8")
        seal(Path(directory))

    def push_to_hub(self, name: str, *, base: str | None = None, private: bool = False, token: str | None = None) -> str:
        """Upload to the hub under `name`; returns the address.

        Raises:
            UserError: the base model is known to this machine alone, or the hub refuses.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        needed = base or self.trained.base
        if self.trained.config.lora.enabled and is_local(needed):
            raise UserError(f"base model '{needed}' is on this machine alone: give base='HUB_NAME', or merge the adapter (kava merge)")
        with tempfile.TemporaryDirectory() as work:
            self.save_pretrained(Path(work) / "model", base=base, name=name)
            api = HfApi(token=token)
            try:
                api.create_repo(name, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=name, folder_path=str(Path(work) / "model")))
            except (HfHubHTTPError, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"'{name}' could not be pushed to the hub ({reason}); log in (hf auth login)") from None


def merge(source: str | Path, directory: str | Path) -> Trained:
    """Fold a checkpoint's adapter into its base: a plain transformers model, and at the same time a checkpoint with full weights.

    Raises:
        UserError: the source is not a checkpoint with an adapter, or the place cannot be written to.
    """
    refuse_foreign(Path(directory), "choose another directory")
    model = KavaForCausalLM.from_pretrained(source)
    trained = model.trained
    if not trained.config.lora.enabled:
        raise UserError(f"checkpoint {source} has full weights already; there is no adapter to merge")
    if trained.config.model.quantization != "none":
        raise UserError(f"checkpoint {source} stands on a 4-bit base, which merging would round once more; use the adapter as it is")
    trained.model.backbone.model = trained.model.backbone.model.merge_and_unload()
    config = trained.config.model_copy(update={"lora": trained.config.lora.model_copy(update={"enabled": False})})
    merged = replace(trained, config=config)
    KavaForCausalLM(merged, model.results).save_pretrained(directory)
    return merged


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"'{name}' is neither a directory nor a model on the hub ({' '.join(str(error).split())[:160]})") from None


def _results_beside(directory: Path) -> list[Result]:
    """What `kava evaluate` has written for this checkpoint, in the directory of its run."""
    return [read_result(path) for path in sorted(directory.parent.glob("results_*.yaml"))] if (directory / KAVA_CONFIG).exists() else []


def _rename_base(directory: Path, base: str) -> None:
    """Call the base model by another name in both files that say it."""
    content = read_kava_config(directory) | {"base": base}
    content["config"]["model"]["name"] = base
    (directory / KAVA_CONFIG).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    adapter = directory / "adapter_config.json"
    if adapter.exists():
        adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"base_model_name_or_path": base}, indent=2) + "\n")
