"""Files and directories that are either complete or absent, and belong to one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

import tensorflow as tf

from shatter_tf.errors import UserError, argument, first_line

INCOMPLETE = ".incomplete"  # ends the name of what is being written

LOCK_FILE = ".lock"  # locked by the process that holds a directory

# What TensorFlow raises when an object store has not answered ten times, or when a remote device is gone.
PASSING_ERRORS = (tf.errors.AbortedError, tf.errors.DeadlineExceededError, tf.errors.UnavailableError)


def write_whole(path: str, content: str | bytes) -> None:
    """Writes a file completely or not at all, replacing what was there."""
    with tf.io.gfile.GFile(path + INCOMPLETE, "w" if isinstance(content, str) else "wb") as f:
        f.write(content)
    tf.io.gfile.rename(path + INCOMPLETE, path, overwrite=True)


def real_path(path: str) -> str:
    """Returns the canonical name of a path, with links and dots resolved; remote paths have only one."""
    return path.rstrip("/") if "://" in path else os.path.realpath(path)


def contents(directory: str) -> list[str]:
    """Returns the names in a directory, without hidden ones and what a file system keeps there for itself.

    Example:
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for name in (".gitkeep", "lost+found", "letter.txt"):
    ...         pathlib.Path(directory, name).touch()
    ...     contents(directory)
    ['letter.txt']
    """
    return [name for name in tf.io.gfile.listdir(directory) if not name.startswith(".") and name != "lost+found"]


def check_name(path: str, what: str) -> None:
    """Raises UserError, which names `what`, for a path that TensorFlow's checkpoints would take for a pattern."""
    found = sorted({*path} & {*"*?[]\\"})
    if found:
        raise UserError(
            f"{what}={path}: TensorFlow takes {' '.join(found)} for a pattern of names; choose another name"
        )


def publish(temporary: str, directory: str, last: str) -> None:
    """Makes what was written to `temporary` appear as `directory`, which has nothing else in it or does not exist yet.

    A new directory on a disk appears at once. An existing one may be a mount point, or where somebody works, and
    object stores (gs://, s3://) have no directories to rename: then files are moved one by one, and `last`, without
    which the others do not count, at the end.

    Args:
      temporary: a directory inside `directory` or its parent.
      directory: where readers look.
      last: a file name in `temporary`.
    """
    if "://" not in directory and not tf.io.gfile.exists(directory):
        tf.io.gfile.rename(temporary, directory)
        return
    listing = list(tf.io.gfile.walk(temporary))
    paths = [os.path.join(folder, name) for folder, _, names in listing for name in names]
    paths = [path for path in paths if tf.io.gfile.exists(path)]  # ram:// also lists a.b/c in a/, as .b
    for path in sorted(paths, key=lambda path: path == os.path.join(temporary, last)):
        target = os.path.join(directory, os.path.relpath(path, temporary))
        tf.io.gfile.makedirs(os.path.dirname(target))
        tf.io.gfile.rename(path, target)
    for folder in sorted((folder for folder, _, _ in listing), reverse=True):  # what is in a folder, before the folder
        if tf.io.gfile.exists(folder):
            tf.io.gfile.rmtree(folder)


@contextlib.contextmanager
def all_or_nothing(directory: str, name: str, last: str) -> Iterator[str]:
    """Yields another directory, whose contents appear as `directory` at the end, or are removed if an error ends it.

    Args:
      directory: empty, or not there yet; the argument `name`.
      last: as for `publish`.

    Raises:
      UserError: when it cannot be made or written.
    """
    where = f"{argument(name)}={directory}"
    target = real_path(directory)
    # Inside an existing directory: it may be a mount point, and what lies beside that cannot be renamed into it.
    inside = tf.io.gfile.exists(target) and "://" not in target
    temporary = f"{target}{'/' if inside else ''}{INCOMPLETE}-{os.getpid()}"
    try:
        tf.io.gfile.makedirs(temporary)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{where}: cannot be made ({first_line(error)})") from error

    try:
        yield temporary
        publish(temporary, target, last)
    except BaseException as error:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.rmtree(temporary)
        if isinstance(error, (tf.errors.OpError, OSError)):
            raise UserError(f"{where}: cannot be written ({first_line(error)})") from error
        raise


@contextlib.contextmanager
def held(directory: str, wait: bool = False) -> Iterator[bool]:
    """Reserves a directory for this process against all that ask for it in this way; yields whether it was free.

    The operating system releases it when the process ends, however it ends; an empty file stays. Where there are no
    locks, in object stores and on some network disks, every directory counts as free.

    Args:
      directory: one that exists.
      wait: whether to wait until it is free.

    Raises:
      UserError: when nothing can be written there.
    """
    if "://" in directory:
        yield True
        return
    try:
        # A file opened for writing: on NFS, nothing else can be locked against other machines.
        descriptor = os.open(os.path.join(directory, LOCK_FILE), os.O_RDWR | os.O_CREAT, 0o666)
        free = True
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({first_line(error)})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        free = False
    except OSError:
        pass  # the file system has no locks
    try:
        yield free
    finally:
        os.close(descriptor)
