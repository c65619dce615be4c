"""SavedModels in TensorFlow's C++ loader: compiles load_saved_model.cc and speaks to it."""

import os
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_text
from tensorflow.core.framework import attr_value_pb2

_SOURCE = Path(__file__).with_name("load_saved_model.cc")
# What TF Serving links: shatter_tf.serving.operations.TEXT_OPERATIONS.
_LIBRARIES = (
    *("_fast_bert_normalizer.so", "_fast_wordpiece_tokenizer.so", "_normalize_ops.so", "_regex_split_ops.so"),
)


def proto(value: np.ndarray):
    """Returns an array as a message; NumPy's arrays of objects are of strings, also where there are none."""
    return tf.make_tensor_proto(value, tf.string if value.dtype == object else None)


class RequestError(Exception):
    """The loader's error for a request that it could not answer."""


def compile_loader(directory) -> str:
    """Compiles the program with g++ against the installed TensorFlow, and returns its path."""
    path = os.path.join(directory, "load_saved_model")
    tensorflow = tf.sysconfig.get_lib()
    libraries = [f"-L{tensorflow}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    libraries += [f"-Wl,-rpath,{tensorflow}", "-Wl,--allow-shlib-undefined"]
    # Not optimized: the time goes into TensorFlow, and compiling takes long enough.
    command = ["g++", "-w", "-O0", "-DNDEBUG", str(_SOURCE), "-o", path, *tf.sysconfig.get_compile_flags(), *libraries]
    subprocess.run(command, check=True)
    return path


class CppLoader:
    """A SavedModel in a process of its own, until it is closed.

    Args:
      program: what `compile_loader` returned.
      model_dir: the SavedModel.
      one_dnn: whether TensorFlow uses oneDNN, as it does by default.
    """

    def __init__(self, program: str, model_dir, one_dnn: bool = True):
        operations = Path(tensorflow_text.__file__).parent / "python/ops"
        self._process = subprocess.Popen(
            [program, str(model_dir), *(str(operations / name) for name in _LIBRARIES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": str(int(one_dnn))},
        )
        self._lock = threading.Lock()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns a signature's outputs; raises RequestError."""
        request = attr_value_pb2.NameAttrList(name=signature)
        for name, value in inputs.items():
            request.attr[name].tensor.CopyFrom(proto(value))
        answer = self._ask(request.SerializeToString())
        if answer.name != "OK":
            raise RequestError(answer.name)
        return {name: tf.make_ndarray(value.tensor) for name, value in answer.attr.items()}

    def allocated_memory(self) -> float:
        """Returns the MB that the process has allocated and not freed, without what malloc keeps for later."""
        return int(self._ask(b"").name) / 2**20

    def _ask(self, record: bytes) -> attr_value_pb2.NameAttrList:
        with self._lock:
            self._write(record)
            return attr_value_pb2.NameAttrList.FromString(self._read())

    def _write(self, record: bytes) -> None:
        self._process.stdin.write(struct.pack("<Q", len(record)) + record)
        self._process.stdin.flush()

    def _read(self) -> bytes:
        length = self._process.stdout.read(8)
        if len(length) < 8:
            raise RuntimeError(f"the loader ended with exit code {self._process.wait()}")
        return self._process.stdout.read(struct.unpack("<Q", length)[0])
