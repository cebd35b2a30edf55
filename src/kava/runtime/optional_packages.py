"""Optional packages that only some settings need, with an error message of one sentence if one is missing."""

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
    """Check that an optional package is installed.

    Args:
        package: a key of `EXTRAS`.
        setting: setting that needs it, as the user wrote it.
        otherwise: what to do without it.

    Raises:
        UserError: it is not installed.
    """
    module, extra = EXTRAS[package]
    if find_spec(module) is None:
        raise UserError(
            f"{setting} needs the package {package}, which is not installed: pip install 'kava-latent[{extra}]', or {otherwise}"
        )
