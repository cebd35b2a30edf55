"""The Hugging Face hub: the cache first, then the network, with one short check of the connection, and clear error messages."""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from kava.errors import UserError

T = TypeVar("T")
Kind = Literal["model", "data set"]

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Make Hugging Face's libraries use only their caches inside the block, as with HF_HUB_OFFLINE=1.

    The libraries read that variable when they are imported, and check these two flags afterwards.
    """
    from huggingface_hub import constants

    modules: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


@functools.cache
def unreachable() -> str | None:
    """Return why the hub (HF_ENDPOINT) does not respond, or None; checked once per process, for at most HF_HUB_ETAG_TIMEOUT seconds."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the client's, the operating system's and the name service's; all mean the same here
        return f"{constants.ENDPOINT} cannot be reached: {first_line(error)}"
    return None


def cache_first(kind: Kind, name: str, complete: bool, load: Callable[[], T]) -> T:
    """Call `load` with the cache alone if it is `complete`, else with the network; if there is no network, with what the cache has.

    Raises:
        UserError: the hub cannot be reached, and the cache does not hold enough.
        Exception: `load` failed with a complete cache or with a reachable hub.
    """
    if complete:
        with without_network():
            return load()
    reason = unreachable()
    if reason is None:
        return load()
    try:
        with without_network():
            return load()
    except Exception as error:
        raise UserError(f"{kind} '{name}' is not in the cache, and {reason}: {cures(kind, name)}") from error


def in_cache(name: str, file: str, revision: str | None = None, repo_type: str = "model") -> Path | None:
    """Return the path of a file in the hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision, repo_type=repo_type)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def model_is_cached(name: str, revision: str | None) -> bool:
    """Return whether the cache holds a model's configuration and all its weights."""
    if in_cache(name, "config.json", revision) is None:
        return False
    index = in_cache(name, "model.safetensors.index.json", revision)
    if index is None:
        return in_cache(name, "model.safetensors", revision) is not None
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return all(in_cache(name, shard, revision) for shard in shards)


def tokenizer_is_cached(name: str, revision: str | None) -> bool:
    """Return whether the cache holds a complete tokenizer, including tokenizer_config.json."""
    needed = [in_cache(name, file, revision) for file in ("config.json", "tokenizer_config.json")]
    return all(needed) and any(in_cache(name, file, revision) for file in _VOCABULARIES)


def commit_of(name: str, revision: str | None, repo_type: str = "model") -> str | None:
    """Return the commit that the cache has for a revision (default: main), or None."""
    file = "config.json" if repo_type == "model" else "README.md"
    found = in_cache(name, file, revision, repo_type)
    return found.parent.name if found else None


def refusal(kind: Kind, name: str, error: Exception) -> UserError:
    """Return the error for a model or data set that the hub did not provide."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    chain = list(_chain(error))
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'data set' else ''}{name}"
    if any(isinstance(link, GatedRepoError) for link in chain):
        return UserError(
            f"{kind} '{name}' is gated: accept its licence at {page} with your account, then log in here with `hf auth login` "
            "(or set HF_TOKEN to your access token)"
        )
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return UserError(f"{kind} '{name}' has no such revision; {page}/commits/main lists them")
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return UserError(
            f"{constants.ENDPOINT} has no {kind} '{name}', or it is private: correct the name, or log in here with `hf auth login`"
        )
    return UserError(f"{kind} '{name}' cannot be loaded ({type(error).__name__}: {first_line(error)}): {cures(kind, name)}")


def cures(kind: Kind, name: str) -> str:
    """Return other ways to get a model or data set that the hub cannot provide here."""
    options, local = (
        ("", "set model.name to a local path")
        if kind == "model"
        else ("--repo-type dataset ", "give a local file or directory in its place")
    )
    offline = "unset it, " if os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        f"{offline}set HF_ENDPOINT to a mirror (HF_ENDPOINT=https://hf-mirror.com), "
        f"download it beforehand with the same HF_HOME (hf download {options}{name}), or {local}"
    )


def is_local(name: str) -> bool:
    """Return whether a name is a directory here, or can be nothing on the hub, where names are ``owner/name``: a path, or built in."""
    return Path(name).is_dir() or Path(name).is_absolute() or name.startswith((".", "~", "builtin:")) or name.count("/") > 1


def absolute(name: str) -> str:
    """Return a directory's absolute path, for a record that is read from elsewhere; any other name as it is."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
