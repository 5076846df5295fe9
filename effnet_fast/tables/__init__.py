"""The paper's tables beside what its networks count to: ``effnet-fast tables``.

Source: Tan and Le, arXiv 1905.11946.
"""

from effnet_fast.tables.counted import TABLES
from effnet_fast.tables.layout import Column, Table

__all__ = ["TABLES", "Column", "Table"]
