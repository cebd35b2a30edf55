"""Losses, computed per example in float32, so that the loss of an example does not depend on its batch (method section 5)."""

from kava.losses.distance import DISTANCES
from kava.losses.hidden import codi_loss
from kava.losses.kv import kv_loss
from kava.losses.steps import step_loss
from kava.losses.token import token_cross_entropy
from kava.losses.total import combine

__all__ = ["DISTANCES", "codi_loss", "combine", "kv_loss", "step_loss", "token_cross_entropy"]
