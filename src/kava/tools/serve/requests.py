"""Request schemas: the parts of OpenAI's chat and completions requests that apply to a model that answers one question."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kava.errors import UserError


class StreamOptions(BaseModel):
    """Options of a streamed response; `include_usage` adds a last chunk with the token usage."""

    include_usage: bool | None = False


class BaseRequest(BaseModel):
    """Fields that both kinds of request share. Parameters that do not apply here are rejected unless they have a neutral value."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(0.0, ge=0, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    use_latent: bool = True

    @property
    def question(self) -> str:
        """The question of the request."""
        raise NotImplementedError


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The text of the message.

        Raises:
            UserError: the message has content other than text.
        """
        if isinstance(self.content, str):
            return self.content
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in self.content):
            raise UserError("messages: this model accepts only text")
        return "".join(part["text"] for part in self.content)


class ChatRequest(BaseRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)

    @property
    def question(self) -> str:
        """The text of the only message.

        Raises:
            UserError: there is not exactly one message, of role user.
        """
        if [message.role for message in self.messages] != ["user"]:
            raise UserError("messages: this model answers single questions without history; send one message with role user")
        return self.messages[0].text


class CompletionRequest(BaseRequest):
    """POST /v1/completions."""

    prompt: str | list[str]

    @property
    def question(self) -> str:
        """The prompt.

        Raises:
            UserError: there is not exactly one prompt.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            raise UserError("prompt: send one question per request; queued requests are batched automatically")
        return prompts[0]


# OpenAI parameters that do not apply here, with the values that are accepted because they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "top_p": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
    "logprobs": (False, 0), "top_logprobs": (0,), "echo": (False,), "stop": ([],), "suffix": ("",), "tools": ([],),
    "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False), "response_format": ({"type": "text"},),
}  # fmt: skip
# Parameters that describe the request and do not affect the model: accepted and ignored.
NOTES = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


def refuse_other_parameters(wanted: BaseRequest) -> None:
    """Reject parameters that do not apply to this model.

    Raises:
        UserError: a parameter is unknown or has a value that is not neutral; names the parameter.
    """
    for name, value in (wanted.model_extra or {}).items():
        if value is None or name in NOTES or value in NEUTRAL.get(name, ()):
            continue
        if name in NEUTRAL:
            raise UserError(f"{name} = {json.dumps(value)} is not possible with this model; leave it out")
        raise UserError(f"unknown parameter {name!r}; leave it out")
