"""BP-Transformer (Ye, Guo, Gan, Qiu, Zhang 2019, arXiv 1911.04070)."""

from shatter_tf.encoders.bpt.config import BptConfig
from shatter_tf.encoders.bpt.encoder import BptEncoder

__all__ = ["BptConfig", "BptEncoder"]
