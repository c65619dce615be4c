"""shatter_tf: pretrain, fine-tune and serve Shatter encoders with TensorFlow and Model Garden."""

__version__ = "0.1.0"
