"""Other packages that add families of encoders, experiments or formats of answers; docs/extending.md has the steps."""

import importlib.metadata

from shatter_tf.errors import UserError, first_line

# Entry points: modules that register what they add.
GROUP = "shatter_tf.plugins"


def load() -> None:
    """Imports what other packages register; raises UserError for one that cannot be imported."""
    for plugin in importlib.metadata.entry_points(group=GROUP):
        try:
            plugin.load()
        except Exception as error:  # whatever a module of somebody else raises
            raise UserError(f"{plugin.value}, a plugin, cannot be loaded ({first_line(error)})") from error
