"""Packages that only some settings need: asked for by the setting, refused in one sentence where they are missing."""

from importlib.util import find_spec

from kava.errors import UserError

# Package on PyPI -> (module, extra of this project).
EXTRAS = {
    "bitsandbytes": ("bitsandbytes", "quant"),
    "liger-kernel": ("liger_kernel", "liger"),
    "flash-attn": ("flash_attn", "flash"),
    "fastapi": ("fastapi", "serve"),
    "uvicorn": ("uvicorn", "serve"),
}


def require(package: str, setting: str, otherwise: str) -> None:
    """See that an optional package is installed.

    Args:
        package: a key of `EXTRAS`.
        setting: what asks for it, as the user wrote it.
        otherwise: what to do without it.

    Raises:
        UserError: it is not installed.
    """
    module, extra = EXTRAS[package]
    if find_spec(module) is None:
        raise UserError(
            f"{setting} needs the package {package}, which is not installed: pip install 'kava-latent[{extra}]', or {otherwise}"
        )
