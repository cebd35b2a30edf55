"""Files of a run: their names, and the functions that read and write results.

    answers = write_rows(rows_path(path), rows)        # in this order: the result marks the evaluation as done
    write_result(path, result.model_copy(update={"answers": answers}))
    found = read_verified("outputs/llama1b_aug/seed_42/results_gsm8k.yaml")      # found.result, found.rows

`results_<dataset>.yaml` holds the metrics and everything needed to trace them; `results_<dataset>.jsonl` next to it has a row for
each question.
"""

from kava.results.files import Record as Record
from kava.results.files import Sections as Sections
from kava.results.files import checked_name as checked_name
from kava.results.files import parse_record as parse_record
from kava.results.files import read_mapping as read_mapping
from kava.results.files import write_text as write_text
from kava.results.result import BEST_CHECKPOINT as BEST_CHECKPOINT
from kava.results.result import RESULT_FORMAT as RESULT_FORMAT
from kava.results.result import RUN_CONFIG as RUN_CONFIG
from kava.results.result import TRAINING_DONE as TRAINING_DONE
from kava.results.result import CheckpointInfo as CheckpointInfo
from kava.results.result import DataInfo as DataInfo
from kava.results.result import Metrics as Metrics
from kava.results.result import Result as Result
from kava.results.result import Row as Row
from kava.results.result import RunInfo as RunInfo
from kava.results.result import by_steps as by_steps
from kava.results.result import check_output_paths as check_output_paths
from kava.results.result import check_result_path as check_result_path
from kava.results.result import dataset_label as dataset_label
from kava.results.result import partial_reason as partial_reason
from kava.results.result import read_result as read_result
from kava.results.result import read_rows as read_rows
from kava.results.result import result_path as result_path
from kava.results.result import rows_path as rows_path
from kava.results.result import trained_fingerprint as trained_fingerprint
from kava.results.result import write_result as write_result
from kava.results.result import write_rows as write_rows
from kava.results.verified import MODEL_KEYS as MODEL_KEYS
from kava.results.verified import Verified as Verified
from kava.results.verified import checkpoint_hash as checkpoint_hash
from kava.results.verified import read_verified as read_verified
from kava.results.verified import verified_result as verified_result
from kava.results.verified import verified_results as verified_results
from kava.results.verified import verified_rows as verified_rows
