"""BERT (Devlin et al. 2019, arXiv 1810.04805), Model Garden's, as a fair baseline."""

from shatter_tf.encoders.bert.config import BertConfig
from shatter_tf.encoders.bert.encoder import BertBaseline

__all__ = ["BertBaseline", "BertConfig"]
