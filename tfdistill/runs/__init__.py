"""The run directory: files written whole or not at all, what is finished, what can be resumed.

Nothing here needs TensorFlow.
"""
