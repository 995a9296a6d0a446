-- Paths of files in the folder, whatever its name holds: wildcards in it are put in brackets, which makes them letters.
CREATE OR REPLACE MACRO database_files(pattern) AS
    $database_files;

-- One row per model, as it was stored.
CREATE OR REPLACE VIEW models_stored AS
SELECT $models_columns FROM read_parquet(database_files('/models/*.parquet'), hive_partitioning = false);

-- Corrections and additions of the user: model_id, column, value (NULL: the fact is unknown).
CREATE OR REPLACE VIEW annotations AS
$annotations;

-- One row per model, with annotations replacing stored values.
CREATE OR REPLACE VIEW models AS
$models;

-- One row per convolution layer, with its statistics. A layer without a models row was never committed.
CREATE OR REPLACE VIEW layers AS
SELECT * FROM read_parquet(database_files('/layers/*.parquet'), hive_partitioning = false)
SEMI JOIN models_stored USING (model_id);

-- The columns that `by` and `where` of the table macros may name: one row per layer, with every column of models and of
-- layers. papers_layer: whether the papers' extraction would have read the layer, that is, neither transposed nor dead.
CREATE OR REPLACE VIEW facts AS
SELECT m.* EXCLUDE (files), l.* EXCLUDE (model_id), $papers_layer AS papers_layer
FROM read_parquet(database_files('/layers/*.parquet'), hive_partitioning = false) AS l JOIN models AS m USING (model_id);

-- Fitted bases.
CREATE OR REPLACE VIEW bases AS
SELECT * FROM read_parquet($bases, hive_partitioning = false);

-- The basis that answers questions about a kernel size unless another one is given: the one with the highest sequence.
CREATE OR REPLACE VIEW current_bases AS
SELECT * FROM bases
QUALIFY row_number() OVER (PARTITION BY bases.kernel ORDER BY bases.sequence DESC, bases.basis_id DESC) = 1;

-- Location of the histograms.
CREATE OR REPLACE MACRO histogram_files() AS $histograms;

-- Histograms of the coefficients: one row per basis, recipe and layer.
CREATE OR REPLACE VIEW histograms AS
SELECT * FROM read_parquet(histogram_files(), hive_partitioning = false)
SEMI JOIN models_stored USING (model_id);
