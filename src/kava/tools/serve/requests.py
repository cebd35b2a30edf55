"""What clients may ask: OpenAI's chat and completions requests, as far as they apply to a model that answers one question."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kava.errors import UserError


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk with the costs."""

    include_usage: bool | None = False


class Wanted(BaseModel):
    """What both kinds of request share. A parameter that would change nothing here is refused, unless it has its neutral value."""

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
        """What is asked."""
        raise NotImplementedError


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]]

    @property
    def text(self) -> str:
        """Its words.

        Raises:
            UserError: it holds something else than text.
        """
        if isinstance(self.content, str):
            return self.content
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in self.content):
            raise UserError("messages: this model reads text alone")
        return "".join(part["text"] for part in self.content)


class Chat(Wanted):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)

    @property
    def question(self) -> str:
        """The one message.

        Raises:
            UserError: there are others.
        """
        if [message.role for message in self.messages] != ["user"]:
            raise UserError("messages: this model answers one question at a time and remembers nothing; send one message, of role user")
        return self.messages[0].text


class Completion(Wanted):
    """POST /v1/completions."""

    prompt: str | list[str]

    @property
    def question(self) -> str:
        """The prompt.

        Raises:
            UserError: there are several.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            raise UserError("prompt: send one question per request; those that wait together are answered together")
        return prompts[0]


# Parameters of OpenAI's that do not apply here, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "top_p": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
    "logprobs": (False, 0), "top_logprobs": (0,), "echo": (False,), "stop": ([],), "suffix": ("",), "tools": ([],),
    "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False), "response_format": ({"type": "text"},),
}  # fmt: skip
# Parameters that say something about the request, and ask nothing of the model.
NOTES = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


def refuse_other_parameters(wanted: Wanted) -> None:
    """See that nothing is asked for that does not apply.

    Raises:
        UserError: names the parameter.
    """
    for name, value in (wanted.model_extra or {}).items():
        if value is None or name in NOTES or value in NEUTRAL.get(name, ()):
            continue
        if name in NEUTRAL:
            raise UserError(f"{name} = {json.dumps(value)} is not possible with this model; leave it out")
        raise UserError(f"unknown parameter {name!r}; leave it out")
