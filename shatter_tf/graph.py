"""What the graph of a SavedModel is made of, read without loading it."""

import os

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# Operations that write files, or call what is in this process: loading a SavedModel, or asking it, may run them.
UNSAFE_OPERATIONS = {
    *("WriteFile", "SaveDataset", "SaveDatasetV2", "DatasetToTFRecord", "CreateSummaryFileWriter"),
    *("PyFunc", "PyFuncStateless", "EagerPyFunc"),
}


def nodes(path: str) -> tuple[list[tf.compat.v1.NodeDef], set[str]]:
    """Returns all nodes of the SavedModel at `path`, those inside functions too, and the names of its functions."""
    model = saved_model_pb2.SavedModel()
    with tf.io.gfile.GFile(os.path.join(path, "saved_model.pb"), "rb") as f:
        model.ParseFromString(f.read())
    graphs = [meta_graph.graph_def for meta_graph in model.meta_graphs]
    functions = [function for graph in graphs for function in graph.library.function]
    found = [node for graph in graphs for node in graph.node]
    found += [node for function in functions for node in function.node_def]
    return found, {function.signature.name for function in functions}


def operations(path: str) -> set[str]:
    """Returns the names of the operations of the SavedModel at `path`."""
    found, functions = nodes(path)
    return {node.op for node in found} - functions
