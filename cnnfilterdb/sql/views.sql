-- Paths of files in the folder, whatever its name holds: wildcards in it are put in brackets, which makes them letters.
-- Example: SELECT count(*) AS files FROM glob(database_files('/models/*.parquet'))
CREATE OR REPLACE MACRO database_files(pattern) AS
    $database_files;

-- One row per model, as it was stored.
-- Example: SELECT model_id, domain, conv_layers FROM models_stored
CREATE OR REPLACE VIEW models_stored AS
SELECT $models_columns FROM read_parquet(database_files('$models_files'), hive_partitioning = false);

-- Corrections and additions of the user, made by `cnnfilterdb annotate`: one row per model and column.
-- Example: FROM annotations
CREATE OR REPLACE VIEW annotations AS
$annotations;

-- One row per model, with annotations replacing stored values.
-- Example: SELECT model_id, domain, task, family, license, conv_layers, stored_filters FROM models
CREATE OR REPLACE VIEW models AS
$models;

-- One row per convolution layer, with its statistics. A layer without a models row was never committed.
-- Example: SELECT model_id, layer, layer_name, kind, kernel, filters, round(variance_entropy, 3) AS variance_entropy FROM layers WHERE stored
CREATE OR REPLACE VIEW layers AS
SELECT * FROM read_parquet(database_files('$layers_files'), hive_partitioning = false)
SEMI JOIN models_stored USING (model_id);

-- The columns that `by` and `where` of the table macros may name: one row per layer, with every column of models and of
-- layers. papers_layer: whether the papers' extraction would have read the layer, that is, neither transposed nor dead.
-- Example: SELECT domain, kernel, count(*) AS layers, sum(filters) AS filters FROM facts WHERE stored AND papers_layer GROUP BY ALL ORDER BY ALL
CREATE OR REPLACE VIEW facts AS
SELECT m.* EXCLUDE (files), l.* EXCLUDE (model_id), $papers_layer AS papers_layer
FROM read_parquet(database_files('$layers_files'), hive_partitioning = false) AS l JOIN models AS m USING (model_id);

-- One row per fitted basis.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT kernel, variant, len(models) AS models, layers, filters, bins, list_transform(explained_variance_ratio[:3], lambda r: round(r, 3)) AS ratios FROM bases
CREATE OR REPLACE VIEW bases AS
SELECT * FROM read_parquet($bases, hive_partitioning = false);

-- The basis that answers questions about a kernel size unless another one is given: the one with the highest sequence.
-- Example: SELECT kernel, layers, filters FROM current_bases ORDER BY kernel
CREATE OR REPLACE VIEW current_bases AS
SELECT * FROM bases
QUALIFY row_number() OVER (PARTITION BY bases.kernel ORDER BY bases.sequence DESC, bases.basis_id DESC) = 1;

-- Location of the histograms: all, or those of a kernel size, with few others, because the names of bases begin with it.
-- Example: SELECT len(histogram_files()) AS patterns
CREATE OR REPLACE MACRO histogram_files(kernel := NULL) AS $histograms;

-- Histograms of the coefficients: one row per basis, recipe and layer.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT model_id, layer, recipe, round(low, 3) AS low, round(high, 3) AS high, filters, len(counts) AS counts FROM histograms WHERE model_id = 'custom/scans' ORDER BY layer, recipe
CREATE OR REPLACE VIEW histograms AS
SELECT * FROM read_parquet(histogram_files(), hive_partitioning = false)
SEMI JOIN models_stored USING (model_id);
