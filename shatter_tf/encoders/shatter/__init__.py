"""Shatter (Tian, Maynez, Parikh 2021, arXiv 2108.13032)."""

from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.encoder import ShatterEncoder

__all__ = ["ShatterConfig", "ShatterEncoder"]
