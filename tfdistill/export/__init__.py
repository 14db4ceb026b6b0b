"""A trained model becomes artifacts."""

from tfdistill.export.exported import ExportedModel, export_model
from tfdistill.export.settings import Export, Limits, Normalisation

__all__ = ["Export", "ExportedModel", "Limits", "Normalisation", "export_model"]
