"""Which process of a run this one is, from the environment variable TF_CONFIG."""

import json
import os

from shatter_tf.errors import UserError


def workers() -> tuple[list[str], int]:
    """Returns the addresses of the machines that train together, and the index of this one; ([], 0) without any.

    Raises:
      UserError: when TF_CONFIG is invalid.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return [], 0

    try:
        config = json.loads(text)
        if not isinstance(config, dict) or not config.get("cluster"):
            return [], 0
        cluster = config["cluster"]
        task = config["task"]
        chiefs = cluster.get("chief", [])
        addresses = [*chiefs, *cluster.get("worker", [])]
        index = int(task["index"]) + (len(chiefs) if task["type"] == "worker" else 0)
        if task["type"] not in ("chief", "worker") or not 0 <= index < len(addresses):
            raise ValueError(f"its task, {task['type']} {task['index']}, is not in its cluster")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        example = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
        raise UserError(f"TF_CONFIG={text}: {error!r}; expected something like {example}") from error
    return addresses, index


def is_chief() -> bool:
    """Returns whether this process is the one that writes files and talks to the user."""
    return workers()[1] == 0
