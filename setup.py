"""Installs shatter_tf. The versions that were tested together stand in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
BEAM = "apache-beam>=2.70"  # add its own extra, [gcp] say, for the runner that is to be used

setup(
    name="shatter_tf",
    version=re.search(r'__version__ = "(.+)"', (HERE / "shatter_tf/__init__.py").read_text()).group(1),
    description="Pretrain, fine-tune and serve Shatter encoders with TensorFlow and Model Garden",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["shatter_tf", "shatter_tf.*"]),
    python_requires=">=3.10,<3.13",
    install_requires=[
        # These move together: Model Garden pins TensorFlow, and its Keras is tf_keras.
        "tensorflow==2.20.*",
        "tf_keras==2.20.*",
        "tf-models-official==2.20.*",
        "tensorflow-text==2.20.*",
        "tensorflow-datasets>=4.9.9",
        "tensorflow-serving-api==2.20.*",  # the protocol of warm-up requests
        "keras>=3.10",
        "ai-edge-litert",
        "matplotlib",
        "scikit-learn",
        "scipy",
        "numpy",
        "tokenizers>=0.20",
        "tqdm",
        "pyyaml",
        "setuptools<82",  # tensorflow_hub, which Model Garden imports, needs its pkg_resources
    ],
    extras_require={
        "beam": [BEAM],
        "test": [BEAM, "filelock", "hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.9"],
    },
)
