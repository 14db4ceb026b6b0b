"""The global batch, as each replica of a strategy sees it."""

from __future__ import annotations

from typing import Any

from tfdistill._keras import tf

__all__ = ["gathered", "own_rows", "share_of_mean"]


def share_of_mean(per_example: tf.Tensor, replicas: int) -> tf.Tensor:
    """This replica's share of the mean over the global batch; optimizers sum the shares.

    Dividing by the replica's own batch, as Keras does, is wrong where the last batch does not
    divide evenly.

    Args:
        per_example: `[examples of this replica]`.
        replicas: How many there are.
    """
    examples = tf.cast(tf.size(per_example), tf.float32)
    if replicas > 1:
        context = tf.distribute.get_replica_context()
        examples = context.all_reduce(tf.distribute.ReduceOp.SUM, examples)
    return tf.math.divide_no_nan(tf.reduce_sum(per_example), examples)


def gathered(structure: Any) -> Any:
    """The batches of all replicas as one, in their order, which may differ in size.

    The gradient goes back to the replica that an example came from, from all replicas' losses.

    Args:
        structure: Tensors `[batch, ...]` of equal sizes in all other axes.

    Returns:
        The same with tensors `[global batch, ...]`.
    """
    context = tf.distribute.get_replica_context()

    def gather(values: Any) -> tf.Tensor:
        values = tf.convert_to_tensor(values)
        # Collectives know no bool; and gathering forgets the sizes that are known.
        sent = tf.cast(values, tf.int32) if values.dtype == tf.bool else values
        joined = tf.ensure_shape(context.all_gather(sent, axis=0), [None, *values.shape[1:]])
        return tf.cast(joined, values.dtype)

    return tf.nest.map_structure(gather, structure)


def own_rows(values: tf.Tensor, examples: tf.Tensor) -> tf.Tensor:
    """This replica's rows of what `gathered` has joined.

    Args:
        values: `[global batch, ...]`.
        examples: Size of this replica's batch.
    """
    context = tf.distribute.get_replica_context()
    sizes = context.all_gather(tf.reshape(examples, [1]), axis=0)
    begin = tf.reduce_sum(sizes[: context.replica_id_in_sync_group])
    return values[begin : begin + examples]
