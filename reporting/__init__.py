"""Figures, tables and statistics of runs, as functions of arrays and data frames, independent of the store."""
