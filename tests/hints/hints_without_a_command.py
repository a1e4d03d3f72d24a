"""Hints whose command no test can run here, and why."""

from __future__ import annotations

REASONS: dict[str, str] = {}


def _because(reason: str, *keys: str) -> None:
    for key in keys:
        assert key not in REASONS
        REASONS[key] = reason


_because(
    "A newer deltastore wrote it, or the installation is broken: another one has to be installed.",
    "catalog/schema.py:check_revision:2",
    "catalog/schema.py:migrations_directory:1",
    "codecs/exact.py:ExactCodec.decoder:1",
    "codecs/registry.py:stored_codec:1",
    "manifest/parse.py:parse_config:1",
    "artifact/reader.py:_require_plain:1",
    "health/installation.py:look_at_installation:1",
    "store/layout.py:read_marker:2",
)
_because(
    "A package is missing: it has to be installed.",
    "checkpoint/location.py:_pinned:3",
    "tokenizer/reading.py:_sentencepiece:1",
    "comparison/plot.py:check_plot:6",
    "testing/__init__.py:<module>:1",
)
_because(
    "Another user has to do it, or this one lacks a permission, which root has: "
    "tests/store/test_store_readers.py, where the commands are run, and test_store_sharing.py.",
    "catalog/sqlite.py:SqliteDatabase._require_writable:1",
    "checkpoint/files.py:file_error:4",
    "system/directory.py:_target:1",
    "health/looks.py:_leases:1",
    "health/looks.py:_temps:2",
    "health/looks.py:_writable:1",
    "health/looks.py:_writable:2",
    "health/looks.py:_writable:3",
    "comparison/plot.py:check_plot:4",
    "system/permission.py:closed:1",
    "store/parts.py:Parts.require_writable:1",
)
_because(
    "The machine has to change: its disk, its limits, its clock or its file system. "
    "`deltastore du` and `doctor` are run in other cases.",
    "catalog/failures.py:_from_driver:2",
    "catalog/failures.py:_from_driver:3",
    "catalog/failures.py:_from_driver:4",
    "catalog/failures.py:no_space:1",
    "catalog/failures.py:cannot_be_made:1",
    "checkpoint/files.py:file_error:2",
    "checkpoint/files.py:file_error:3",
    "checkpoint/pickle_child.py:_answer:1",
    "health/looks.py:_clock:1",
    "health/looks.py:_file_system:1",
    "store/layout.py:read_marker:1",
)
_because(
    "A process of its own meets the limit, and the command that raises it is the shell's: "
    "tests/cli/test_environment.py.",
    "system/limits.py:of_call:2",
    "system/limits.py:too_large:1",
    "system/limits.py:no_process:1",
    "store/placing.py:_place:3",
)
_because(
    "Another process did something at the same moment, and the same command is right again: "
    "tests/store/test_store_collecting.py, test_store_crash.py, tests/operations/test_faults.py.",
    "checkpoint/files.py:_read:1",
    "checkpoint/files.py:read_at:1",
    "checkpoint/reader.py:Checkpoint.check_unchanged:1",
    "store/names.py:Names.create:2",
    "store/opening.py:open_parts:1",
    "store/publishing.py:_check_lease:1",
    "store/publishing.py:_require:1",
    "store/publishing.py:_require:2",
    "store/removing.py:_bury:1",
    "store/tagging.py:set_tag:1",
)
_because(
    "A store's blobs are kept elsewhere: tests/store/test_store_blobs.py.",
    "store/collecting.py:_collectable:1",
)
_because(
    "What is damaged or hostile has a right digest: no deltastore makes it, and the way out is the "
    "one of `manifest_breaks_the_format`.",
    "blobs/checking.py:require_digest:1",
    "blobs/checking.py:read_checked:1",
    "checkpoint/writer.py:_checked:1",
    "manifest/parse.py:load_json:2",
    "extraction/chunk.py:_encode_delta:1",
    "extraction/chain.py:Chain.require_post:1",
    "extraction/chain.py:_load:2",
    "extraction/chain.py:_require_chain:2",
    "output/assemble.py:_check_sizes:1",
    "output/assemble.py:_check_sizes:2",
    "artifact/parts/reader.py:_Part._read_header:1",
    "store/finding.py:_candidates:1",
)
_because(
    "A hub has to answer, or its cache is mended by fetching: tests/hub has one, and what is "
    "fetched from it works.",
    "checkpoint/hub/cache.py:check_inside:1",
    "checkpoint/hub/cache.py:check_links:1",
    "checkpoint/hub/cache.py:read_ref:1",
    "checkpoint/hub/downloading.py:_name:1",
    "checkpoint/hub/failures.py:hub_error:1",
    "checkpoint/hub/failures.py:hub_error:2",
    "checkpoint/hub/failures.py:hub_error:3",
    "checkpoint/hub/fetching.py:_download:1",
    "checkpoint/hub/fetching.py:_too_much:1",
    "checkpoint/hub/fetching.py:fetch:1",
    "checkpoint/hub/fetching.py:require_space:1",
    "checkpoint/hub/opening.py:check_cached:1",
    "checkpoint/hub/opening.py:fetch_layout:1",
    "checkpoint/hub/opening.py:look_at_shards:1",
    "checkpoint/hub/pinning.py:pin:1",
    "checkpoint/hub/ranges.py:RemoteFile.__init__:1",
    "checkpoint/hub/ranges.py:RemoteFile.read_into:1",
    "checkpoint/hub/shard.py:HubShard._download:1",
    "checkpoint/hub/shard.py:HubShard._download:2",
)
_because(
    "The checkpoint has to be saved, merged or fetched again by what made it.",
    "checkpoint/header.py:_unreadable:1",
    "checkpoint/pickle_child.py:_failure:3",
    "checkpoint/pickle_child.py:_failure:4",
    "checkpoint/pickle_child.py:_stopped:1",
    "checkpoint/pickle_file.py:PickleFile._add:1",
    "checkpoint/pickle_file.py:PickleFile._corrupt:1",
    "checkpoint/pieces.py:require_whole_tensors:1",
    "checkpoint/plan.py:plan_shards:1",
    "checkpoint/writer.py:_heads:1",
    "lineage/kinship.py:refuse_adapter:2",
    "lineage/pair_structure.py:check_pair_structure:1",
    "artifact/small_files.py:_check_total:1",
    "artifact/small_files.py:read_portable:1",
    "checkpoint/ungathered.py:refuse_ungathered:1",
)
_because(
    "Names an option of apply, which tests with tokenizers and such models give in "
    "tests/operations: test_hints.py, test_vocabulary.py, test_output_fits.py, "
    "test_added_tokens.py.",
    "tokenizer/reading.py:_added:1",
    "tokenizer/reading.py:_checked:1",
    "tokenizer/reading.py:_json_object:1",
    "tokenizer/reading.py:_unreadable:1",
    "tokenizer/reading.py:read_vocabulary:1",
    "tokenizer/added.py:_cannot:1",
    "tensor_names/selectors.py:_replaced:1",
    "output/configuration/fit.py:_Fit._check_stacks:1",
    "output/configuration/fit.py:_Fit._follow_structure:1",
    "output/configuration/fit.py:_Fit._hint:1",
    "output/configuration/fit.py:_Fit._hint:2",
    "output/configuration/fit.py:_Fit._refusal:1",
    "output/configuration/fit.py:_Fit._require_all_or_nothing:1",
    "output/configuration/fit.py:_Fit._settle:1",
    "output/tokenizer.py:_refuse_conflict:1",
    "merging/recipes.py:_conflict:1",
    "merging/recipes.py:_require_whole_tokens:1",
    "structure/checking.py:_hint:4",
    "tokenizer/matching.py:Vocabulary.rows:1",
)
_because(
    "No command takes a plan; tests/operations/test_merge_plan.py reads some.",
    "merging/plan_document.py:parse_plan:1",
)
_because(
    "Names a call of Python on a model in memory, which tests/operations/test_patching.py makes.",
    "api.py:DeltaStore.unpatch:1",
    "inmemory/conversions.py:layout:1",
    "inmemory/weights.py:_refuse_different:1",
    "inmemory/weights.py:_refuse_overlaps:1",
    "inmemory/weights.py:_refuse_strange:1",
    "inmemory/weights.py:_refuse_strange:2",
    "inmemory/planning.py:_changed:1",
    "inmemory/planning.py:_mismatch_error:1",
    "inmemory/planning.py:_mismatch_error:2",
    "inmemory/planning.py:_mismatch_error:3",
    "inmemory/planning.py:_mismatch_error:4",
    "inmemory/planning.py:_names:1",
    "inmemory/planning.py:_refuse_quantised:1",
    "inmemory/planning.py:plan_patch:1",
    "inmemory/planning.py:plan_patch:2",
    "operations/patch.py:unpatch.check:1",
    "inmemory/wrappers.py:_refuse_shards:1",
)
_because(
    "Says what is wrong with a plan, and no command takes one: test_extract_plan.py tries it.",
    "extraction/plan.py:_not_planned:1",
    "extraction/plan_document.py:parse_plan:1",
)
