"""What a configuration that is refused says."""

from typing import Any

import pytest

from kava.config import build_config
from kava.errors import UserError


def message(content: dict[str, Any], overrides: dict[str, Any] | None = None) -> str:
    """The message of a configuration, as of a file `here.yaml`, that must be refused."""
    with pytest.raises(UserError) as caught:
        build_config(content, "here.yaml", overrides)
    return str(caught.value)
