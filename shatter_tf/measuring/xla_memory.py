"""How much memory a compiled step needs, from XLA's own buffer assignment: the same from run to run, and known before
any step is taken."""

import glob
import os
import re


def dump_buffers(directory: str, function: str) -> None:
    """Has XLA write the buffers of every function of this name to `directory`; call before XLA compiles anything."""
    flags = f"--xla_dump_to={directory} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*{function}.*"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def newest_buffers(directory: str) -> dict[str, int]:
    """Returns the bytes of the step compiled last: `argument_bytes` (weights, optimizer, batch), `temporary_bytes`
    (activations, gradients) and `peak_bytes` (all there is at once)."""
    paths = glob.glob(os.path.join(directory, "*buffer-assignment.txt"))
    with open(max(paths, key=os.path.getmtime), encoding="utf8") as f:
        return parse_buffers(f.read())


def parse_buffers(text: str) -> dict[str, int]:
    """Returns what `newest_buffers` does, from the text of an assignment.

    Example:
    >>> parse_buffers('''
    ... allocation 0: size 400, parameter 0, shape |f32[100]| at ShapeIndex {}, maybe-live-out:
    ... allocation 1: size 4, constant:
    ... allocation 2: size 8, output shape is |f32[2]|, maybe-live-out:
    ... allocation 3: size 1000, preallocated-temp:
    ... allocation 4: size 12, thread-local:
    ... ''')
    {'argument_bytes': 400, 'temporary_bytes': 1000, 'peak_bytes': 1412}
    """
    arguments = temporary = total = 0
    for size, what in re.findall(r"^allocation \d+: size (\d+)(.*)$", text, re.MULTILINE):
        if "thread-local" in what:  # on the stack of one operation
            continue
        total += int(size)
        arguments += int(size) if re.search(r", parameter \d+", what) else 0
        temporary += int(size) if "preallocated-temp" in what else 0
    return dict(argument_bytes=arguments, temporary_bytes=temporary, peak_bytes=total)
