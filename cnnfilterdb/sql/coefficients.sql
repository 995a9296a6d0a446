
-- SVD coefficients of the $kernel filters in the current basis: components times (scaled filter - mean).
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT model_id, layer, out_channel, in_channel, round(c0, 3) AS c0, round(c1, 3) AS c1 FROM coefficients_$kernel LIMIT 3
CREATE OR REPLACE VIEW coefficients_$kernel AS
WITH basis AS (
    SELECT list_transform(found, lambda row: row.component) AS components,
           list_transform(found, lambda row: row.offset) AS offsets
    FROM (SELECT basis_rows('$kernel') AS found)
), peaks AS (
    SELECT model_id, layer, out_channel, in_channel, w::FLOAT[] AS w,
           coalesce(nullif(greatest(list_max(w::FLOAT[]), -list_min(w::FLOAT[])), 0), 1) AS peak
    FROM filters_$kernel
), filters AS (
    -- Divided as REAL, as every other part of the package scales; summed as DOUBLE.
    SELECT model_id, layer, out_channel, in_channel,
           CAST(list_transform(w, lambda x: x / peak) AS DOUBLE[]) AS scaled
    FROM peaks
), projected AS (
    -- A list, because an expression for each coefficient takes longer to bind than all other views together.
    SELECT model_id, layer, out_channel, in_channel,
           list_transform(components, lambda row, i: list_inner_product(scaled, row) - offsets[i]) AS c
    FROM filters, basis
)
SELECT model_id, layer, out_channel, in_channel,
       $coefficients
FROM projected;
