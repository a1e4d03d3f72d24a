"""Checkpoints: finding, opening and reading them, and writing new ones.

Nothing here imports torch: files of ``torch.save`` are read by :mod:`deltastore.pickles`.
"""

from deltastore.checkpoint.beside import Left
from deltastore.checkpoint.hub import Downloads
from deltastore.checkpoint.location import Location, locate
from deltastore.checkpoint.model import TORCH_DTYPES, Shard, TensorInfo, TensorSpec, Weights
from deltastore.checkpoint.plan import ShardPlan, plan_shards
from deltastore.checkpoint.quantised import quantisation
from deltastore.checkpoint.reader import Checkpoint, open_checkpoint
from deltastore.checkpoint.small_files import (
    is_legal,
    is_model_file,
    is_named_template,
    is_small_file,
    is_template_file,
    is_tokenizer_file,
)
from deltastore.checkpoint.writer import CheckpointWriter, check_destination

__all__ = [
    "TORCH_DTYPES",
    "Checkpoint",
    "CheckpointWriter",
    "Downloads",
    "Left",
    "Location",
    "Shard",
    "ShardPlan",
    "TensorInfo",
    "TensorSpec",
    "Weights",
    "check_destination",
    "is_legal",
    "is_model_file",
    "is_named_template",
    "is_small_file",
    "is_template_file",
    "is_tokenizer_file",
    "locate",
    "open_checkpoint",
    "plan_shards",
    "quantisation",
]
