"""What an HLO module computes, counted from its instructions."""

import functools
import math

from tensorflow.compiler.xla.service import hlo_pb2


def matmul_flops(hlo: hlo_pb2.HloModuleProto) -> int:
    """Returns the floating-point operations of the matrix products in a module, 2 M N K each.

    That is what a matrix unit's peak is compared with. The body of a loop counts once per iteration. What the compiler
    recomputes is not counted twice.

    Raises:
      ValueError: for a loop whose number of iterations is not known beforehand.
    """
    computations = {computation.id: computation for computation in hlo.computations}

    @functools.cache
    def flops(computation_id: int) -> int:
        computation = computations[computation_id]
        instructions = {instruction.id: instruction for instruction in computation.instructions}
        total = 0
        for instruction in _used(computation):
            if instruction.opcode == "dot":
                left = instructions[instruction.operand_ids[0]].shape.dimensions
                inner = (left[axis] for axis in instruction.dot_dimension_numbers.lhs_contracting_dimensions)
                total += 2 * math.prod(instruction.shape.dimensions) * math.prod(inner)

            rounds = _rounds(instruction, instructions, computations) if instruction.opcode == "while" else 1
            total += rounds * sum(flops(called) for called in instruction.called_computation_ids)
        return total

    return flops(hlo.entry_computation_id)


def _rounds(loop: hlo_pb2.HloInstructionProto, instructions: dict, computations: dict) -> int:
    """Returns the number of iterations of a loop, one of `instructions`.

    Its condition is `counter < limit`, for one counter or more. A limit is a constant or, for the backward pass of a
    loop, what the forward loop has counted.
    """
    limits = []
    todo = [loop.called_computation_ids[1]]  # the second is the condition
    while todo:
        condition = computations[todo.pop()]
        operands = {instruction.id: instruction for instruction in condition.instructions}
        for instruction in condition.instructions:
            todo += instruction.called_computation_ids
            if instruction.opcode == "compare":
                limits.append(operands[instruction.operand_ids[1]])

    constants = [value for limit in limits for value in limit.literal.s32s]
    if constants:
        return min(constants)

    # Follow what the loop is given, through tuples, to where the limit is made.
    for limit in limits:
        source = instructions[loop.operand_ids[0]]
        places = [limit.tuple_index]
        while source.opcode in ("tuple", "get-tuple-element"):
            if source.opcode == "tuple":
                source = instructions[source.operand_ids[places.pop()]]
            else:
                places.append(source.tuple_index)
                source = instructions[source.operand_ids[0]]
        if source.opcode == "while":
            return _rounds(source, instructions, computations)
        if source.literal.s32s:
            return source.literal.s32s[0]
    raise ValueError(f"a loop of unknown length: {loop.name}")


def _used(computation: hlo_pb2.HloComputationProto) -> list[hlo_pb2.HloInstructionProto]:
    """Returns the instructions that a computation's result depends on; the compiler drops the others."""
    instructions = {instruction.id: instruction for instruction in computation.instructions}
    used = {}
    todo = [computation.root_id]
    while todo:
        instruction = instructions[todo.pop()]
        if instruction.id not in used:
            used[instruction.id] = instruction
            todo += instruction.operand_ids
    return list(used.values())
