-- Paths of files in the folder, whatever its name holds: wildcards in it are put in brackets, which makes them letters.
-- Example: SELECT count(*) AS files FROM glob(database_files('/models/*.parquet'))
CREATE OR REPLACE MACRO database_files(pattern) AS
    $database_files;

-- Location of the histograms: all, or those of a kernel size, with few others, because the names of bases begin with it.
-- Example: SELECT len(histogram_files()) AS patterns
CREATE OR REPLACE MACRO histogram_files(kernel := NULL) AS $histogram_files;
