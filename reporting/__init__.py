"""What is shown of runs: figures, tables, statistics; functions of arrays and data frames, which know no store."""
