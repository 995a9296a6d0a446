-- One row per model, as it was stored.
-- Example: SELECT model_id, domain, conv_layers FROM models_stored
CREATE OR REPLACE VIEW models_stored AS
$models_stored;

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
SELECT $own FROM $layers
SEMI JOIN models_stored USING ($key);

-- The columns that `by` and `where` of the table macros may name: one row per layer, with every column of models and of
-- layers. papers_layer: whether the papers' extraction would have read the layer, that is, neither transposed nor dead.
-- Example: SELECT domain, kernel, count(*) AS layers, sum(filters) AS filters FROM facts WHERE stored AND papers_layer GROUP BY ALL ORDER BY ALL
CREATE OR REPLACE VIEW facts AS
SELECT m.* EXCLUDE (files), l.* EXCLUDE ($key), $papers_layer AS papers_layer
FROM $layers AS l JOIN models AS m USING ($key);

-- One row per fitted basis.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT kernel, variant, len(models) AS models, layers, filters, bins, list_transform(explained_variance_ratio[:3], lambda r: round(r, 3)) AS ratios FROM bases
CREATE OR REPLACE VIEW bases AS
SELECT * FROM $bases;

-- The basis that answers questions about a kernel size unless another one is given: the one with the highest sequence.
-- Example: SELECT kernel, layers, filters FROM current_bases ORDER BY kernel
CREATE OR REPLACE VIEW current_bases AS
SELECT * FROM bases
QUALIFY row_number() OVER (PARTITION BY bases.kernel ORDER BY bases.sequence DESC, bases.basis_id DESC) = 1;

-- Histograms of the coefficients: one row per basis, recipe and layer.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT model_id, layer, recipe, round(low, 3) AS low, round(high, 3) AS high, filters, len(counts) AS counts FROM histograms WHERE model_id = 'custom/scans' ORDER BY layer, recipe
CREATE OR REPLACE VIEW histograms AS
SELECT $own FROM $all_histograms
SEMI JOIN models_stored USING ($key);

-- Fingerprints of the stored layers, computed by `cnnfilterdb index`: their spectra, and sketches of their weights, by which
-- related models are found.
-- Example: SELECT model_id, layer, round(kurtosis, 2) AS kurtosis, len(sketch) AS numbers FROM fingerprints
CREATE OR REPLACE VIEW fingerprints AS
SELECT $own FROM $fingerprints
SEMI JOIN models_stored USING ($key);
