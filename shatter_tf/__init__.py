"""shatter_tf: pretrain, fine-tune and serve Shatter encoders with TensorFlow and Model Garden."""

import os
import sys
import warnings

__version__ = "0.1.0"

# Before any other module, whose syntax an older Python may not read.
if not (3, 10) <= sys.version_info < (3, 14):
    found = f"{sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}"
    print(f"error: shatter_tf needs Python 3.10 to 3.13, and {found}; make an environment with one", file=sys.stderr)
    sys.exit(2)

# TensorFlow reads it when it is imported. What goes wrong still raises; TF_CPP_MIN_LOG_LEVEL=0 shows everything.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
warnings.filterwarnings("ignore", "pkg_resources is deprecated", module="tensorflow_hub")
