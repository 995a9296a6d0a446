
-- ------------------------------------------------------------------------------------------------------- search
-- Pairs of models that contain the same layers, bit for bit: fine-tuned from one another, or both from a third.
-- Layers of zeros, which any two models may have, are left out. `share` is of the model with fewer layers.
-- Example: FROM shared_models
CREATE OR REPLACE VIEW shared_models AS
WITH distinct_layers AS (
    SELECT model_id, tensor_sha256, any_value(filters) AS filters
    FROM layers WHERE stored AND norm_l2 > 0 GROUP BY ALL
), totals AS (
    SELECT model_id, count(*) AS layers FROM distinct_layers GROUP BY ALL
)
SELECT a.model_id AS model_a, b.model_id AS model_b, count(*) AS shared_layers,
       CAST(sum(a.filters) AS BIGINT) AS shared_filters,
       count(*) / least(any_value(ta.layers), any_value(tb.layers)) AS share
FROM distinct_layers AS a JOIN distinct_layers AS b USING (tensor_sha256)
JOIN totals AS ta ON ta.model_id = a.model_id JOIN totals AS tb ON tb.model_id = b.model_id
WHERE a.model_id < b.model_id
GROUP BY a.model_id, b.model_id ORDER BY share DESC, model_a, model_b;

-- Layers that occur in several models (or twice in one model) bit for bit, with each occurrence.
-- Example: FROM shared_layers
CREATE OR REPLACE VIEW shared_layers AS
SELECT tensor_sha256, any_value(kernel) AS kernel, any_value(filters) AS filters, count(DISTINCT model_id) AS models,
       list({'model_id': model_id, 'layer': layer, 'layer_name': layer_name} ORDER BY model_id, layer) AS places
FROM layers WHERE stored AND norm_l2 > 0
GROUP BY tensor_sha256 HAVING count(*) > 1
ORDER BY models DESC, tensor_sha256;
