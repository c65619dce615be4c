"""What the graph of a SavedModel is made of, read without loading it, and what of that may be loaded."""

import functools
import os
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry
from tensorflow.python.ops import (
    gen_array_ops,
    gen_bitwise_ops,
    gen_functional_ops,
    gen_linalg_ops,
    gen_list_ops,
    gen_manip_ops,
    gen_math_ops,
    gen_nn_ops,
    gen_ragged_array_ops,
    gen_ragged_conversion_ops,
    gen_ragged_math_ops,
    gen_random_ops,
    gen_set_ops,
    gen_sparse_ops,
    gen_special_math_ops,
    gen_spectral_ops,
    gen_stateful_random_ops,
    gen_stateless_random_ops,
    gen_stateless_random_ops_v2,
    gen_string_ops,
)

# Operations of TensorFlow Text that our exports use, and the oldest TF Serving known to link them.
TEXT_OPERATIONS = (
    *("FastBertNormalize", "FastWordpieceTokenizeWithOffsets", "NormalizeUTF8"),
    "RegexSplitWithOffsets",  # only of the normalizers of BERT
)
MINIMUM_TF_SERVING = "2.12"

# TensorFlow groups operations by what they are about. Those of these groups compute, if they are not stateful …
_COMPUTATION = (
    *(gen_array_ops, gen_bitwise_ops, gen_functional_ops, gen_linalg_ops, gen_list_ops, gen_manip_ops, gen_math_ops),
    *(gen_nn_ops, gen_ragged_array_ops, gen_ragged_conversion_ops, gen_ragged_math_ops, gen_set_ops, gen_sparse_ops),
    *(gen_special_math_ops, gen_spectral_ops, gen_stateless_random_ops, gen_stateless_random_ops_v2, gen_string_ops),
)
# … except for one that reads a file …
_NO_COMPUTATION = {"ImmutableConst"}
# … and those of these groups have only the state of a generator.
_RANDOM = (gen_random_ops, gen_stateful_random_ops)

# Of other groups, or stateful.
_MORE = {
    *("Assert", "CheckNumerics", "NoOp", "StringToNumber"),
    *("DynamicPartition", "DynamicStitch", "ParallelDynamicStitch"),
    *("Case", "If", "StatefulPartitionedCall", "While"),  # call functions, which are read, too
    # Variables.
    *("VarHandleOp", "VarIsInitializedOp", "VariableShape", "ReadVariableOp", "DisableCopyOnRead", "DestroyResourceOp"),
    *("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceGather", "ResourceGatherNd"),
    # Hash tables, from tensors.
    *("HashTableV2", "AnonymousHashTable", "InitializeTableV2"),
    *("LookupTableFindV2", "LookupTableSizeV2", "LookupTableExportV2", "LookupTableImportV2"),
    # TensorFlow Text.
    *TEXT_OPERATIONS,
    *("CaseFoldUTF8", "FindSourceOffsets", "NormalizeUTF8WithOffsetsMap"),
    *("WhitespaceTokenizeWithOffsets", "TFText>WhitespaceTokenizeWithOffsetsV2", "WordpieceTokenizeWithOffsets"),
    *("UnicodeScriptTokenizeWithOffsets", "TFText>FastWordpieceDetokenize", "TFText>RoundRobinTrim"),
    *("TFText>FastSentencepieceTokenize", "TFText>FastSentencepieceDetokenize", "TFText>NgramsStringJoin"),
}
# These read and write files. Every SavedModel has them, in functions that only its saver calls; loading it does not.
_SAVER = {"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"}


@functools.cache
def allowed_operations() -> frozenset[str]:
    """Returns the names of the operations that a SavedModel may have to be loaded.

    These are more than our exports use, so that encoders and tasks of other packages pass, but only what computes its
    outputs from its inputs, from variables and from tables: all stateless operations of the groups of TensorFlow that
    are about computation, random numbers, and a list. To be stateless is not enough: TensorFlow calls ReadFile,
    DebugIdentity (which writes files), DatasetFromGraph (which runs any graph) and PyFuncStateless stateless, too. None
    of them is in such a group; neither are data sets, readers, debuggers, printing and devices.
    """
    pure = {name for group in _COMPUTATION for name in _operations_of(group) if not _definition(name).is_stateful}
    random = {name for group in _RANDOM for name in _operations_of(group)}
    return frozenset((pure - _NO_COMPUTATION) | random | _MORE)


def refused_operations(path: str) -> set[str]:
    """Returns the names of operations in the SavedModel at `path` that are not allowed.

    A guard against mistakes and simple attacks, not a sandbox: a graph of allowed operations may still take all memory.
    """
    model = _read(path)
    found = set()
    for graph in model.meta_graphs:
        functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}

        # The saver's functions are those that nothing calls.
        called = {name for nodes in functions.values() for node in nodes for name in _calls(node)}
        called |= {*graph.object_graph_def.concrete_functions}
        if len(model.meta_graphs) > 1 or not graph.HasField("object_graph_def"):  # loaded as one graph, the saver too
            called |= {*functions}

        # A function may be called like an operation, but not in place of one.
        allowed = allowed_operations() | {name for name in functions if _definition(name) is None}
        found |= {node.op for node in graph.graph_def.node} - allowed
        for name, nodes in functions.items():
            found |= {node.op for node in nodes} - (allowed if name in called else allowed | _SAVER)
    return found


def nodes(path: str) -> tuple[list[tf.compat.v1.NodeDef], set[str]]:
    """Returns all nodes of the SavedModel at `path`, including those in functions, and the names of its functions."""
    graphs = [meta_graph.graph_def for meta_graph in _read(path).meta_graphs]
    functions = [function for graph in graphs for function in graph.library.function]
    found = [node for graph in graphs for node in graph.node]
    found += [node for function in functions for node in function.node_def]
    return found, {function.signature.name for function in functions}


def operations(path: str) -> set[str]:
    """Returns the names of the operations of the SavedModel at `path`."""
    found, functions = nodes(path)
    return {node.op for node in found} - functions


def _read(path: str) -> saved_model_pb2.SavedModel:
    model = saved_model_pb2.SavedModel()
    with tf.io.gfile.GFile(os.path.join(path, "saved_model.pb"), "rb") as f:
        model.ParseFromString(f.read())
    return model


def _operations_of(group) -> Iterator[str]:
    """Yields the names of the operations of a group, a module with a function for each."""
    yield from (name for name in vars(group) if _definition(name) is not None)


def _definition(name: str):
    return op_def_registry.get(name)


def _calls(node: tf.compat.v1.NodeDef) -> Iterator[str]:
    """Yields the names of the functions that a node calls, and of its operation, which may be one."""
    yield node.op
    for attribute in node.attr.values():
        yield from (function.name for function in (attribute.func, *attribute.list.func))
