"""The class names of earlier pipelines as thin façades: they wire and translate, the real parts do the work."""

from millrace.api.copying import CopyResult, DataCopyEngine

__all__ = ["CopyResult", "DataCopyEngine"]
