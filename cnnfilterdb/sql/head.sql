-- cnnfilterdb: views and macros over Parquet files, for any DuckDB client (2.0 or later).
--   duckdb -init init.sql
-- If the files have moved: SET VARIABLE cnnfilterdb_path = '<folder>' before this file is run.
SET VARIABLE cnnfilterdb_path = coalesce(getvariable('cnnfilterdb_path'), $places);
