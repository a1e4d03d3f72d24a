"""Tensor parts: encoded deltas in ordinary safetensors files, written and read.

A *stream* is a sequence of frames, one per chunk of a tensor's elements. Stream ``delta`` of
tensor ``t`` is, in each part that holds frames of it, a uint8 array ``t/delta`` of frames end to
end and an int64 array ``t/delta.offsets`` of where each begins and the last ends; the codec's
static arrays (``t/delta.palette``) stand in the first part that holds frames of it.
"""

from deltastore.artifact.parts.builder import PartBuilder
from deltastore.artifact.parts.reader import PartsReader, StreamReader

__all__ = ["PartBuilder", "PartsReader", "StreamReader"]
