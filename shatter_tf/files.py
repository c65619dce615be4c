"""Directories that are either whole or not there."""

import os

import tensorflow as tf


def publish(temporary: str, directory: str, last: str) -> None:
    """Makes what was written to `temporary` appear as `directory`, which must not exist or be empty.

    On a disk it appears at once. Object stores (gs://, s3://) have no directories to rename: there files are moved one
    by one, and `last`, without which the others are nothing, in the end.

    Args:
      temporary: a directory beside or inside of `directory`'s parent.
      directory: where readers look.
      last: a file name in `temporary`.
    """
    if "://" not in directory:
        tf.io.gfile.rename(temporary, directory, overwrite=True)
        return
    paths = [os.path.join(folder, name) for folder, _, names in tf.io.gfile.walk(temporary) for name in names]
    for path in sorted(paths, key=lambda path: path == os.path.join(temporary, last)):
        target = os.path.join(directory, os.path.relpath(path, temporary))
        tf.io.gfile.makedirs(os.path.dirname(target))
        tf.io.gfile.rename(path, target)
    tf.io.gfile.rmtree(temporary)
