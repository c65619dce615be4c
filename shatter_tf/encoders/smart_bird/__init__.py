"""Smart Bird (Wu et al. 2021, arXiv 2108.09193): the idea is theirs, the equations are ours."""

from shatter_tf.encoders.smart_bird.config import SmartBirdConfig
from shatter_tf.encoders.smart_bird.encoder import SmartBirdEncoder

__all__ = ["SmartBirdConfig", "SmartBirdEncoder"]
