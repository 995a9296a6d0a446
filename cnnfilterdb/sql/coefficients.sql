
-- SVD coefficients of the $kernel filters in the current basis: components times (scaled filter - mean).
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT model_id, layer, out_channel, in_channel, round(c0, 3) AS c0, round(c1, 3) AS c1 FROM coefficients_$kernel LIMIT 3
CREATE OR REPLACE VIEW coefficients_$kernel AS
WITH basis AS (
    SELECT list_transform(found, lambda row: row.component) AS components,
           list_transform(found, lambda row: row.offset) AS offsets
    FROM (SELECT basis_rows('$kernel') AS found)
), peaks AS (
    SELECT model_id, layer, out_channel, in_channel, COLUMNS('^w\d+$$'),
           coalesce(nullif($peak, 0), 1) AS peak
    FROM filters_$kernel
), filters AS (
    SELECT model_id, layer, out_channel, in_channel, [$scaled] AS scaled FROM peaks
)
SELECT model_id, layer, out_channel, in_channel,
       $coefficients
FROM filters, basis;
