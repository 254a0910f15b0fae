"""The names of earlier pipelines as thin façades: they wire and translate, the real parts do the work."""

from millrace.api.batches import optimize_batch_size
from millrace.api.copying import CopyResult, DataCopyEngine
from millrace.api.dbt import (
    DbtResult,
    execute_dbt_commands,
    execute_dbt_models,
    execute_dbt_snapshot,
    run_dbt_command,
    run_dbt_pipeline,
)
from millrace.api.monitoring import (
    Checkpoint,
    Monitoring,
    MonitoringReport,
    Performance,
    ProcessingStats,
    collect_processing_stats,
    performance_monitoring,
    retry_with_backoff,
)
from millrace.api.operations import ConnectionReport, DatabaseOperations, IntegrityReport, TableSchema
from millrace.api.tables import (
    Recovery,
    TableResult,
    TablesFailed,
    cleanup_temp_tables,
    copy_table_data,
    load_table_configs,
    parallel_data_processing,
    process_single_table,
    recover_failed_pipeline,
)

__all__ = [
    "Checkpoint",
    "ConnectionReport",
    "CopyResult",
    "DataCopyEngine",
    "DatabaseOperations",
    "DbtResult",
    "IntegrityReport",
    "Monitoring",
    "MonitoringReport",
    "Performance",
    "ProcessingStats",
    "Recovery",
    "TableResult",
    "TableSchema",
    "TablesFailed",
    "cleanup_temp_tables",
    "collect_processing_stats",
    "copy_table_data",
    "execute_dbt_commands",
    "execute_dbt_models",
    "execute_dbt_snapshot",
    "load_table_configs",
    "optimize_batch_size",
    "parallel_data_processing",
    "performance_monitoring",
    "process_single_table",
    "recover_failed_pipeline",
    "retry_with_backoff",
    "run_dbt_command",
    "run_dbt_pipeline",
]
