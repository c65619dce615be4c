"""For tools that look for it: pyproject.toml says how shatter_tf is installed."""

from setuptools import setup

setup()
